// Vectors of 16 lanes, in the compilers' own notation: each kernel set compiles the same text with
// other flags, and the compiler cuts the vectors to what the processor has.
#ifndef APR_SIMD_H
#define APR_SIMD_H

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && (defined(__AVX2__) || defined(__AVX512F__))
#include <immintrin.h>
#endif

namespace {

typedef float f32x16 __attribute__((vector_size(64)));
typedef std::int32_t i32x16 __attribute__((vector_size(64)));
typedef std::uint32_t u32x16 __attribute__((vector_size(64)));
typedef std::uint16_t u16x16 __attribute__((vector_size(32)));
typedef std::uint8_t u8x64 __attribute__((vector_size(64)));
typedef std::uint8_t u8x16 __attribute__((vector_size(16)));
typedef std::int8_t i8x16 __attribute__((vector_size(16)));

#define APR_INLINE static inline __attribute__((always_inline))

template <class V, class T>
APR_INLINE V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class T>
APR_INLINE void store(T* p, V v) {
    std::memcpy(p, &v, sizeof v);
}
APR_INLINE f32x16 splat(float x) { return x - f32x16{}; }
APR_INLINE i32x16 splat_i(std::int32_t x) { return x - i32x16{}; }
APR_INLINE f32x16 to_float(i32x16 v) { return __builtin_convertvector(v, f32x16); }
APR_INLINE f32x16 as_float(u32x16 v) { return (f32x16)v; }
APR_INLINE u32x16 as_bits(f32x16 v) { return (u32x16)v; }

// A mask is -1 or 0 in each lane.
APR_INLINE f32x16 choose(i32x16 mask, f32x16 yes, f32x16 no) {
    return (f32x16)(((i32x16)yes & mask) | ((i32x16)no & ~mask));
}
APR_INLINE f32x16 max16(f32x16 a, f32x16 b) { return choose(a > b, a, b); }
APR_INLINE f32x16 min16(f32x16 a, f32x16 b) { return choose(a < b, a, b); }

APR_INLINE float sum16(f32x16 v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float s = 0;
    for (int i = 0; i < 16; ++i) s += v[i];
    return s;
#endif
}
APR_INLINE int sum16(i32x16 v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int s = 0;
    for (int i = 0; i < 16; ++i) s += v[i];
    return s;
#endif
}
// The largest magnitude: without their sign, floats order as their bits do, and no number is above all.
APR_INLINE i32x16 size_bits(f32x16 v) { return (i32x16)v & 0x7fffffff; }
APR_INLINE i32x16 larger_bits(i32x16 a, i32x16 b) {
    return (i32x16)choose(a > b, (f32x16)a, (f32x16)b);
}
APR_INLINE float largest_size16(i32x16 bits) {
#if defined(__AVX512F__)
    const std::int32_t m = _mm512_reduce_max_epi32((__m512i)bits);
#else
    std::int32_t m = bits[0];
    for (int i = 1; i < 16; ++i) m = bits[i] > m ? bits[i] : m;
#endif
    float x;
    std::memcpy(&x, &m, 4);
    return x;
}
APR_INLINE float largest16(f32x16 v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float m = v[0];
    for (int i = 1; i < 16; ++i) m = v[i] > m ? v[i] : m;
    return m;
#endif
}

APR_INLINE float half_to_float(std::uint16_t h) {
    // Shift the 15 bits into place and rescale: 2^112 turns half's exponent into float's.
    std::uint32_t bits = (std::uint32_t)(h & 0x7fff) << 13;
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    if ((h & 0x7c00) == 0x7c00) {
        bits |= 0x7f800000u;
        std::memcpy(&magnitude, &bits, 4);
    } else {
        magnitude *= 0x1p112f;
    }
    return (h & 0x8000) ? -magnitude : magnitude;
}
APR_INLINE f32x16 load_half(const void* p) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#else
    const std::uint8_t* b = (const std::uint8_t*)p;
    f32x16 out;
#if defined(__F16C__)
    const __m256 lo = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)b));
    const __m256 hi = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(b + 16)));
    std::memcpy(&out, &lo, 32);
    std::memcpy((char*)&out + 32, &hi, 32);
#elif defined(__aarch64__)
    for (int i = 0; i < 16; ++i) {
        __fp16 h;
        std::memcpy(&h, b + 2 * i, 2);
        out[i] = (float)h;
    }
#else
    for (int i = 0; i < 16; ++i) {
        std::uint16_t h;
        std::memcpy(&h, b + 2 * i, 2);
        out[i] = half_to_float(h);
    }
#endif
    return out;
#endif
}
// Round to nearest, ties to even; written by the 16-bit cache.
APR_INLINE std::uint16_t float_to_half(float x) {
#if defined(__F16C__)
    return (std::uint16_t)_cvtss_sh(x, 0);
#elif defined(__aarch64__)
    __fp16 h = (__fp16)x;
    std::uint16_t bits;
    std::memcpy(&bits, &h, 2);
    return bits;
#else
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits >= 0x7f800000u) return (std::uint16_t)(sign | (bits > 0x7f800000u ? 0x7e00u : 0x7c00u));
    if (bits >= 0x477ff000u) return (std::uint16_t)(sign | 0x7c00u);
    if (bits < 0x38800000u) {  // below half's normal range: let the adder of floats round
        float magnitude;
        std::memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        std::memcpy(&bits, &magnitude, 4);
        return (std::uint16_t)(sign | (bits - 0x3f000000u));
    }
    bits += 0xfffu + ((bits >> 13) & 1u);
    return (std::uint16_t)(sign | ((bits - 0x38000000u) >> 13));
#endif
}
APR_INLINE f32x16 load_bf16(const void* p) {
    const u16x16 raw = load<u16x16>((const char*)p);
    return as_float(__builtin_convertvector(raw, u32x16) << 16);
}

// e^x within 2 units in the last place for |x| < 87; 0 below, the largest value above (Cephes' way:
// 2^n times a polynomial on half an octave to either side).
APR_INLINE f32x16 exp16(f32x16 x) {
    x = min16(splat(88.3f), max16(splat(-87.3f), x));  // in this order NaN stays NaN
    const f32x16 t = x * 1.44269504088896341f;
    const i32x16 n = __builtin_convertvector(t + choose(t < 0.0f, splat(-0.5f), splat(0.5f)), i32x16);
    const f32x16 whole = to_float(n);
    f32x16 r = x - whole * 0.693359375f;
    r = r - whole * -2.12194440e-4f;
    f32x16 p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (f32x16)((n + 127) << 23);
}
APR_INLINE f32x16 sigmoid16(f32x16 x) { return 1.0f / (1.0f + exp16(-x)); }
APR_INLINE f32x16 tanh16(f32x16 x) {
    // Exact to rounding for small x too: tanh(x) = 1 - 2 / (e^2x + 1) loses digits near 0.
    const f32x16 y = x * x;
    const f32x16 near =
        x * (1.0f + y * (-0.333333333f + y * (0.133333333f + y * (-0.0539682540f + y * 0.0218694885f))));
    const f32x16 far = 1.0f - 2.0f / (exp16(2.0f * x) + 1.0f);
    return choose(y < 0.04f, near, far);
}

}  // namespace
#endif
