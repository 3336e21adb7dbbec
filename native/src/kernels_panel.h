// Many tokens at once: 16 rows are unpacked into a panel that stays in the cache, and every token is
// multiplied with it. A panel of bfloat16 holds pairs of columns, [columns / 2, 16 rows, 2], which is
// what the tile unit (AMX) and the pair product of AVX-512 both want; one of float32 [columns, 16].

#if defined(APR_BF16_PANELS)

APR_INLINE u32x16 pair_bf16(f32x16 even, f32x16 odd) {
    return (rounded_bf16(even) >> 16) | rounded_bf16(odd);
}

template <int T>
APR_INLINE void panel_packed(const std::uint8_t* block, int units, std::uint16_t* panel) {
    const std::uint8_t* scales = block + (std::size_t)units * kQuants<T>;
    const std::uint8_t* super = scales + (std::size_t)units * kScales<T>;
    for (int b = 0; b < units; ++b) {
        u8x64 w[8];
        bytes_of<T>(block + (std::size_t)b * kQuants<T>, w);
        const Scales c = scales_of<T>(scales + (std::size_t)b * kScales<T>,
                                      super + (std::size_t)(b / 8) * kSuper<T>);
        const f32x16 halves[2] = {quiet(c.first), quiet(c.second)}, minimum = quiet(c.minimum);
        for (int g = 0; g < 8; ++g) {
            const f32x16 scale = halves[g / 4];
            const f32x16 zero = scale * (float)-Traits<T>::kZero - minimum;
            const u32x16 v = (u32x16)w[g];
            const f32x16 x0 = to_float((i32x16)(v & 0xffu)) * scale + zero;
            const f32x16 x1 = to_float((i32x16)((v >> 8) & 0xffu)) * scale + zero;
            const f32x16 x2 = to_float((i32x16)((v >> 16) & 0xffu)) * scale + zero;
            const f32x16 x3 = to_float((i32x16)(v >> 24)) * scale + zero;
            std::uint16_t* p = panel + ((std::size_t)b * 16 + 2 * g) * 32;
            store(p, pair_bf16(x0, x1));
            store(p + 32, pair_bf16(x2, x3));
        }
    }
}

// 16 rows of 16 dwords, turned over.
APR_INLINE void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

// Rows as they are in the file, into pairs; F16 leaves what bfloat16 lacks in a second panel.
template <int T>
APR_INLINE void panel_rows(const Weight& w, int row, int padded, std::uint16_t* hi,
                           std::uint16_t* lo) {
    const std::size_t bytes = (std::size_t)w.columns * 2;
    for (int k = 0; k < padded; k += 32) {
        __m512i top[16], low[16];
        const int left = w.columns - k;
        const __mmask32 mask = left >= 32 ? 0xffffffffu : left <= 0 ? 0u : (1u << left) - 1u;
        for (int r = 0; r < 16; ++r) {
            const bool there = row + r < w.rows;
            const std::uint8_t* p = w.data + (row + r) * bytes + (std::size_t)k * 2;
            const __m512i raw =
                there ? _mm512_maskz_loadu_epi16(mask, p) : _mm512_setzero_si512();
            if constexpr (T == BF16) {
                top[r] = raw;
            } else {
                const f32x16 a = (f32x16)_mm512_cvtph_ps(_mm512_castsi512_si256(raw));
                const f32x16 b = (f32x16)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(raw, 1));
                const u32x16 ta = rounded_bf16(a), tb = rounded_bf16(b);
                // Of a half's 11 bits no more than 3 are left: nothing to round, and NaN stays NaN.
                const u32x16 la = as_bits(a - as_float(ta)), lb = as_bits(b - as_float(tb));
                top[r] = _mm512_inserti64x4(
                    _mm512_castsi256_si512((__m256i)__builtin_convertvector(ta >> 16, u16x16)),
                    (__m256i)__builtin_convertvector(tb >> 16, u16x16), 1);
                low[r] = _mm512_inserti64x4(
                    _mm512_castsi256_si512((__m256i)__builtin_convertvector(la >> 16, u16x16)),
                    (__m256i)__builtin_convertvector(lb >> 16, u16x16), 1);
            }
        }
        transpose16(top);
        for (int p = 0; p < 16; ++p) _mm512_storeu_si512(hi + (std::size_t)(k / 2 + p) * 32, top[p]);
        if constexpr (T == F16) {
            transpose16(low);
            for (int p = 0; p < 16; ++p)
                _mm512_storeu_si512(lo + (std::size_t)(k / 2 + p) * 32, low[p]);
        }
    }
}

