// The kernels, once for all sets: included by kernels_<set>.cpp inside namespace apr::<set>, after
// simd.h. What only some processors have stands behind the compiler's own macros.

// --- activations ---------------------------------------------------------------------------------

APR_INLINE u32x16 rounded_bf16(f32x16 x) {  // to nearest even, in the upper half of each lane
    const u32x16 bits = as_bits(x);
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
}

// Rounding would carry a NaN of all ones over into zero: this one it leaves a NaN.
APR_INLINE f32x16 quiet(f32x16 x) { return choose(x == x, x, splat(__builtin_nanf(""))); }

int forms(int type, [[maybe_unused]] int tokens) {
    if (layout(type) == nullptr) {
#if defined(APR_BF16_PANELS)
        if (tokens > kFew && type == BF16) return kBf16;
        if (tokens > kFew && type == F16) return kBf16 | kBf16Low;
#endif
        return kFloat;
    }
#if defined(APR_BF16_PANELS)
    if (tokens > kFew) return kBf16;
#endif
    return kInt8;
}

void prepare(const float* x, Activation& a, int token, int forms) {
    const int n = a.width, padded = a.padded;
    if (forms & kFloat) {
        float* f = a.f + (std::size_t)token * padded;
        if (f != x) std::memcpy(f, x, n * sizeof(float));
        for (int i = n; i < padded; ++i) f[i] = 0;
    }
    if (forms & (kBf16 | kBf16Low)) {
        std::uint16_t* hi = a.hi + (std::size_t)token * padded;
        std::uint16_t* lo = a.lo + (std::size_t)token * padded;
        for (int i = 0; i < padded; i += 16) {
            f32x16 v{};
            if (i + 16 <= n) v = load<f32x16>(x + i);
            else for (int j = i; j < n; ++j) v[j - i] = x[j];
            v = quiet(v);
            const u32x16 top = rounded_bf16(v);
            store(hi + i, __builtin_convertvector(top >> 16, u16x16));
            if (forms & kBf16Low)
                store(lo + i, __builtin_convertvector(rounded_bf16(v - as_float(top)) >> 16, u16x16));
        }
    }
    if (forms & kInt8) {
        std::int8_t* q = a.q + (std::size_t)token * padded;
        float* d = a.d + (std::size_t)token * (padded / 32);
        std::int32_t* s = a.s + (std::size_t)token * (padded / 16);
        for (int i = 0; i < padded; i += 32) {
            f32x16 v0{}, v1{};
            if (i + 32 <= n) {
                v0 = load<f32x16>(x + i);
                v1 = load<f32x16>(x + i + 16);
            } else {
                for (int j = i; j < n; ++j) (j < i + 16 ? v0[j - i] : v1[j - i - 16]) = x[j];
            }
            // NaN becomes the scale, and with it every product of this block.
            const float top = largest_size16(larger_bits(size_bits(v0), size_bits(v1)));
            const float scale = top / 127.0f, inverse = top > 0 ? 127.0f / top : 0.0f;
            const f32x16 r0 = v0 * inverse, r1 = v1 * inverse;
            // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, ties to even.
            const i32x16 q0 = (i32x16)(r0 + 12582912.0f) - 0x4b400000;
            const i32x16 q1 = (i32x16)(r1 + 12582912.0f) - 0x4b400000;
            store(q + i, __builtin_convertvector(q0, i8x16));
            store(q + i + 16, __builtin_convertvector(q1, i8x16));
            d[i / 32] = scale;
            s[i / 16] = sum16(q0);
            s[i / 16 + 1] = sum16(q1);
        }
    }
}

