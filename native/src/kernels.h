// What a kernel set offers. Every set has the same functions; `Kernels` is its table.
#ifndef APR_KERNELS_H
#define APR_KERNELS_H

#include <cstddef>
#include <cstdint>

#include "types.h"

namespace apr {

// Activations that a matrix is multiplied with, `columns` tokens of `width` elements, in the forms
// that the stored type wants. Tokens follow each other at the strides given.
struct Activation {
    int tokens, width, padded;  // padded: width rounded up to 32
    float* f;                   // [tokens, padded] float32
    std::int8_t* q;             // [tokens, padded] 8 bits
    float* d;                   // [tokens, padded / 32] their scale
    std::int32_t* s;            // [tokens, padded / 16] their sums
    std::uint16_t* hi;          // [tokens rounded up to 16, padded] bfloat16
    std::uint16_t* lo;          // what hi lacks, again bfloat16
    bool apart;                 // each token as if it were alone, however many there are
};
enum Form { kFloat = 1, kInt8 = 2, kBf16 = 4, kBf16Low = 8 };

struct Attention {
    int query_heads, kv_heads, key_width, value_width;
    int window;       // tokens seen, 0 for all
    float scale;
    float softcap;    // 0 for none
    const float* sinks;
};

// One layer's cache: for each key/value head blocks of 16 positions, keys [width, 16], values
// [16, width]. Block b lies in slot b % blocks, so a layer with a window holds little more than it.
// Of a latent (MLA; DeepSeek-V2, arXiv 2405.04434) there is one copy, [16, key_width]: its first
// value_width elements are the values too.
struct LayerCache {
    int kv_heads, key_width, value_width, blocks;
    bool latent;
    int type;            // 0 float32, 1 float16, 2 int8 with a float32 scale per position
    std::uint8_t *keys, *values;
    float *key_scales, *value_scales;  // [kv_heads, blocks, 16], int8 alone
};

struct Kernels {
    const char* name;
    // The forms of a row that a weight of this type wants, for one token and for many.
    int (*forms)(int type, int tokens);
    void (*norm)(const float* x, float* y, int n, const float* weight, const float* bias, int kind,
                 float eps);
    void (*prepare)(const float* x, Activation& a, int token, int forms);
    // out[t * stride + row] for 16 * first .. of `count` row blocks; add: on top of what is there.
    void (*matmul)(const Weight& w, const Activation& a, int first, int count, float* out,
                   std::ptrdiff_t stride, const float* bias, bool add, void* scratch);
    void (*act)(const float* gate, const float* up, float* out, int n, int kind, float limit);
    void (*rope)(float* x, const float* cos, const float* sin, int half, bool interleaved);
    void (*cache_store)(const LayerCache& c, int head, std::int64_t position, const float* key,
                        const float* value);
    // Up to 8 rows [first, last) of (token, head in group), token-major, of one key/value head. q, out:
    // [tokens, query_heads, width].
    void (*attend)(const Attention& a, const LayerCache& c, int kv_head, std::int64_t past,
                   int first, int last, const float* q, float* out, void* scratch);
    void (*unpack_row)(const Weight& w, int row, float* out);
    void (*softcap)(float* x, int n, float cap);
    // out[i] = sum over n of x[n] * row (first + n)[i], and out[n] = row (first + n) . x, for weights
    // that are kept as rows.
    void (*mix_rows)(const Weight& w, int first, int count, const float* x, float* out);
    void (*dot_each)(const Weight& w, int first, int count, const float* x, float* out);
};

// Bytes of scratch that a thread needs for matrices up to this width.
inline std::size_t scratch_bytes(std::size_t padded, std::size_t value_width) {
    const std::size_t panels = padded * 32 * 4, attention = 8 * (value_width + 16 + 256) * 4;
    return (panels > attention ? panels : attention) + 8192;
}

const Kernels* kernels(const char* name);  // nullptr: no such set in this library

namespace portable { extern const Kernels table; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
namespace amx { extern const Kernels table; }
#endif

}  // namespace apr
#endif