void fill_panel(const Weight& w, int block, int padded, std::uint16_t* hi, std::uint16_t* lo) {
    const int units = w.columns / 32;
    const std::uint8_t* data =
        layout(w.type) ? w.data + block * row_block_bytes(w.type, w.columns) : nullptr;
    switch (w.type) {
        case F16: return panel_rows<F16>(w, 16 * block, padded, hi, lo);
        case BF16: return panel_rows<BF16>(w, 16 * block, padded, hi, lo);
        case Q4_0: return panel_packed<Q4_0>(data, units, hi);
        case Q4_1: return panel_packed<Q4_1>(data, units, hi);
        case Q5_0: return panel_packed<Q5_0>(data, units, hi);
        case Q5_1: return panel_packed<Q5_1>(data, units, hi);
        case Q8_0: return panel_packed<Q8_0>(data, units, hi);
        case Q4_K: return panel_packed<Q4_K>(data, units, hi);
        case Q5_K: return panel_packed<Q5_K>(data, units, hi);
        case Q6_K: return panel_packed<Q6_K>(data, units, hi);
        case MXFP4: return panel_packed<MXFP4>(data, units, hi);
        default: return panel_packed<TQ2_0>(data, units, hi);
    }
}

#if defined(APR_TILES)

APR_INLINE void put_tile(const Target& target, int token, int tokens, int row, const float* tile) {
    for (int t = 0; t < 16 && token + t < tokens; ++t)
        put(target, token + t, row, load<f32x16>(tile + 16 * t));
}

// C[32 tokens, 16 * B rows] in 2 * B tiles: A tiles of 16 tokens by 32 columns, B tiles of 16 pairs.
template <int B>
APR_INLINE void tiles(const Activation& a, int token, const std::uint16_t* const* panels,
                      const std::uint16_t* const* lows, const Target& target, int row) {
    alignas(64) float out[4][256];
    const bool second = token + 16 < a.tokens;
    const std::size_t stride = (std::size_t)a.padded * 2;
    const std::uint16_t* a0 = a.hi + (std::size_t)token * a.padded;
    const std::uint16_t* a1 = second ? a0 + (std::size_t)16 * a.padded : a0;
    const std::uint16_t* l0 = a.lo + (std::size_t)token * a.padded;
    const std::uint16_t* l1 = second ? l0 + (std::size_t)16 * a.padded : l0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const auto pass = [&](const std::uint16_t* x0, const std::uint16_t* x1,
                          const std::uint16_t* const* p) __attribute__((always_inline)) {
        for (int k = 0; k < a.padded; k += 32) {
            _tile_loadd(6, p[0] + (std::size_t)k * 16, 64);
            if constexpr (B == 2) _tile_loadd(7, p[1] + (std::size_t)k * 16, 64);
            _tile_loadd(4, x0 + k, stride);
            _tile_dpbf16ps(0, 4, 6);
            if constexpr (B == 2) _tile_dpbf16ps(1, 4, 7);
            if (second) {
                _tile_loadd(5, x1 + k, stride);
                _tile_dpbf16ps(2, 5, 6);
                if constexpr (B == 2) _tile_dpbf16ps(3, 5, 7);
            }
        }
    };
    pass(a0, a1, panels);
    if (lows) {  // the two products that bfloat16's rounding had left out
        pass(l0, l1, panels);
        pass(a0, a1, lows);
    }
    _tile_stored(0, out[0], 64);
    put_tile(target, token, a.tokens, row, out[0]);
    if constexpr (B == 2) {
        _tile_stored(1, out[1], 64);
        put_tile(target, token, a.tokens, row + 16, out[1]);
    }
    if (second) {
        _tile_stored(2, out[2], 64);
        put_tile(target, token + 16, a.tokens, row, out[2]);
        if constexpr (B == 2) {
            _tile_stored(3, out[3], 64);
            put_tile(target, token + 16, a.tokens, row + 16, out[3]);
        }
    }
}

void configure_tiles() {
    alignas(64) struct {
        std::uint8_t palette, start, reserved[14];
        std::uint16_t columns[16];
        std::uint8_t rows[16];
    } config;
    std::memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; ++i) config.columns[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
}

void many_bf16(const Weight& w, const Activation& a, int first, int count, const Target& target,
               std::uint8_t* scratch) {
    configure_tiles();
    const std::size_t size = (std::size_t)a.padded * 16 * 2;
    std::uint16_t* hi[2] = {(std::uint16_t*)scratch, (std::uint16_t*)(scratch + size)};
    std::uint16_t* lo[2] = {(std::uint16_t*)(scratch + 2 * size), (std::uint16_t*)(scratch + 3 * size)};
    const bool split = w.type == F16;
    for (int b = first; b < first + count; b += 2) {
        const bool pair = b + 1 < first + count;
        fill_panel(w, b, a.padded, hi[0], lo[0]);
        if (pair) fill_panel(w, b + 1, a.padded, hi[1], lo[1]);
        for (int token = 0; token < a.tokens; token += 32) {
            if (pair) tiles<2>(a, token, hi, split ? lo : nullptr, target, 16 * b);
            else tiles<1>(a, token, hi, split ? lo : nullptr, target, 16 * b);
        }
    }
    _tile_release();
}