// Kind 1: root mean square (Zhang and Sennrich 2019); kind 2: layer norm (Ba et al. 2016).
void norm(const float* x, float* y, int n, const float* weight, const float* bias, int kind,
          float eps) {
    f32x16 sums{}, squares{};
    float sum = 0, square = 0;
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const f32x16 v = load<f32x16>(x + i);
        sums += v;
        squares += v * v;
    }
    for (; i < n; ++i) sum += x[i], square += x[i] * x[i];
    sum += sum16(sums);
    square += sum16(squares);
    float mean = 0, scale;
    if (kind == 2) {
        mean = sum / (float)n;
        f32x16 spread{};
        float rest = 0;
        for (i = 0; i + 16 <= n; i += 16) {
            const f32x16 v = load<f32x16>(x + i) - mean;
            spread += v * v;
        }
        for (; i < n; ++i) rest += (x[i] - mean) * (x[i] - mean);
        scale = 1.0f / std::sqrt((sum16(spread) + rest) / (float)n + eps);
    } else {
        scale = 1.0f / std::sqrt(square / (float)n + eps);
    }
    for (i = 0; i + 16 <= n; i += 16) {
        f32x16 v = (load<f32x16>(x + i) - mean) * scale;
        if (weight) v *= load<f32x16>(weight + i);
        if (bias) v += load<f32x16>(bias + i);
        store(y + i, v);
    }
    for (; i < n; ++i) {
        float v = (x[i] - mean) * scale;
        if (weight) v *= weight[i];
        if (bias) v += bias[i];
        y[i] = v;
    }
}

APR_INLINE f32x16 activated(f32x16 x, int kind) {
    switch (kind) {
        case 0: return x * sigmoid16(x);
        case 1: {
            for (int i = 0; i < 16; ++i) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
            return x;
        }
        case 2: return 0.5f * x * (1.0f + tanh16(0.7978845608f * (x + 0.044715f * x * x * x)));
        case 3: return max16(f32x16{}, x);  // in this order NaN stays NaN
        default: {
            const f32x16 y = max16(f32x16{}, x);
            return y * y;
        }
    }
}

// Kinds: 0 silu, 1 gelu, 2 gelu by tanh, 3 relu, 4 relu squared, 5 gpt-oss' clamped gate.
APR_INLINE f32x16 gated(f32x16 gate, f32x16 up, int kind, float limit) {
    if (kind == 5) {
        gate = min16(splat(limit), gate);
        up = min16(splat(limit), max16(splat(-limit), up));
        return (up + 1.0f) * gate * sigmoid16(gate * 1.702f);
    }
    return activated(gate, kind) * up;
}

void act(const float* gate, const float* up, float* out, int n, int kind, float limit) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const f32x16 g = load<f32x16>(gate + i);
        store(out + i, up ? gated(g, load<f32x16>(up + i), kind, limit) : activated(g, kind));
    }
    if (i < n) {
        f32x16 g{}, u{};
        for (int j = i; j < n; ++j) g[j - i] = gate[j], u[j - i] = up ? up[j] : 0.0f;
        const f32x16 v = up ? gated(g, u, kind, limit) : activated(g, kind);
        for (int j = i; j < n; ++j) out[j] = v[j - i];
    }
}

void softcap(float* x, int n, float cap) {
    int i = 0;
    for (; i + 16 <= n; i += 16) store(x + i, cap * tanh16(load<f32x16>(x + i) / cap));
    for (; i < n; ++i) x[i] = cap * std::tanh(x[i] / cap);
}

