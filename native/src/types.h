// The types that weights are stored in, and how a packed weight lies in memory.
//
// F32, F16 and BF16 stay as in the file, row by row. The block types are packed: 16 rows side by
// side ("row block"), because then one vector holds the same column of 16 rows, sums stay in their
// lanes and no sum across a vector is ever needed. A unit is 16 rows by 32 columns: 8 groups of 4
// columns; in a group, byte 4 * r + j is row r, column j. A row block is
//
//     quants of all units | scales of all units | scales of all superblocks | zeros up to 64 bytes
//
// Sizes per 16 x 32 unit below; they are those of the file, but for the 6-bit scales of Q4_K and
// Q5_K (unpacked to bytes: +2.8 %, +2.3 %) and TQ1_0, which is kept as TQ2_0 (+22 %).
#ifndef APR_TYPES_H
#define APR_TYPES_H

#include <cstddef>
#include <cstdint>

namespace apr {

// GGML's numbers (ggml.h, enum ggml_type), as GGUF files state them.
enum Type : int {
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13,
    Q6_K = 14, BF16 = 30, TQ1_0 = 34, TQ2_0 = 35, MXFP4 = 39,
};

struct Layout {
    int source_columns;  // columns of a block in the file
    int source_bytes;    // its bytes
    int quants;          // packed bytes of a unit
    int scales;          // of a unit
    int super;           // of a superblock, 16 rows by 256 columns
};

inline const Layout* layout(int type) {
    static const Layout q4_0{32, 18, 256, 32, 0}, q4_1{32, 20, 256, 64, 0},
        q5_0{32, 22, 320, 32, 0}, q5_1{32, 24, 320, 64, 0}, q8_0{32, 34, 512, 32, 0},
        q4_k{256, 144, 256, 32, 64}, q5_k{256, 176, 320, 32, 64}, q6_k{256, 210, 384, 32, 32},
        tq1_0{256, 54, 128, 0, 32}, tq2_0{256, 66, 128, 0, 32}, mxfp4{32, 17, 256, 16, 0};
    switch (type) {
        case Q4_0: return &q4_0;
        case Q4_1: return &q4_1;
        case Q5_0: return &q5_0;
        case Q5_1: return &q5_1;
        case Q8_0: return &q8_0;
        case Q4_K: return &q4_k;
        case Q5_K: return &q5_k;
        case Q6_K: return &q6_k;
        case TQ1_0: return &tq1_0;
        case TQ2_0: return &tq2_0;
        case MXFP4: return &mxfp4;
        default: return nullptr;
    }
}

inline int float_bytes(int type) { return type == F32 ? 4 : type == F16 || type == BF16 ? 2 : 0; }

// Bytes of 16 packed rows of `columns` columns.
inline std::size_t row_block_bytes(int type, std::size_t columns) {
    const Layout& l = *layout(type);
    const std::size_t n = columns / 32 * (l.quants + l.scales) + columns / 256 * l.super;
    return (n + 63) / 64 * 64;
}

struct Weight {
    int type;
    int rows, columns;
    const std::uint8_t* data;
};

}  // namespace apr
#endif