#else

// Pairs of columns of N tokens times a panel of 16 rows.
template <int N>
APR_INLINE void pairs(const Activation& a, int token, const std::uint16_t* panel, f32x16 acc[N],
                      const std::uint16_t* x) {
    for (int k = 0; k < a.padded; k += 2) {
        const __m512bh w = (__m512bh)_mm512_loadu_si512(panel + (std::size_t)k * 16);
        for (int n = 0; n < N; ++n) {
            std::int32_t two;
            std::memcpy(&two, x + (std::size_t)(token + n) * a.padded + k, 4);
            acc[n] = (f32x16)_mm512_dpbf16_ps((__m512)acc[n], (__m512bh)_mm512_set1_epi32(two), w);
        }
    }
}

template <int N>
APR_INLINE void pair_tokens(const Activation& a, int token, const std::uint16_t* hi,
                            const std::uint16_t* lo, const Target& target, int row) {
    f32x16 acc[N];
    for (int n = 0; n < N; ++n) acc[n] = f32x16{};
    pairs<N>(a, token, hi, acc, a.hi);
    if (lo) {
        pairs<N>(a, token, hi, acc, a.lo);
        pairs<N>(a, token, lo, acc, a.hi);
    }
    for (int n = 0; n < N; ++n) put(target, token + n, row, acc[n]);
}

void many_bf16(const Weight& w, const Activation& a, int first, int count, const Target& target,
               std::uint8_t* scratch) {
    const std::size_t size = (std::size_t)a.padded * 16 * 2;
    std::uint16_t *hi = (std::uint16_t*)scratch, *lo = (std::uint16_t*)(scratch + size);
    for (int b = first; b < first + count; ++b) {
        fill_panel(w, b, a.padded, hi, lo);
        const std::uint16_t* low = w.type == F16 ? lo : nullptr;
        int token = 0;
        for (; token + 12 <= a.tokens; token += 12) pair_tokens<12>(a, token, hi, low, target, 16 * b);
        for (; token + 4 <= a.tokens; token += 4) pair_tokens<4>(a, token, hi, low, target, 16 * b);
        for (; token < a.tokens; ++token) pair_tokens<1>(a, token, hi, low, target, 16 * b);
    }
}

#endif
#endif

template <int T>
void float_panel(const Weight& w, int row, int padded, float* panel) {
    constexpr int E = T == F32 ? 4 : 2;
    std::memset(panel, 0, (std::size_t)padded * 16 * 4);
    for (int r = 0; r < 16 && row + r < w.rows; ++r) {
        const std::uint8_t* p = w.data + (std::size_t)(row + r) * w.columns * E;
        for (int k = 0; k < w.columns; ++k) panel[(std::size_t)k * 16 + r] = load_weight<T>(p + (std::size_t)k * E);
    }
}

template <int N>
APR_INLINE void float_tokens(const Activation& a, int token, const float* panel,
                             const Target& target, int row) {
    f32x16 acc[N];
    for (int n = 0; n < N; ++n) acc[n] = f32x16{};
    const float* x = a.f + (std::size_t)token * a.padded;
    for (int k = 0; k < a.width; ++k) {
        const f32x16 w = load<f32x16>(panel + (std::size_t)k * 16);
        for (int n = 0; n < N; ++n) acc[n] += w * x[(std::size_t)n * a.padded + k];
    }
    for (int n = 0; n < N; ++n) put(target, token + n, row, acc[n]);
}

template <int T>
void many_float(const Weight& w, const Activation& a, int first, int count, const Target& target,
                float* panel) {
    for (int b = first; b < first + count; ++b) {
        float_panel<T>(w, 16 * b, a.padded, panel);
        int token = 0;
        for (; token + 12 <= a.tokens; token += 12) float_tokens<12>(a, token, panel, target, 16 * b);
        for (; token + 4 <= a.tokens; token += 4) float_tokens<4>(a, token, panel, target, 16 * b);
        for (; token < a.tokens; ++token) float_tokens<1>(a, token, panel, target, 16 * b);
    }
}

// True if done here; else the tokens are too few, or 8-bit products are the best there is.
bool many(const Weight& w, const Activation& a, int first, int count, const Target& target,
          void* scratch) {
    if (a.tokens <= kFew || a.apart) return false;
#if defined(APR_BF16_PANELS)
    if (w.type != F32) {
        many_bf16(w, a, first, count, target, (std::uint8_t*)scratch);
        return true;
    }
#endif
    switch (w.type) {
        case F32: many_float<F32>(w, a, first, count, target, (float*)scratch); return true;
        case F16: many_float<F16>(w, a, first, count, target, (float*)scratch); return true;
        case BF16: many_float<BF16>(w, a, first, count, target, (float*)scratch); return true;
        default: return false;
    }
}