void rope(float* x, const float* cos, const float* sin, int half, bool interleaved) {
    if (interleaved) {
        for (int i = 0; i < half; ++i) {
            const float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cos[i] - b * sin[i];
            x[2 * i + 1] = b * cos[i] + a * sin[i];
        }
        return;
    }
    for (int i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

// --- packed weights ------------------------------------------------------------------------------

// What the bytes of a unit mean: value = scale * (byte - kZero) - minimum.
template <int T> struct Traits;
template <> struct Traits<Q8_0> { static constexpr int kZero = 128; };
template <> struct Traits<Q4_0> { static constexpr int kZero = 8; };
template <> struct Traits<Q4_1> { static constexpr int kZero = 0; };
template <> struct Traits<Q5_0> { static constexpr int kZero = 16; };
template <> struct Traits<Q5_1> { static constexpr int kZero = 0; };
template <> struct Traits<Q4_K> { static constexpr int kZero = 0; };
template <> struct Traits<Q5_K> { static constexpr int kZero = 0; };
template <> struct Traits<Q6_K> { static constexpr int kZero = 32; };
template <> struct Traits<TQ2_0> { static constexpr int kZero = 1; };
template <> struct Traits<MXFP4> { static constexpr int kZero = 12; };

template <int T> constexpr bool kNibbles = T == Q4_0 || T == Q4_1 || T == Q4_K || T == MXFP4 ||
                                           T == Q5_0 || T == Q5_1 || T == Q5_K || T == Q6_K;
template <int T> constexpr bool kMinimum = T == Q4_1 || T == Q5_1 || T == Q4_K || T == Q5_K;
template <int T> constexpr int kQuants = T == Q8_0 ? 512 : T == TQ2_0 ? 128
    : T == Q6_K ? 384 : T == Q5_0 || T == Q5_1 || T == Q5_K ? 320 : 256;
template <int T> constexpr int kScales = T == TQ2_0 ? 0 : T == MXFP4 ? 16
    : T == Q8_0 || T == Q4_0 || T == Q5_0 ? 32
    : T == Q4_1 || T == Q5_1 ? 64 : 32;
template <int T> constexpr int kSuper = T == Q4_K || T == Q5_K ? 64 : T == Q6_K || T == TQ2_0 ? 32 : 0;

APR_INLINE u8x64 mx_values(u8x64 nibbles) {  // twice the values of E2M1, plus 12
#if defined(__AVX512VBMI__)
    const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    return (u8x64)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), (__m512i)nibbles);
#else
    static const std::uint8_t table[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    for (int i = 0; i < 64; ++i) nibbles[i] = table[nibbles[i]];
    return nibbles;
#endif
}

// The bytes of a unit, group by group.
template <int T>
APR_INLINE void bytes_of(const std::uint8_t* q, u8x64 w[8]) {
    if constexpr (T == Q8_0) {
        for (int g = 0; g < 8; ++g) w[g] = load<u8x64>(q + 64 * g);
    } else if constexpr (T == TQ2_0) {
        for (int h = 0; h < 2; ++h) {
            const u8x64 bits = load<u8x64>(q + 64 * h);
            for (int g = 0; g < 4; ++g)
                w[4 * h + g] = (u8x64)((u32x16)bits >> (2 * g)) & (std::uint8_t)3;
        }
    } else {
        for (int g = 0; g < 4; ++g) {
            const u8x64 pair = load<u8x64>(q + 64 * g);
            w[g] = pair & (std::uint8_t)15;
            w[g + 4] = (u8x64)((u32x16)pair >> 4) & (std::uint8_t)15;
        }
        if constexpr (T == MXFP4) {
            for (int g = 0; g < 8; ++g) w[g] = mx_values(w[g]);
        } else if constexpr (T == Q6_K) {
            for (int h = 0; h < 2; ++h) {
                const u8x64 bits = load<u8x64>(q + 256 + 64 * h);
                w[4 * h + 0] |= (u8x64)((u32x16)bits << 4) & (std::uint8_t)0x30;
                w[4 * h + 1] |= (u8x64)((u32x16)bits << 2) & (std::uint8_t)0x30;
                w[4 * h + 2] |= bits & (std::uint8_t)0x30;
                w[4 * h + 3] |= (u8x64)((u32x16)bits >> 2) & (std::uint8_t)0x30;
            }
        } else if constexpr (T == Q5_0 || T == Q5_1 || T == Q5_K) {
            const u8x64 bits = load<u8x64>(q + 256);
            for (int g = 0; g < 4; ++g)
                w[g] |= (u8x64)((u32x16)bits << (4 - g)) & (std::uint8_t)16;
            w[4] |= bits & (std::uint8_t)16;
            for (int g = 5; g < 8; ++g)
                w[g] |= (u8x64)((u32x16)bits >> (g - 4)) & (std::uint8_t)16;
        }
    }
}

APR_INLINE f32x16 from_bytes(const std::uint8_t* p) {
    return to_float(__builtin_convertvector(load<u8x16>(p), i32x16));
}
APR_INLINE f32x16 from_signed(const std::uint8_t* p) {
    return to_float(__builtin_convertvector(load<i8x16>(p), i32x16));
}

// Scales of the columns 0..15 and 16..31 of a unit, and what is taken away, for 16 rows.
struct Scales { f32x16 first, second, minimum; };

template <int T>
APR_INLINE Scales scales_of(const std::uint8_t* scales, const std::uint8_t* super) {
    Scales out{};
    if constexpr (T == Q8_0 || T == Q4_0 || T == Q5_0) {
        out.first = load_half(scales);
    } else if constexpr (T == Q4_1 || T == Q5_1) {
        out.first = load_half(scales);
        out.minimum = -load_half(scales + 32);
    } else if constexpr (T == MXFP4) {
        // 2^(e - 127) / 2 as bits; for e = 0 and 1 those of a subnormal number.
        const i32x16 e = __builtin_convertvector(load<u8x16>(scales), i32x16);
        out.first = choose(e < 2, (f32x16)(splat_i(0x00200000) << e), (f32x16)((e - 1) << 23));
    } else if constexpr (T == Q4_K || T == Q5_K) {
        out.first = load_half(super) * from_bytes(scales);
        out.minimum = load_half(super + 32) * from_bytes(scales + 16);
    } else if constexpr (T == Q6_K) {
        const f32x16 d = load_half(super);
        out.first = d * from_signed(scales);
        out.second = d * from_signed(scales + 16);
    } else {
        out.first = load_half(super);
    }
    if constexpr (T != Q6_K) out.second = out.first;
    return out;
}

// acc[r] += sum over 4 columns of w[4 r + j] * a[j], exactly.
template <int T>
APR_INLINE i32x16 dot4(i32x16 acc, u8x64 w, const std::int8_t* a) {
#if defined(__AVX512VNNI__)
    std::int32_t four;
    std::memcpy(&four, a, 4);
    return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(four));
#elif defined(__AVX2__)
    std::int32_t four;
    std::memcpy(&four, a, 4);
    __m256i halves[2], sums[2];
    std::memcpy(halves, &w, 64);
    std::memcpy(sums, &acc, 64);
    const __m256i x = _mm256_set1_epi32(four);
    for (int h = 0; h < 2; ++h) {
        __m256i pairs;
        if constexpr (T == Q8_0) {
            // Bytes up to 255 would saturate a sum of two products: even and odd columns apart.
            const __m256i even = _mm256_and_si256(halves[h], _mm256_set1_epi16(0xff));
            const __m256i odd = _mm256_srli_epi16(halves[h], 8);
            const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8);
            const __m256i x_odd = _mm256_srai_epi16(x, 8);
            sums[h] = _mm256_add_epi32(sums[h], _mm256_add_epi32(_mm256_madd_epi16(even, x_even),
                                                                 _mm256_madd_epi16(odd, x_odd)));
        } else {
            pairs = _mm256_maddubs_epi16(halves[h], x);
            sums[h] = _mm256_add_epi32(sums[h], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
    }
    std::memcpy(&acc, sums, 64);
    return acc;
#else
    for (int r = 0; r < 16; ++r) {
        acc[r] += w[4 * r] * a[0] + w[4 * r + 1] * a[1] + w[4 * r + 2] * a[2] + w[4 * r + 3] * a[3];
    }
    return acc;
#endif
}

// Bytes ahead of the one in use that are asked for; the processor's own reading ahead ends at pages.
constexpr int kFetch = 2048;
constexpr int kStreams = 4;

// B blocks of 16 packed rows times N tokens in 8 bits; out[b * N + n] holds a row in each lane.
// Several blocks at once are several streams from memory: more reads are under way.
template <int T, int N, int B>
APR_INLINE void dot_blocks(const std::uint8_t* block, std::size_t bytes, const Activation& a,
                           int token, f32x16 out[B * N]) {
    const int units = a.width / 32;
    const std::int8_t* q[N];
    const float* d[N];
    const std::int32_t* s[N];
    for (int n = 0; n < N; ++n) {
        q[n] = a.q + (std::size_t)(token + n) * a.padded;
        d[n] = a.d + (std::size_t)(token + n) * (a.padded / 32);
        s[n] = a.s + (std::size_t)(token + n) * (a.padded / 16);
    }
    for (int i = 0; i < B * N; ++i) out[i] = f32x16{};
    for (int u = 0; u < units; ++u) {
        for (int b = 0; b < B; ++b) {
            const std::uint8_t* at = block + b * bytes;
            const std::uint8_t* quants = at + (std::size_t)u * kQuants<T>;
            const std::uint8_t* scales = at + (std::size_t)units * kQuants<T>;
            const std::uint8_t* super = scales + (std::size_t)units * kScales<T>;
            for (int i = 0; i < kQuants<T>; i += 64) __builtin_prefetch(quants + kFetch + i);
            u8x64 w[8];
            bytes_of<T>(quants, w);
            const Scales c = scales_of<T>(scales + (std::size_t)u * kScales<T>,
                                          super + (std::size_t)(u / 8) * kSuper<T>);
            for (int n = 0; n < N; ++n) {
                const std::int8_t* x = q[n] + 32 * u;
                const int s0 = s[n][2 * u], s1 = s[n][2 * u + 1];
                i32x16 first = splat_i(-Traits<T>::kZero * s0);
                i32x16 second = splat_i(-Traits<T>::kZero * s1);
                for (int g = 0; g < 4; ++g) {
                    first = dot4<T>(first, w[g], x + 4 * g);
                    second = dot4<T>(second, w[g + 4], x + 16 + 4 * g);
                }
                f32x16& sum = out[b * N + n];
                if constexpr (T == Q6_K)
                    sum += (to_float(first) * c.first + to_float(second) * c.second) * d[n][u];
                else
                    sum += to_float(first + second) * (c.first * d[n][u]);
                if constexpr (kMinimum<T>) sum -= c.minimum * (d[n][u] * (float)(s0 + s1));
            }
        }
    }
}

// --- weights kept as in the file -----------------------------------------------------------------

template <int T>
APR_INLINE f32x16 load_weights(const std::uint8_t* p) {
    if constexpr (T == F32) return load<f32x16>((const float*)p);
    else if constexpr (T == F16) return load_half(p);
    else return load_bf16(p);
}
template <int T>
APR_INLINE float load_weight(const std::uint8_t* p) {
    if constexpr (T == F32) {
        float x;
        std::memcpy(&x, p, 4);
        return x;
    } else {
        std::uint16_t h;
        std::memcpy(&h, p, 2);
        if constexpr (T == F16) return half_to_float(h);
        const std::uint32_t bits = (std::uint32_t)h << 16;
        float x;
        std::memcpy(&x, &bits, 4);
        return x;
    }
}

// R rows times N tokens, float32 throughout; out[n * R + r].
template <int T, int R, int N>
APR_INLINE void dot_rows(const std::uint8_t* rows, std::size_t row_bytes, const Activation& a,
                         int token, float* out) {
    constexpr int E = T == F32 ? 4 : 2;
    f32x16 acc[N * R];
    for (int i = 0; i < N * R; ++i) acc[i] = f32x16{};
    const float* x = a.f + (std::size_t)token * a.padded;
    const int n = a.width;
    int k = 0;
    for (; k + 16 <= n; k += 16) {
        f32x16 v[N];
        for (int t = 0; t < N; ++t) v[t] = load<f32x16>(x + (std::size_t)t * a.padded + k);
        for (int r = 0; r < R; ++r) {
            __builtin_prefetch(rows + r * row_bytes + (std::size_t)k * E + 1024);
            const f32x16 w = load_weights<T>(rows + r * row_bytes + (std::size_t)k * E);
            for (int t = 0; t < N; ++t) acc[t * R + r] += w * v[t];
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int t = 0; t < N; ++t) {
            float sum = sum16(acc[t * R + r]);
            for (int j = k; j < n; ++j)
                sum += load_weight<T>(rows + r * row_bytes + (std::size_t)j * E) *
                       x[(std::size_t)t * a.padded + j];
            out[t * R + r] = sum;
        }
    }
}

// --- results -------------------------------------------------------------------------------------

struct Target {
    float* out;
    std::ptrdiff_t stride;
    const float* bias;
    bool add;
    int rows;  // of the weight: the last row block may be partly filler
};

APR_INLINE void put(const Target& t, int token, int row, f32x16 v) {
    float* p = t.out + token * t.stride + row;
    if (row + 16 <= t.rows) {
        if (t.bias) v += load<f32x16>(t.bias + row);
        if (t.add) v += load<f32x16>(p);
        store(p, v);
        return;
    }
    for (int i = 0; row + i < t.rows; ++i)
        p[i] = v[i] + (t.bias ? t.bias[row + i] : 0.0f) + (t.add ? p[i] : 0.0f);
}

template <int T, int N>
APR_INLINE void few_packed(const Weight& w, const Activation& a, int token, int first, int count,
                           const Target& target, std::size_t bytes) {
    constexpr int B = N == 1 ? kStreams : 1;
    int b = first;
    for (; b + B <= first + count; b += B) {
        f32x16 out[B * N];
        dot_blocks<T, N, B>(w.data + b * bytes, bytes, a, token, out);
        for (int i = 0; i < B; ++i)
            for (int n = 0; n < N; ++n) put(target, token + n, 16 * (b + i), out[i * N + n]);
    }
    for (; b < first + count; ++b) {
        f32x16 out[N];
        dot_blocks<T, N, 1>(w.data + b * bytes, bytes, a, token, out);
        for (int n = 0; n < N; ++n) put(target, token + n, 16 * b, out[n]);
    }
}

template <int T, int N>
APR_INLINE void few_rows(const Weight& w, const Activation& a, int token, int first, int count,
                         const Target& target) {
    const std::size_t bytes = (std::size_t)w.columns * (T == F32 ? 4 : 2);
    const int end = 16 * (first + count) < w.rows ? 16 * (first + count) : w.rows;
    int row = 16 * first;
    const auto one = [&](int r, int t, float v) {
        float* p = target.out + (token + t) * target.stride + r;
        *p = v + (target.bias ? target.bias[r] : 0.0f) + (target.add ? *p : 0.0f);
    };
    for (; row + 4 <= end; row += 4) {
        float out[4 * N];
        dot_rows<T, 4, N>(w.data + row * bytes, bytes, a, token, out);
        for (int t = 0; t < N; ++t)
            for (int r = 0; r < 4; ++r) one(row + r, t, out[t * 4 + r]);
    }
    for (; row < end; ++row) {
        float out[N];
        dot_rows<T, 1, N>(w.data + row * bytes, bytes, a, token, out);
        for (int t = 0; t < N; ++t) one(row, t, out[t]);
    }
}

template <int T>
void few(const Weight& w, const Activation& a, int first, int count, const Target& target) {
    int token = 0;
    if constexpr (T == F32 || T == F16 || T == BF16) {
        for (; token + 4 <= a.tokens; token += 4) few_rows<T, 4>(w, a, token, first, count, target);
        for (; token + 2 <= a.tokens; token += 2) few_rows<T, 2>(w, a, token, first, count, target);
        for (; token < a.tokens; ++token) few_rows<T, 1>(w, a, token, first, count, target);
    } else {
        const std::size_t bytes = row_block_bytes(T, w.columns);
        for (; token + 4 <= a.tokens; token += 4)
            few_packed<T, 4>(w, a, token, first, count, target, bytes);
        for (; token + 2 <= a.tokens; token += 2)
            few_packed<T, 2>(w, a, token, first, count, target, bytes);
        for (; token < a.tokens; ++token)
            few_packed<T, 1>(w, a, token, first, count, target, bytes);
    }
}

#include "kernels_panel.h"

void matmul(const Weight& w, const Activation& a, int first, int count, float* out,
            std::ptrdiff_t stride, const float* bias, bool add, void* scratch) {
    const Target target{out, stride, bias, add, w.rows};
    if (many(w, a, first, count, target, scratch)) return;
    switch (w.type) {
        case F32: return few<F32>(w, a, first, count, target);
        case F16: return few<F16>(w, a, first, count, target);
        case BF16: return few<BF16>(w, a, first, count, target);
        case Q4_0: return few<Q4_0>(w, a, first, count, target);
        case Q4_1: return few<Q4_1>(w, a, first, count, target);
        case Q5_0: return few<Q5_0>(w, a, first, count, target);
        case Q5_1: return few<Q5_1>(w, a, first, count, target);
        case Q8_0: return few<Q8_0>(w, a, first, count, target);
        case Q4_K: return few<Q4_K>(w, a, first, count, target);
        case Q5_K: return few<Q5_K>(w, a, first, count, target);
        case Q6_K: return few<Q6_K>(w, a, first, count, target);
        case MXFP4: return few<MXFP4>(w, a, first, count, target);
        default: return few<TQ2_0>(w, a, first, count, target);  // TQ1_0 is packed alike
    }
}

// --- one row back as float32 (embeddings) --------------------------------------------------------

template <int T>
void unpack(const Weight& w, int row, float* out) {
    if constexpr (T == F32 || T == F16 || T == BF16) {
        constexpr int E = T == F32 ? 4 : 2;
        const std::uint8_t* p = w.data + (std::size_t)row * w.columns * E;
        for (int k = 0; k < w.columns; ++k) out[k] = load_weight<T>(p + (std::size_t)k * E);
    } else {
        const std::uint8_t* block = w.data + (std::size_t)(row / 16) * row_block_bytes(T, w.columns);
        const int units = w.columns / 32, r = row % 16;
        const std::uint8_t* scales = block + (std::size_t)units * kQuants<T>;
        const std::uint8_t* super = scales + (std::size_t)units * kScales<T>;
        for (int b = 0; b < units; ++b) {
            u8x64 bytes[8];
            bytes_of<T>(block + (std::size_t)b * kQuants<T>, bytes);
            const Scales c = scales_of<T>(scales + (std::size_t)b * kScales<T>,
                                          super + (std::size_t)(b / 8) * kSuper<T>);
            for (int k = 0; k < 32; ++k)
                out[32 * b + k] = (float)(bytes[k / 4][4 * r + k % 4] - Traits<T>::kZero) *
                                      (k < 16 ? c.first[r] : c.second[r]) - c.minimum[r];
        }
    }
}

void unpack_row(const Weight& w, int row, float* out) {
    switch (w.type) {
        case F32: return unpack<F32>(w, row, out);
        case F16: return unpack<F16>(w, row, out);
        case BF16: return unpack<BF16>(w, row, out);
        case Q4_0: return unpack<Q4_0>(w, row, out);
        case Q4_1: return unpack<Q4_1>(w, row, out);
        case Q5_0: return unpack<Q5_0>(w, row, out);
        case Q5_1: return unpack<Q5_1>(w, row, out);
        case Q8_0: return unpack<Q8_0>(w, row, out);
        case Q4_K: return unpack<Q4_K>(w, row, out);
        case Q5_K: return unpack<Q5_K>(w, row, out);
        case Q6_K: return unpack<Q6_K>(w, row, out);
        case MXFP4: return unpack<MXFP4>(w, row, out);
        default: return unpack<TQ2_0>(w, row, out);
    }
}

template <int T>
void mix(const Weight& w, int first, int count, const float* x, float* out) {
    constexpr int E = T == F32 ? 4 : 2;
    const std::size_t bytes = (std::size_t)w.columns * E;
    const std::uint8_t* rows = w.data + first * bytes;
    int k = 0;
    for (; k + 64 <= w.columns; k += 64) {
        f32x16 sum[4] = {};
        for (int n = 0; n < count; ++n)
            for (int i = 0; i < 4; ++i)
                sum[i] += load_weights<T>(rows + n * bytes + (std::size_t)(k + 16 * i) * E) * x[n];
        for (int i = 0; i < 4; ++i) store(out + k + 16 * i, sum[i]);
    }
    for (; k < w.columns; ++k) {
        float sum = 0;
        for (int n = 0; n < count; ++n) sum += load_weight<T>(rows + n * bytes + (std::size_t)k * E) * x[n];
        out[k] = sum;
    }
}

void mix_rows(const Weight& w, int first, int count, const float* x, float* out) {
    if (w.type == F32) mix<F32>(w, first, count, x, out);
    else if (w.type == F16) mix<F16>(w, first, count, x, out);
    else mix<BF16>(w, first, count, x, out);
}

template <int T>
void dots(const Weight& w, int first, int count, const float* x, float* out) {
    const std::size_t bytes = (std::size_t)w.columns * (T == F32 ? 4 : 2);
    Activation a{};
    a.tokens = 1;
    a.width = a.padded = w.columns;
    a.f = const_cast<float*>(x);
    int n = 0;
    for (; n + 4 <= count; n += 4) dot_rows<T, 4, 1>(w.data + (first + n) * bytes, bytes, a, 0, out + n);
    for (; n < count; ++n) dot_rows<T, 1, 1>(w.data + (first + n) * bytes, bytes, a, 0, out + n);
}

void dot_each(const Weight& w, int first, int count, const float* x, float* out) {
    if (w.type == F32) dots<F32>(w, first, count, x, out);
    else if (w.type == F16) dots<F16>(w, first, count, x, out);
    else dots<BF16>(w, first, count, x, out);
}

#include "kernels_attention.h"
