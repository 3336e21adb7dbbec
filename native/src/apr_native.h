// The C interface of libapr_native, as apr/native calls it through ctypes.
//
// Plain C types only, so that one build serves every Python. Whoever changes a signature or the
// meaning of an argument raises APR_NATIVE_ABI here and ABI in apr/native/library.py.
#ifndef APR_NATIVE_H
#define APR_NATIVE_H

#include <stdint.h>

#define APR_NATIVE_ABI 4
#define APR_EXPORT extern "C" __attribute__((visibility("default")))

// The number above, as it was when the library was built.
APR_EXPORT int apr_native_abi(void);

// JSON, owned by the library: version, abi, compiler, flags, architecture, sets, sources (a hash).
APR_EXPORT const char* apr_native_build(void);

// JSON, owned by the library: {"architecture": ..., "features": {name: true|false, ...}}.
APR_EXPORT const char* apr_native_cpu(void);

// JSON, owned by the library: [{"name", "built", "usable", "why_not"}, ...], the fastest set first.
APR_EXPORT const char* apr_native_sets(void);

// --- a model: threads, weights, vectors, a program ------------------------------------------------

// NULL: there is no such kernel set in this library.
APR_EXPORT void* apr_model_new(int threads, const char* set);
APR_EXPORT void apr_model_free(void* model);

// Bytes of a weight once packed; 0 for types that stay as in the file, -1 for types without kernels.
APR_EXPORT int64_t apr_packed_bytes(int type, int64_t rows, int64_t columns);

// Pack on the model's threads. `target` is aligned to 64 bytes.
APR_EXPORT void apr_pack(void* model, int type, int rows, int columns, const void* source,
                         void* target);

// Weights (packed, or rows as in the file) and vectors of float32 get numbers from 0 on. The memory
// stays the caller's and must outlive the model.
APR_EXPORT int apr_add_weight(void* model, int type, int rows, int columns, const void* data);
APR_EXPORT int apr_add_vector(void* model, const float* data);

// One operation on all tokens of a pass. What the fields mean is said in runtime.cpp, kind by kind.
struct AprOp {
    int32_t kind, sync;
    int32_t a[24];
    float f[4];
};

// `widths`: of the buffers, float32 per token. `most`: tokens of the longest pass.
APR_EXPORT void apr_set_program(void* model, const struct AprOp* ops, int count,
                                const int32_t* widths, int buffers, int most);

// --- a sequence's cache ----------------------------------------------------------------------------

struct AprLayer {
    int32_t kv_heads, key_width, value_width, blocks;  // blocks of 16 positions
    int32_t latent;  // 1: values are the first elements of the keys (MLA)
};

// Type: 0 float32, 1 float16, 2 int8. Memory is reserved at once and taken as it is used. NULL: none.
APR_EXPORT void* apr_cache_new(const struct AprLayer* layers, int count, int type);
APR_EXPORT void apr_cache_free(void* cache);
APR_EXPORT int64_t apr_cache_bytes(const struct AprLayer* layers, int count, int type);

// --- a pass ----------------------------------------------------------------------------------------

// `ids` at positions past, past + 1, ...; `angles`: [4] pointers to cosines and sines of the full
// and of the sliding layers, [count, half] each (NULL without a rotary embedding). Logits of the
// `last` tokens go to `logits` [last, vocab].
APR_EXPORT void apr_run(void* model, void* cache, const int32_t* ids, int count, int64_t past,
                        const float* const* angles, float* logits, int last);

// A pass of `count` rows, each a further token: row i at positions[i] of the sequence of caches[i],
// with row i of `angles`. Rows of the same cache stand at positions one after the other. Logits of
// all go to `logits` [count, vocab]; each row's are, to the bit, those that apr_run gives for its
// token alone.
APR_EXPORT void apr_run_rows(void* model, void* const* caches, const int64_t* positions,
                             const int32_t* ids, int count, const float* const* angles,
                             float* logits);

// --- for tests and probes --------------------------------------------------------------------------

APR_EXPORT void apr_unpack_row(void* model, int weight, int row, float* out);
APR_EXPORT void apr_matmul(void* model, int weight, const float* x, int tokens, float* out);
// Read `bytes` on all threads, once; the seconds that it took.
APR_EXPORT double apr_read_memory(void* model, const void* data, int64_t bytes);

#endif
