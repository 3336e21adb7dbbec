// Attention over the cache: up to 8 queries that share a key/value head pass over its keys together.
// The softmax runs along in chunks of positions (Milakov and Gimelshein 2018, arXiv 1805.02867).

constexpr int kChunk = 128;  // positions

template <int C>
APR_INLINE f32x16 load_cached(const std::uint8_t* p) {
    if constexpr (C == 0) return load<f32x16>((const float*)p);
    else if constexpr (C == 1) return load_half(p);
    else return from_signed(p);
}

float largest_size(const float* x, int n) {  // NaN if one is
    i32x16 most{};
    int i = 0;
    for (; i + 16 <= n; i += 16) most = larger_bits(most, size_bits(load<f32x16>(x + i)));
    f32x16 rest{};
    for (int j = i; j < n; ++j) rest[j - i] = x[j];
    return largest_size16(larger_bits(most, size_bits(rest)));
}

template <int C>
void store_cached(const LayerCache& c, int head, std::int64_t position, const float* key,
                  const float* value) {
    constexpr int E = C == 0 ? 4 : C == 1 ? 2 : 1;
    const std::int64_t slot = (std::int64_t)head * c.blocks + (position / 16) % c.blocks;
    const int lane = (int)(position % 16);
    const int values = c.latent ? c.key_width : c.value_width;
    if (c.latent) value = key;
    std::uint8_t* k = c.keys + slot * c.key_width * 16 * E;
    std::uint8_t* v = c.values + (slot * 16 + lane) * values * E;
    float key_scale = 1, value_scale = 1;
    if constexpr (C == 2) {
        key_scale = largest_size(key, c.key_width) / 127.0f;
        value_scale = largest_size(value, values) / 127.0f;
        c.key_scales[slot * 16 + lane] = key_scale;
        c.value_scales[slot * 16 + lane] = value_scale;
    }
    const auto put_one = [](std::uint8_t* p, float x, float inverse) {
        if constexpr (C == 0) std::memcpy(p, &x, 4);
        else if constexpr (C == 1) {
            const std::uint16_t h = float_to_half(x);
            std::memcpy(p, &h, 2);
        } else *p = (std::uint8_t)(std::int8_t)std::lrintf(x * inverse);
    };
    const float ki = key_scale > 0 ? 1 / key_scale : 0, vi = value_scale > 0 ? 1 / value_scale : 0;
    for (int i = 0; i < c.key_width && !c.latent; ++i) put_one(k + ((std::size_t)i * 16 + lane) * E, key[i], ki);
    for (int i = 0; i < values; ++i) put_one(v + (std::size_t)i * E, value[i], vi);
}

void cache_store(const LayerCache& c, int head, std::int64_t position, const float* key,
                 const float* value) {
    if (c.type == 0) store_cached<0>(c, head, position, key, value);
    else if (c.type == 1) store_cached<1>(c, head, position, key, value);
    else store_cached<2>(c, head, position, key, value);
}

// Adds weight[r][p] * value[p] to acc[r][...] for a chunk of positions, R queries at once.
template <int C, int R>
APR_INLINE void weigh(const LayerCache& c, int head, std::int64_t start, int count,
                      const float* weights, float* acc) {
    constexpr int E = C == 0 ? 4 : C == 1 ? 2 : 1;
    const int width = c.value_width, stride = c.latent ? c.key_width : width;
    for (int d = 0; d < width; d += 16) {
        f32x16 sum[R];
        const bool whole = d + 16 <= width;
        for (int r = 0; r < R; ++r) sum[r] = load<f32x16>(acc + (std::size_t)r * (width + 16) + d);
        for (int b = 0; b < count; b += 16) {
            const std::int64_t slot = (std::int64_t)head * c.blocks + ((start + b) / 16) % c.blocks;
            const std::uint8_t* v = c.values + (slot * 16 * stride + d) * (std::int64_t)E;
            const int n = count - b < 16 ? count - b : 16;
            for (int p = 0; p < n; ++p) {
                f32x16 value;
                if (whole) {
                    value = load_cached<C>(v + (std::size_t)p * stride * E);
                } else {
                    std::uint8_t part[64] = {0};
                    std::memcpy(part, v + (std::size_t)p * stride * E, (width - d) * E);
                    value = load_cached<C>(part);
                }
                for (int r = 0; r < R; ++r) sum[r] += value * weights[r * kChunk + b + p];
            }
        }
        for (int r = 0; r < R; ++r) store(acc + (std::size_t)r * (width + 16) + d, sum[r]);
    }
}

