// From the blocks of a file to 16 rows side by side (types.h says how). Byte layouts of the sources:
// ggml-common.h; each is held to the `gguf` package's own decoding by tests/native/test_weights.py.
#include "pack.h"

#include <cstring>

namespace apr {
namespace {

// The 32 values of unit `unit` of one row (blocks of 256 have 8), as unsigned bytes.
void values_of(int type, const std::uint8_t* block, int unit, std::uint8_t* v) {
    const auto nibbles = [&](const std::uint8_t* q) {
        for (int i = 0; i < 16; ++i) v[i] = q[i] & 15, v[i + 16] = q[i] >> 4;
    };
    const auto fifth = [&](const std::uint8_t* h) {
        std::uint32_t bits;
        std::memcpy(&bits, h, 4);
        for (int i = 0; i < 32; ++i) v[i] |= ((bits >> i) & 1) << 4;
    };
    const auto half_of = [&](const std::uint8_t* q) {  // K types: units share bytes in pairs
        q += 32 * (unit / 2);
        const int shift = 4 * (unit % 2);
        for (int i = 0; i < 32; ++i) v[i] = (q[i] >> shift) & 15;
    };
    switch (type) {
        case Q4_0: return nibbles(block + 2);
        case Q4_1: return nibbles(block + 4);
        case MXFP4: return nibbles(block + 1);
        case Q5_0: nibbles(block + 6); return fifth(block + 2);
        case Q5_1: nibbles(block + 8); return fifth(block + 4);
        case Q8_0:
            for (int i = 0; i < 32; ++i) v[i] = block[2 + i] ^ 0x80;
            return;
        case Q4_K: return half_of(block + 16);
        case Q5_K:
            half_of(block + 48);
            for (int i = 0; i < 32; ++i) v[i] |= ((block[16 + i] >> unit) & 1) << 4;
            return;
        case Q6_K: {
            const std::uint8_t* low = block + 64 * (unit / 4) + 32 * (unit % 2);
            const std::uint8_t* high = block + 128 + 32 * (unit / 4);
            const int shift = unit % 4 < 2 ? 0 : 4, bits = 2 * (unit % 4);
            for (int i = 0; i < 32; ++i)
                v[i] = ((low[i] >> shift) & 15) | (((high[i] >> bits) & 3) << 4);
            return;
        }
        case TQ2_0: {
            const std::uint8_t* q = block + 32 * (unit / 4);
            for (int i = 0; i < 32; ++i) v[i] = (q[i] >> (2 * (unit % 4))) & 3;
            return;
        }
        default: {  // TQ1_0: five digits of base 3 in a byte, the first in its highest part
            static const std::uint8_t power[5] = {1, 3, 9, 27, 81};
            for (int i = 0; i < 32; ++i) {
                const int k = 32 * unit + i;
                int byte, digit;
                if (k < 160) byte = k % 32, digit = k / 32;
                else if (k < 240) byte = 32 + (k - 160) % 16, digit = (k - 160) / 16;
                else byte = 48 + (k - 240) % 4, digit = (k - 240) / 4;
                const std::uint8_t q = (std::uint8_t)(block[byte] * power[digit]);
                v[i] = (std::uint8_t)(((unsigned)q * 3) >> 8);
            }
        }
    }
}

void put_quants(int type, const std::uint8_t v[16][32], std::uint8_t* out) {
    const Layout& l = *layout(type);
    if (type == Q8_0) {
        for (int g = 0; g < 8; ++g)
            for (int r = 0; r < 16; ++r) std::memcpy(out + 64 * g + 4 * r, v[r] + 4 * g, 4);
        return;
    }
    if (type == TQ1_0 || type == TQ2_0) {
        for (int h = 0; h < 2; ++h)
            for (int r = 0; r < 16; ++r)
                for (int j = 0; j < 4; ++j) {
                    const std::uint8_t* p = v[r] + 16 * h + j;
                    out[64 * h + 4 * r + j] = p[0] | p[4] << 2 | p[8] << 4 | p[12] << 6;
                }
        return;
    }
    for (int g = 0; g < 4; ++g)
        for (int r = 0; r < 16; ++r)
            for (int j = 0; j < 4; ++j)
                out[64 * g + 4 * r + j] = (v[r][4 * g + j] & 15) | (v[r][16 + 4 * g + j] & 15) << 4;
    if (l.quants == 320) {
        for (int r = 0; r < 16; ++r)
            for (int j = 0; j < 4; ++j) {
                int bits = 0;
                for (int g = 0; g < 8; ++g) bits |= (v[r][4 * g + j] >> 4) << g;
                out[256 + 4 * r + j] = (std::uint8_t)bits;
            }
    } else if (l.quants == 384) {
        for (int h = 0; h < 2; ++h)
            for (int r = 0; r < 16; ++r)
                for (int j = 0; j < 4; ++j) {
                    int bits = 0;
                    for (int g = 0; g < 4; ++g) bits |= (v[r][16 * h + 4 * g + j] >> 4) << (2 * g);
                    out[256 + 64 * h + 4 * r + j] = (std::uint8_t)bits;
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

}  // namespace

void pack(int type, int rows, int columns, const std::uint8_t* source, int first, int count,
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
            std::uint8_t v[16][32] = {};
            std::uint8_t* s = scales + (std::size_t)u * l.scales;
            std::uint8_t* t = super + (std::size_t)(u / 8) * l.super;
            for (int r = 0; r < 16 && 16 * b + r < rows; ++r) {
                const std::uint8_t* block =
                    source + (16 * b + r) * row_bytes + (std::size_t)(u / per_block) * l.source_bytes;
                const int unit = u % per_block;
                values_of(type, block, unit, v[r]);
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
            put_quants(type, v, out + (std::size_t)u * l.quants);
        }
    }
}

}  // namespace apr
