// From the blocks of a file to 16 rows side by side (types.h says how). Byte layouts of the sources:
// ggml-common.h; each is held to the `gguf` package's own decoding by tests/native/test_weights.py.
#include "pack.h"

#include <cstring>

namespace apr {
namespace {

std::uint32_t word(const std::uint8_t* p) {
    std::uint32_t w;
    std::memcpy(&w, p, 4);
    return w;
}

// Bit i of a nibble as byte i.
std::uint32_t spread(std::uint32_t nibble) {
    return (nibble & 1) | (nibble & 2) << 7 | (nibble & 4) << 14 | (nibble & 8) << 21;
}

// The quants of one row of a unit (a block of 256 has 8), four columns at a time: `out` is where
// row 0 of the unit would begin.
template <int type>
inline void put_quants(const std::uint8_t* block, int unit, int row, std::uint8_t* out) {
    const auto put = [&](int group, std::uint32_t w) { std::memcpy(out + 64 * group + 4 * row, &w, 4); };
    const auto nibbles = [&](const std::uint8_t* q) {  // as they are: column i and i + 16 in a byte
        for (int g = 0; g < 4; ++g) put(g, word(q + 4 * g));
    };
    const auto halves = [&](const std::uint8_t* q, int shift) {  // K types: columns in a row
        const std::uint32_t low = 0x0f0f0f0fu;
        for (int g = 0; g < 4; ++g)
            put(g, ((word(q + 4 * g) >> shift) & low) | ((word(q + 16 + 4 * g) >> shift) & low) << 4);
    };
    const auto fifth = [&](const std::uint8_t* h) {
        const std::uint32_t bits = word(h);
        std::uint32_t w = 0;
        for (int g = 0; g < 8; ++g) w |= spread((bits >> (4 * g)) & 15) << g;
        put(4, w);
    };
    // Two bits of each column: four groups in a byte.
    const auto pairs = [&](int group, const std::uint8_t* q, int shift) {
        std::uint32_t w = 0;
        for (int g = 0; g < 4; ++g) w |= ((word(q + 4 * g) >> shift) & 0x03030303u) << (2 * g);
        put(group, w);
    };
    switch (type) {
        case Q8_0:  // signed as unsigned, 128 more
            for (int g = 0; g < 8; ++g) put(g, word(block + 2 + 4 * g) ^ 0x80808080u);
            return;
        case Q4_0: return nibbles(block + 2);
        case Q4_1: return nibbles(block + 4);
        case MXFP4: return nibbles(block + 1);
        case Q5_0: nibbles(block + 6); return fifth(block + 2);
        case Q5_1: nibbles(block + 8); return fifth(block + 4);
        case Q4_K: return halves(block + 16 + 32 * (unit / 2), 4 * (unit % 2));
        case Q5_K: {
            halves(block + 48 + 32 * (unit / 2), 4 * (unit % 2));
            std::uint32_t w = 0;
            for (int g = 0; g < 8; ++g)
                w |= ((word(block + 16 + 4 * g) >> unit) & 0x01010101u) << g;
            return put(4, w);
        }
        case Q6_K: {
            halves(block + 64 * (unit / 4) + 32 * (unit % 2), unit % 4 < 2 ? 0 : 4);
            const std::uint8_t* high = block + 128 + 32 * (unit / 4);
            pairs(4, high, 2 * (unit % 4));
            return pairs(5, high + 16, 2 * (unit % 4));
        }
        case TQ2_0: {
            const std::uint8_t* q = block + 32 * (unit / 4);
            pairs(0, q, 2 * (unit % 4));
            return pairs(1, q + 16, 2 * (unit % 4));
        }
        default: {  // TQ1_0: five digits of base 3 in a byte, the first in its highest part
            static const std::uint8_t power[5] = {1, 3, 9, 27, 81};
            std::uint8_t v[32];
            for (int i = 0; i < 32; ++i) {
                const int k = 32 * unit + i;
                int byte, digit;
                if (k < 160) byte = k % 32, digit = k / 32;
                else if (k < 240) byte = 32 + (k - 160) % 16, digit = (k - 160) / 16;
                else byte = 48 + (k - 240) % 4, digit = (k - 240) / 4;
                const std::uint8_t q = (std::uint8_t)(block[byte] * power[digit]);
                v[i] = (std::uint8_t)(((unsigned)q * 3) >> 8);
            }
            pairs(0, v, 0);
            return pairs(1, v + 16, 0);
        }
    }
}

void six_bits(const std::uint8_t* q, int unit, std::uint8_t* scale, std::uint8_t* minimum) {
    if (unit < 4) {
        *scale = q[unit] & 63;
        *minimum = q[unit + 4] & 63;
    } else {
        *scale = (q[unit + 4] & 15) | (q[unit - 4] >> 6) << 4;
        *minimum = (q[unit + 4] >> 4) | (q[unit] >> 6) << 4;
    }
}

template <int type>
void pack_as(int rows, int columns, const std::uint8_t* source, int first, int count,
             std::uint8_t* target) {
    const Layout& l = *layout(type);
    const int units = columns / 32, per_block = l.source_columns / 32;
    const std::size_t row_bytes = (std::size_t)columns / l.source_columns * l.source_bytes;
    const std::size_t bytes = row_block_bytes(type, columns);
    for (int b = first; b < first + count; ++b) {
        std::uint8_t* out = target + b * bytes;
        std::uint8_t* scales = out + (std::size_t)units * l.quants;
        std::uint8_t* super = scales + (std::size_t)units * l.scales;
        std::memset(scales, 0, out + bytes - scales);
        for (int u = 0; u < units; ++u) {
            std::uint8_t* quants = out + (std::size_t)u * l.quants;
            if (16 * (b + 1) > rows) std::memset(quants, 0, l.quants);  // rows that are not there
            std::uint8_t* s = scales + (std::size_t)u * l.scales;
            std::uint8_t* t = super + (std::size_t)(u / 8) * l.super;
            for (int r = 0; r < 16 && 16 * b + r < rows; ++r) {
                const std::uint8_t* block =
                    source + (16 * b + r) * row_bytes + (std::size_t)(u / per_block) * l.source_bytes;
                const int unit = u % per_block;
                put_quants<type>(block, unit, r, quants);
                switch (type) {
                    case Q4_1: case Q5_1: std::memcpy(s + 32 + 2 * r, block + 2, 2); [[fallthrough]];
                    case Q8_0: case Q4_0: case Q5_0: std::memcpy(s + 2 * r, block, 2); break;
                    case MXFP4: s[r] = block[0]; break;
                    case Q4_K: case Q5_K:
                        six_bits(block + 4, unit, s + r, s + 16 + r);
                        std::memcpy(t + 2 * r, block, 2);
                        std::memcpy(t + 32 + 2 * r, block + 2, 2);
                        break;
                    case Q6_K:
                        s[r] = block[192 + 2 * unit];
                        s[16 + r] = block[192 + 2 * unit + 1];
                        std::memcpy(t + 2 * r, block + 208, 2);
                        break;
                    case TQ1_0: std::memcpy(t + 2 * r, block + 52, 2); break;
                    default: std::memcpy(t + 2 * r, block + 64, 2); break;
                }
            }
        }
    }
}

}  // namespace

void pack(int type, int rows, int columns, const std::uint8_t* source, int first, int count,
          std::uint8_t* target) {
    switch (type) {  // outside of all loops
        case Q4_0: return pack_as<Q4_0>(rows, columns, source, first, count, target);
        case Q4_1: return pack_as<Q4_1>(rows, columns, source, first, count, target);
        case Q5_0: return pack_as<Q5_0>(rows, columns, source, first, count, target);
        case Q5_1: return pack_as<Q5_1>(rows, columns, source, first, count, target);
        case Q8_0: return pack_as<Q8_0>(rows, columns, source, first, count, target);
        case Q4_K: return pack_as<Q4_K>(rows, columns, source, first, count, target);
        case Q5_K: return pack_as<Q5_K>(rows, columns, source, first, count, target);
        case Q6_K: return pack_as<Q6_K>(rows, columns, source, first, count, target);
        case TQ1_0: return pack_as<TQ1_0>(rows, columns, source, first, count, target);
        case TQ2_0: return pack_as<TQ2_0>(rows, columns, source, first, count, target);
        case MXFP4: return pack_as<MXFP4>(rows, columns, source, first, count, target);
        default: return;
    }
}

}  // namespace apr