// Scores of 16 positions for R queries.
template <int C, int R>
APR_INLINE void score(const LayerCache& c, const std::uint8_t* keys, const float* const* q,
                      f32x16 out[R]) {
    constexpr int E = C == 0 ? 4 : C == 1 ? 2 : 1;
    for (int r = 0; r < R; ++r) out[r] = f32x16{};
    for (int d = 0; d < c.key_width; ++d) {
        const f32x16 k = load_cached<C>(keys + (std::size_t)d * 16 * E);
        for (int r = 0; r < R; ++r) out[r] += k * q[r][d];
    }
}

// The same where the positions lie row by row.
template <int C, int R>
APR_INLINE void score_latent(const LayerCache& c, const std::uint8_t* rows, const float* const* q,
                             f32x16 out[R]) {
    constexpr int E = C == 0 ? 4 : C == 1 ? 2 : 1;
    const int width = c.key_width;
    for (int p = 0; p < 16; ++p) {
        const std::uint8_t* row = rows + (std::size_t)p * width * E;
        f32x16 sum[R];
        for (int r = 0; r < R; ++r) sum[r] = f32x16{};
        int d = 0;
        for (; d + 16 <= width; d += 16) {
            const f32x16 k = load_cached<C>(row + (std::size_t)d * E);
            for (int r = 0; r < R; ++r) sum[r] += k * load<f32x16>(q[r] + d);
        }
        if (d < width) {
            std::uint8_t part[64] = {0};
            std::memcpy(part, row + (std::size_t)d * E, (width - d) * E);
            const f32x16 k = load_cached<C>(part);
            for (int r = 0; r < R; ++r)
                for (int i = 0; i < width - d; ++i) sum[r][i] += k[i] * q[r][d + i];
        }
        for (int r = 0; r < R; ++r) out[r][p] = sum16(sum[r]);
    }
}

template <int C, int R>
void attend_rows(const Attention& a, const LayerCache& c, int kv_head, std::int64_t past, int first,
                 const float* q, float* out, float* scratch) {
    constexpr int E = C == 0 ? 4 : C == 1 ? 2 : 1;
    const int group = a.query_heads / a.kv_heads, width = c.value_width;
    const float* query[R];
    float* result[R];
    std::int64_t last[R], low[R];
    float top[R], total[R];
    std::int64_t begin = INT64_MAX, end = 0;
    float* weights = scratch;               // [R, kChunk]
    float* acc = scratch + R * kChunk;      // [R, width + 16]
    std::memset(acc, 0, (std::size_t)R * (width + 16) * 4);
    for (int r = 0; r < R; ++r) {
        const int token = (first + r) / group, head = kv_head * group + (first + r) % group;
        query[r] = q + ((std::size_t)token * a.query_heads + head) * a.key_width;
        result[r] = out + ((std::size_t)token * a.query_heads + head) * width;
        last[r] = past + token;  // the position of the query itself
        low[r] = a.window > 0 && last[r] - a.window + 1 > 0 ? last[r] - a.window + 1 : 0;
        begin = low[r] < begin ? low[r] : begin;
        end = last[r] + 1 > end ? last[r] + 1 : end;
        top[r] = -INFINITY;
        total[r] = 0;
        if (a.sinks) top[r] = a.sinks[head], total[r] = 1;
    }
    const i32x16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (std::int64_t start = begin / 16 * 16; start < end; start += kChunk) {
        const int count = (int)(end - start < kChunk ? end - start : kChunk);
        f32x16 largest[R];
        for (int r = 0; r < R; ++r) largest[r] = splat(-INFINITY);
        for (int b = 0; b < count; b += 16) {
            const std::int64_t slot = (std::int64_t)kv_head * c.blocks + ((start + b) / 16) % c.blocks;
            f32x16 scores[R];
            if (c.latent)
                score_latent<C, R>(c, c.values + slot * c.key_width * 16 * E, query, scores);
            else
                score<C, R>(c, c.keys + slot * c.key_width * 16 * E, query, scores);
            f32x16 factor = splat(a.scale);
            if constexpr (C == 2) factor *= load<f32x16>(c.key_scales + slot * 16);
            for (int r = 0; r < R; ++r) {
                f32x16 s = scores[r] * factor;
                if (a.softcap > 0) s = a.softcap * tanh16(s / a.softcap);
                const i32x16 from = splat_i((int)(low[r] - start - b < -64 ? -64 : low[r] - start - b));
                const std::int64_t to = last[r] - start - b;
                const i32x16 seen = (lanes >= from) & (lanes <= splat_i((int)(to > 64 ? 64 : to)));
                s = choose(seen, s, splat(-INFINITY));
                largest[r] = max16(largest[r], s);
                store(weights + r * kChunk + b, s);
            }
        }
        for (int r = 0; r < R; ++r) {
            const float before = top[r], here = largest16(largest[r]);
            const float now = here > before ? here : before;
            if (now == -INFINITY) {  // none of these positions is seen
                std::memset(weights + r * kChunk, 0, kChunk * sizeof(float));
                continue;
            }
            if (now > before) {
                const float shrink = before == -INFINITY ? 0.0f : std::exp(before - now);
                total[r] *= shrink;
                for (int d = 0; d < width; d += 16) {
                    float* p = acc + (std::size_t)r * (width + 16) + d;
                    store(p, load<f32x16>(p) * shrink);
                }
                top[r] = now;
            }
            f32x16 sum{};
            for (int b = 0; b < count; b += 16) {
                float* p = weights + r * kChunk + b;
                const f32x16 s = load<f32x16>(p);
                f32x16 e = choose(s == -INFINITY, f32x16{}, exp16(s - now));
                sum += e;
                if constexpr (C == 2) {
                    const std::int64_t slot =
                        (std::int64_t)kv_head * c.blocks + ((start + b) / 16) % c.blocks;
                    e *= load<f32x16>(c.value_scales + slot * 16);
                }
                store(p, e);
            }
            total[r] += sum16(sum);
        }
        weigh<C, R>(c, kv_head, start, count, weights, acc);
    }
    for (int r = 0; r < R; ++r) {
        const float inverse = 1.0f / total[r];
        for (int d = 0; d < width; ++d)
            result[r][d] = acc[(std::size_t)r * (width + 16) + d] * inverse;
    }
}

template <int C>
void attend_type(const Attention& a, const LayerCache& c, int kv_head, std::int64_t past, int first,
                 int last, const float* q, float* out, float* scratch) {
    switch (last - first) {
        case 1: return attend_rows<C, 1>(a, c, kv_head, past, first, q, out, scratch);
        case 2: return attend_rows<C, 2>(a, c, kv_head, past, first, q, out, scratch);
        case 3: return attend_rows<C, 3>(a, c, kv_head, past, first, q, out, scratch);
        case 4: return attend_rows<C, 4>(a, c, kv_head, past, first, q, out, scratch);
        case 5: return attend_rows<C, 5>(a, c, kv_head, past, first, q, out, scratch);
        case 6: return attend_rows<C, 6>(a, c, kv_head, past, first, q, out, scratch);
        case 7: return attend_rows<C, 7>(a, c, kv_head, past, first, q, out, scratch);
        default: return attend_rows<C, 8>(a, c, kv_head, past, first, q, out, scratch);
    }
}

void attend(const Attention& a, const LayerCache& c, int kv_head, std::int64_t past, int first,
            int last, const float* q, float* out, void* scratch) {
    float* s = (float*)scratch;
    if (c.type == 0) attend_type<0>(a, c, kv_head, past, first, last, q, out, s);
    else if (c.type == 1) attend_type<1>(a, c, kv_head, past, first, last, q, out, s);
    else attend_type<2>(a, c, kv_head, past, first, last, q, out, s);
}
