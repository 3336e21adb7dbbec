// What runs between Python's call and the kernels: the threads, and the program of a model.
//
// A pass is one call. All threads walk through the same list of operations; each takes pieces of an
// operation's work from a counter, and they wait for each other only where the next operation reads
// what another thread wrote (`sync`). Waiting spins: a step of a small model has a hundred of these
// points, and a sleeping thread would need longer to wake than the work takes.
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__) || defined(__APPLE__)
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "apr_native.h"
#include "build_info.h"
#include "kernels.h"
#include "pack.h"

namespace apr {

const Kernels* kernels(const char* name) {
    if (!usable(name)) return nullptr;
#if defined(APR_HAVE_AMX)
    if (std::strcmp(name, "amx") == 0) return &amx::table;
#endif
#if defined(APR_HAVE_AVX512)
    if (std::strcmp(name, "avx512") == 0) return &avx512::table;
#endif
#if defined(APR_HAVE_AVX2)
    if (std::strcmp(name, "avx2") == 0) return &avx2::table;
#endif
    if (std::strcmp(name, "portable") == 0) return &portable::table;
    return nullptr;
}

namespace {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Memory that is reserved and comes as zeros when first touched.
class Pages {
  public:
    // `large`: in pages of 2 MiB if the system has them; not for what is mostly never touched.
    explicit Pages(std::size_t bytes, bool large = false) : bytes_(bytes ? bytes : 64) {
        void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        data_ = p == MAP_FAILED ? nullptr : static_cast<std::uint8_t*>(p);
#if defined(MADV_HUGEPAGE)
        if (data_ && large) madvise(data_, bytes_, MADV_HUGEPAGE);
#else
        (void)large;
#endif
    }
    ~Pages() {
        if (data_) munmap(data_, bytes_);
    }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    std::uint8_t* data() const { return data_; }

  private:
    std::size_t bytes_;
    std::uint8_t* data_;
};

class Barrier {
  public:
    explicit Barrier(int threads) : threads_(threads) {}
    void wait() {
        wait([] { pause(); });
    }
    // Until all have come; `idle` is called again and again meanwhile and takes no time worth
    // speaking of.
    template <class F>
    void wait(const F& idle) {
        if (threads_ == 1) return;
        const int phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
            idle();
            if (spins > 1000) sched_yield();  // perhaps the other one has no processor: give it this one
        }
    }

  private:
    const int threads_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> phase_{0};
};

// Threads that wait for work; the caller is thread 0.
class Pool {
  public:
    explicit Pool(int threads) : threads_(threads), barrier_(threads) {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
    }
    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            job_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (std::thread& w : workers_) w.join();
    }
    int threads() const { return threads_; }
    Barrier& barrier() { return barrier_; }

    // work(thread) on all threads; returns when all are done.
    template <class F>
    void run(const F& work) {
        call_ = [](const void* f, int thread) { (*static_cast<const F*>(f))(thread); };
        argument_ = &work;
        if (threads_ > 1) {
            {
                std::lock_guard<std::mutex> lock(mutex_);
                job_.fetch_add(1, std::memory_order_release);
            }
            if (sleeping_.load(std::memory_order_acquire) > 0) wake_.notify_all();
        }
        work(0);
        barrier_.wait();
    }

  private:
    void serve(int thread) {
        int seen = 0;
        for (;;) {
            // A program asks for the next token soon: spin a while before sleeping.
            const auto start = std::chrono::steady_clock::now();
            bool there = false;
            while (!there) {
                for (int i = 0; i < 256 && !there; ++i) {
                    there = job_.load(std::memory_order_acquire) != seen;
                    if (!there) pause();
                }
                if (!there && std::chrono::steady_clock::now() - start > std::chrono::microseconds(500))
                    break;
            }
            if (!there) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleeping_.fetch_add(1, std::memory_order_acq_rel);
                wake_.wait(lock, [&] { return job_.load(std::memory_order_acquire) != seen; });
                sleeping_.fetch_sub(1, std::memory_order_acq_rel);
            }
            seen = job_.load(std::memory_order_acquire);
            if (stop_) return;
            call_(argument_, thread);
            barrier_.wait();
        }
    }

    const int threads_;
    Barrier barrier_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<int> job_{0}, sleeping_{0};
    bool stop_ = false;
    void (*call_)(const void*, int) = nullptr;
    const void* argument_ = nullptr;
};

enum Kind {
    // x = embedding of the ids. a: out, weight, positions' weight or -1. f: factor (0: none).
    kEmbed = 0,
    // The activation that the next products read. a: in, norm's weight or -1, its bias or -1, width,
    // norm kind (0 none), forms for one token's and for many, -, only the last tokens. f: eps.
    kPrepare = 1,
    // out = activation times a weight. a: weight, out, first column there, bias or -1, add.
    kMatmul = 2,
    // out = act(gate) * up. a: gate, up, out, act, gate's bias, up's bias. f: limit.
    kGated = 3,
    // A norm into a buffer. a: in, weight, bias, width, kind, out, add, heads (each `width`). f: eps.
    kNorm = 4,
    // Norms of heads, rotation, store. a: q, k, v, layer, q norm, k norm, angles (0 none, 1 full,
    // 2 sliding), interleaved, query heads, norm kind, half of the rotating width. f: eps.
    kStore = 5,
    // a: q, out, layer, window, sinks or -1, query heads. f: scale, softcap.
    kAttend = 6,
    // Elementwise. a: in, out, act, width.
    kAct = 7,
    // a: buffer, width. f: cap.
    kSoftcap = 8,
    // out = each token's experts, weighed. a: in, out, router's logits, first of (gate, up, down) of
    // expert 0, norm's weight, its bias, norm kind, act, an expert's width, experts, chosen, first of
    // their biases or -1, sigmoid, correction bias or -1, groups, best groups, groups by their two
    // best, weights made to sum to one, buffers for gate, up and results, width. f: eps, factor,
    // limit.
    kExperts = 9,
    // out += in, times sigmoid of one number per token. a: in, out, width, buffer of that or -1.
    kAdd = 10,
    // MLA's queries into the latent's space, and their rotating part. a: q, out, kv_b, heads, nope,
    // rope, value width, rank, angles, interleaved, half.
    kAbsorb = 11,
    // MLA's latent: norm, rotation, store. a: in, layer, norm's weight, rank, angles, interleaved,
    // half. f: eps.
    kLatent = 12,
    // MLA's values out of the latent's space. a: in, out, kv_b, heads, nope, value width, rank.
    kExpand = 13,
};

constexpr std::size_t kAhead = 256 << 10;  // bytes a waiting thread reads ahead, a part of its cache
constexpr int kStages = 8;  // how often one operation may hand out work

struct Cache {
    std::vector<LayerCache> layers;
    std::unique_ptr<Pages> pages;
};

struct Private {  // a thread's own: the activation of a single token, and room to unpack
    std::unique_ptr<Pages> pages;
    Activation activation{};
    std::uint8_t* scratch = nullptr;
    float* row = nullptr;
};

std::size_t piece_bytes(const Weight& w) {  // of 16 rows
    const int bytes = float_bytes(w.type);
    return bytes ? (std::size_t)16 * w.columns * bytes : row_block_bytes(w.type, w.columns);
}

std::size_t activation_bytes(std::size_t tokens, std::size_t padded) {
    const std::size_t tall = (tokens + 31) / 32 * 32;
    return tokens * padded * 5 + tokens * (padded / 32) * 4 + tokens * (padded / 16) * 4 +
           tall * padded * 4 + 6 * 64;
}

Activation lay_out(std::uint8_t* p, std::size_t tokens, std::size_t padded) {
    const std::size_t tall = (tokens + 31) / 32 * 32;
    Activation a{};
    const auto take = [&](std::size_t bytes) {
        std::uint8_t* at = p;
        p += (bytes + 63) / 64 * 64;
        return at;
    };
    a.f = (float*)take(tokens * padded * 4);
    a.q = (std::int8_t*)take(tokens * padded);
    a.d = (float*)take(tokens * (padded / 32) * 4);
    a.s = (std::int32_t*)take(tokens * (padded / 16) * 4);
    a.hi = (std::uint16_t*)take(tall * padded * 2);
    a.lo = (std::uint16_t*)take(tall * padded * 2);
    return a;
}

struct Model {
    Model(int threads, const Kernels* k)
        : kernels(k), process(getpid()), pool(std::make_unique<Pool>(threads)), own(threads) {}
    ~Model() {
        if (getpid() != process) (void)pool.release();
    }

    // A forked child has no threads but its own: it starts others. Those of its parent, whatever
    // they were at, are left alone for good, for nothing can be said of their locks here.
    void settle() {
        if (getpid() == process) return;
        const int threads = pool->threads();
        (void)pool.release();
        pool = std::make_unique<Pool>(threads);
        process = getpid();
    }

    const Kernels* kernels;
    pid_t process;
    std::unique_ptr<Pool> pool;
    std::vector<Weight> weights;
    std::vector<const float*> vectors;
    std::vector<AprOp> ops;
    std::vector<int> next;  // the product that follows an operation; -1: none, or experts come first
    std::vector<std::int32_t> widths;
    std::vector<float*> buffers;
    std::unique_ptr<Pages> memory;
    Activation shared{};
    std::vector<Private> own;
    std::unique_ptr<std::atomic<int>[]> counters;
    int most = 0, widest = 0, chosen = 1;  // chosen: experts per token, at most
    // Where the rows (token, choice) go that are sorted by expert.
    std::vector<int> route_expert, route_place, route_token, route_start;
    std::vector<float> route_weight;

    const float* vector(int i) const { return i < 0 ? nullptr : vectors[i]; }
};

void make_room(Model& m) {
    int widest = 32, value = 64;
    for (const Weight& w : m.weights) widest = w.columns > widest ? w.columns : widest;
    for (const std::int32_t w : m.widths) widest = w > widest ? w : widest;
    const std::size_t padded = (widest + 31) / 32 * 32, rows = (std::size_t)m.most * m.chosen;
    std::size_t total = activation_bytes(rows, padded) + 4096;
    for (const std::int32_t w : m.widths) total += ((std::size_t)w * m.most * 4 + 63) / 64 * 64;
    m.memory = std::make_unique<Pages>(total);
    std::uint8_t* p = m.memory->data();
    m.shared = lay_out(p, rows, padded);
    p += (activation_bytes(rows, padded) + 63) / 64 * 64;
    m.route_expert.resize(rows);
    m.route_place.resize(rows);
    m.route_token.resize(rows);
    m.route_weight.resize(rows);
    m.buffers.clear();
    for (const std::int32_t w : m.widths) {
        m.buffers.push_back((float*)p);
        p += ((std::size_t)w * m.most * 4 + 63) / 64 * 64;
    }
    value = widest;
    const std::size_t scratch = scratch_bytes(padded, value), row = padded * 4 + 64;
    for (Private& t : m.own) {
        t.pages = std::make_unique<Pages>(activation_bytes(1, padded) + scratch + row + 4096);
        t.activation = lay_out(t.pages->data(), 1, padded);
        t.scratch = t.pages->data() + (activation_bytes(1, padded) + 63) / 64 * 64;
        t.row = (float*)(t.scratch + (scratch + 63) / 64 * 64);
    }
    m.widest = (int)padded;
}

// Pieces 0 to `pieces` for a product of one token: half of what is left goes to the threads in equal
// parts, round after round, so that all end together. The first part of each thread is known
// beforehand (what it will read can be fetched early); the others go to whoever comes.
class Parts {
  public:
    Parts(int pieces, int threads) : pieces_(pieces), threads_(threads), size_(round()) {}
    // Move on to the part of that number; false behind the last.
    bool seek(int number) {
        for (; number_ < number; ++number_) {
            first_ += size_;
            if ((number_ + 1) % threads_ == 0) size_ = round();
        }
        return first_ < pieces_;
    }
    int first() const { return first_; }
    int count() const { return first_ + size_ < pieces_ ? size_ : pieces_ - first_; }

  private:
    int round() const {
        const int n = (pieces_ - first_) / (2 * threads_);
        return n < 1 ? 1 : n;
    }
    const int pieces_, threads_;
    int number_ = 0, first_ = 0, size_;
};

// What a waiting thread reads meanwhile: the weights of its next product, into its own cache.
struct Ahead {
    const char* at = nullptr;
    const char* end = nullptr;
    void operator()() {
        if (at >= end) return pause();
        for (int i = 0; i < 4; ++i) __builtin_prefetch(at + 64 * i, 0, 2);
        at += 256;
    }
};

// Tokens of one sequence, one after the other; or (`positions` given) rows that are each a further
// token of a sequence of their own, computed exactly as each would be alone.
struct Pass {
    Model& m;
    Cache* const* caches;
    const std::int32_t* ids;
    int count;
    std::int64_t past;
    const std::int64_t* positions;
    const float* const* angles;
    float* logits;
    int last;

    bool rows() const { return positions != nullptr; }
    std::int64_t position(int t) const { return rows() ? positions[t] : past + t; }
    const LayerCache& layer(int t, int layer) const {
        return caches[rows() ? t : 0]->layers[layer];
    }
};

// A token's experts and their weights, as apr/model/moe.py chooses them.
void route(const AprOp& op, const float* logits, const float* correction, int* experts,
           float* weights) {
    const int count = op.a[9], chosen = op.a[10], groups = op.a[14];
    std::vector<float> scores(count), choice(count);
    if (op.a[12]) {
        for (int e = 0; e < count; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    } else {
        float top = logits[0], sum = 0;
        for (int e = 1; e < count; ++e) top = logits[e] > top ? logits[e] : top;
        for (int e = 0; e < count; ++e) sum += scores[e] = std::exp(logits[e] - top);
        for (int e = 0; e < count; ++e) scores[e] /= sum;
    }
    for (int e = 0; e < count; ++e) choice[e] = scores[e] + (correction ? correction[e] : 0.0f);
    if (groups > 1) {
        const int size = count / groups;
        std::vector<float> worth(groups);
        for (int g = 0; g < groups; ++g) {
            float first = -INFINITY, second = -INFINITY;
            for (int e = g * size; e < (g + 1) * size; ++e) {
                if (choice[e] > first) second = first, first = choice[e];
                else if (choice[e] > second) second = choice[e];
            }
            worth[g] = op.a[16] && size > 1 ? first + second : first;
        }
        std::vector<bool> kept(groups, false);
        for (int i = 0; i < op.a[15]; ++i) {
            int best = -1;
            for (int g = 0; g < groups; ++g)
                if (!kept[g] && (best < 0 || worth[g] > worth[best])) best = g;
            kept[best] = true;
        }
        for (int e = 0; e < count; ++e)
            if (!kept[e / size]) choice[e] = -INFINITY;
    }
    float sum = 0;
    for (int i = 0; i < chosen; ++i) {
        int best = -1;
        for (int e = 0; e < count; ++e) {
            bool taken = false;
            for (int j = 0; j < i; ++j) taken = taken || experts[j] == e;
            if (!taken && (best < 0 || choice[e] > choice[best])) best = e;
        }
        experts[i] = best;
        sum += weights[i] = scores[best];
    }
    for (int i = 0; i < chosen; ++i) {
        if (op.a[17]) weights[i] /= sum + 1e-20f;
        weights[i] *= op.f[1];
    }
}

void walk(const Pass& p, int thread) {
    Model& m = p.m;
    const Kernels& k = *m.kernels;
    Private& own = m.own[thread];
    const int threads = m.pool->threads();
    Activation current{};
    int columns = p.count;  // tokens that the current activation has
    Ahead ahead;
    int ahead_of = -1;
    const auto buffer = [&](int i) { return i < 0 ? p.logits : m.buffers[i]; };
    const auto width = [&](int i) { return (std::size_t)(i < 0 ? 0 : m.widths[i]); };

    for (std::size_t index = 0; index < m.ops.size(); ++index) {
        const AprOp& op = m.ops[index];
        int stage = 0;
        // Pieces of work, taken in turn: an even share where all are alike would wait for the
        // thread that something else had held up.
        const auto share = [&](int pieces, int at_once, const auto& work) {
            std::atomic<int>& counter = m.counters[index * kStages + stage++];
            if (threads == 1) {
                if (pieces > 0) work(0, pieces);
                return;
            }
            for (;;) {
                const int first = counter.fetch_add(at_once, std::memory_order_relaxed);
                if (first >= pieces) return;
                work(first, first + at_once < pieces ? at_once : pieces - first);
            }
        };
        const auto chunk = [&](int pieces) {
            const int n = pieces / (threads * 6);
            return n < 1 ? 1 : n % 2 ? n + 1 : n;
        };
        const auto share_rows = [&](int rows, const auto& work) {
            const int pieces = (rows + 15) / 16;
            if (columns > 8 || threads == 1) return share(pieces, chunk(pieces), work);
            std::atomic<int>& counter = m.counters[index * kStages + stage++];
            Parts parts(pieces, threads);
            for (int number = thread; parts.seek(number);
                 number = threads + counter.fetch_add(1, std::memory_order_relaxed))
                work(parts.first(), parts.count());
        };
        switch (op.kind) {
            case kEmbed: {
                float* out = buffer(op.a[0]);
                const Weight& w = m.weights[op.a[1]];
                share(p.count, 1, [&](int first, int n) {
                    for (int t = first; t < first + n; ++t) {
                        float* x = out + (std::size_t)t * w.columns;
                        k.unpack_row(w, p.ids[t], x);
                        if (op.f[0] != 0)
                            for (int i = 0; i < w.columns; ++i) x[i] *= op.f[0];
                        if (op.a[2] >= 0) {
                            k.unpack_row(m.weights[op.a[2]], (int)p.position(t), own.row);
                            for (int i = 0; i < w.columns; ++i) x[i] += own.row[i];
                        }
                    }
                });
                break;
            }
            case kPrepare: {
                const int skip = op.a[8] ? p.count - p.last : 0, n = op.a[3];
                columns = p.count - skip;
                const bool alone = columns == 1;
                current = alone ? own.activation : m.shared;
                current.tokens = columns;
                current.width = n;
                current.padded = (n + 31) / 32 * 32;
                current.apart = p.rows();
                const int wanted = columns > 8 && !p.rows() ? op.a[6] : op.a[5];
                const float* x = buffer(op.a[0]) + (std::size_t)skip * n;
                const auto one = [&](int t) {
                    const float* from = x + (std::size_t)t * n;
                    if (op.a[4]) {
                        k.norm(from, own.row, n, m.vector(op.a[1]), m.vector(op.a[2]), op.a[4],
                               op.f[0]);
                        from = own.row;
                    }
                    k.prepare(from, current, t, wanted);
                };
                if (alone) {
                    one(0);  // each thread for itself: cheaper than to wait for one that does it
                } else {
                    share(columns, 1, [&](int first, int c) {
                        for (int t = first; t < first + c; ++t) one(t);
                    });
                    m.pool->barrier().wait();
                }
                break;
            }
            case kMatmul: {
                const Weight& w = m.weights[op.a[0]];
                const std::size_t stride = op.a[1] < 0 ? (std::size_t)w.rows : width(op.a[1]);
                float* out = buffer(op.a[1]) + op.a[2];
                share_rows(w.rows, [&](int first, int n) {
                    k.matmul(w, current, first, n, out, (std::ptrdiff_t)stride, m.vector(op.a[3]),
                             op.a[4] != 0, own.scratch);
                });
                break;
            }
            case kGated: {
                const Weight &gate = m.weights[op.a[0]], &up = m.weights[op.a[1]];
                float *out = buffer(op.a[2]), *side = buffer(op.a[6]);
                const std::size_t stride = width(op.a[2]);
                share_rows(gate.rows, [&](int first, int n) {
                    k.matmul(gate, current, first, n, out, (std::ptrdiff_t)stride,
                             m.vector(op.a[4]), false, own.scratch);
                    k.matmul(up, current, first, n, side, (std::ptrdiff_t)stride, m.vector(op.a[5]),
                             false, own.scratch);
                    const int from = 16 * first;
                    const int to = 16 * (first + n) < gate.rows ? 16 * (first + n) : gate.rows;
                    for (int t = 0; t < columns; ++t) {
                        float* g = out + t * stride + from;
                        k.act(g, side + t * stride + from, g, to - from, op.a[3], op.f[0]);
                    }
                });
                break;
            }
            case kNorm: {
                const int n = op.a[3], heads = op.a[7];
                const float* x = buffer(op.a[0]);
                float* out = buffer(op.a[5]);
                share(p.count, 1, [&](int first, int c) {
                    for (int t = first; t < first + c; ++t) {
                        for (int h = 0; h < heads; ++h) {
                            const std::size_t at = ((std::size_t)t * heads + h) * n;
                            k.norm(x + at, op.a[6] ? own.row : out + at, n, m.vector(op.a[1]),
                                   m.vector(op.a[2]), op.a[4], op.f[0]);
                            if (op.a[6])
                                for (int i = 0; i < n; ++i) out[at + i] += own.row[i];
                        }
                    }
                });
                break;
            }
            case kStore: {
                const LayerCache& shape = p.layer(0, op.a[3]);
                const int kv_heads = shape.kv_heads, value_width = shape.value_width;
                float *q = buffer(op.a[0]), *key = buffer(op.a[1]);
                const float* value = buffer(op.a[2]);
                const int heads = op.a[8], half = op.a[10], kw = shape.key_width;
                const float* cos = op.a[6] ? p.angles[2 * (op.a[6] - 1)] : nullptr;
                const float* sin = op.a[6] ? p.angles[2 * (op.a[6] - 1) + 1] : nullptr;
                const auto turn = [&](float* x, int t, int vector) {
                    if (op.a[9] && vector >= 0)
                        k.norm(x, x, kw, m.vector(vector), nullptr, op.a[9], op.f[0]);
                    if (cos)
                        k.rope(x, cos + (std::size_t)t * half, sin + (std::size_t)t * half, half,
                               op.a[7] != 0);
                };
                const int per_token = heads + kv_heads;
                share(p.count * per_token, p.count > 8 ? per_token : 2, [&](int first, int n) {
                    for (int i = first; i < first + n; ++i) {
                        const int t = i / per_token, h = i % per_token;
                        if (h < heads) {
                            turn(q + ((std::size_t)t * heads + h) * kw, t, op.a[4]);
                        } else {
                            const int g = h - heads;
                            float* x = key + ((std::size_t)t * kv_heads + g) * kw;
                            turn(x, t, op.a[5]);
                            k.cache_store(p.layer(t, op.a[3]), g, p.position(t), x,
                                          value + ((std::size_t)t * kv_heads + g) * value_width);
                        }
                    }
                });
                break;
            }
            case kAttend: {
                const LayerCache& c = p.layer(0, op.a[2]);
                const int heads = op.a[5], group = heads / c.kv_heads;
                const Attention a{heads, c.kv_heads, c.key_width, c.value_width, op.a[3],
                                  op.f[0], op.f[1], m.vector(op.a[4])};
                if (p.rows()) {
                    const int tiles = (group + 7) / 8, per_row = tiles * c.kv_heads;
                    share(p.count * per_row, 1, [&](int first, int n) {
                        for (int i = first; i < first + n; ++i) {
                            const std::size_t t = i / per_row * heads;
                            const int from = i % per_row / c.kv_heads * 8;
                            k.attend(a, p.layer(i / per_row, op.a[2]), i % c.kv_heads,
                                     p.position(i / per_row), from,
                                     from + 8 < group ? from + 8 : group,
                                     buffer(op.a[0]) + t * c.key_width,
                                     buffer(op.a[1]) + t * c.value_width, own.scratch);
                        }
                    });
                    break;
                }
                const int rows = p.count * group, tiles = (rows + 7) / 8;
                share(tiles * c.kv_heads, 1, [&](int first, int n) {
                    for (int i = first; i < first + n; ++i) {
                        const int from = i / c.kv_heads * 8;
                        k.attend(a, c, i % c.kv_heads, p.past, from,
                                 from + 8 < rows ? from + 8 : rows, buffer(op.a[0]),
                                 buffer(op.a[1]), own.scratch);
                    }
                });
                break;
            }
            case kAct: {
                const int n = op.a[3];
                const float* x = buffer(op.a[0]);
                float* out = buffer(op.a[1]);
                share(p.count, 1, [&](int first, int c) {
                    k.act(x + (std::size_t)first * n, nullptr, out + (std::size_t)first * n, c * n,
                          op.a[2], 0);
                });
                break;
            }
            case kSoftcap: {
                const int n = op.a[1], pieces = (n + 1023) / 1024;
                share(columns * pieces, 1, [&](int first, int c) {
                    for (int i = first; i < first + c; ++i) {
                        const int at = i % pieces * 1024;
                        k.softcap(buffer(op.a[0]) + (std::size_t)(i / pieces) * n + at,
                                  n - at < 1024 ? n - at : 1024, op.f[0]);
                    }
                });
                break;
            }
            case kExperts: {
                const int n = op.a[21], wide = op.a[8], experts = op.a[9], chosen = op.a[10];
                const int rows = p.count * chosen;
                const float* x = buffer(op.a[0]);
                const float* logits = buffer(op.a[2]);
                share(p.count, 1, [&](int first, int c) {
                    for (int t = first; t < first + c; ++t)
                        route(op, logits + (std::size_t)t * experts, m.vector(op.a[13]),
                              &m.route_expert[(std::size_t)t * chosen],
                              &m.route_weight[(std::size_t)t * chosen]);
                });
                m.pool->barrier().wait();
                if (thread == 0) {  // sort the rows by expert, tokens in order
                    std::vector<int>& start = m.route_start;
                    start.assign(experts + 1, 0);
                    for (int i = 0; i < rows; ++i) ++start[m.route_expert[i] + 1];
                    for (int e = 0; e < experts; ++e) start[e + 1] += start[e];
                    std::vector<int> next(start.begin(), start.end() - 1);
                    for (int i = 0; i < rows; ++i) {
                        m.route_place[i] = next[m.route_expert[i]]++;
                        m.route_token[m.route_place[i]] = i / chosen;
                    }
                }
                m.pool->barrier().wait();
                const Weight* weights = &m.weights[op.a[3]];
                const auto every = [&](int type) {
                    return k.forms(type, 1) | (p.count > 8 && !p.rows() ? k.forms(type, 1 << 20) : 0);
                };
                const auto spread = [&](const float* from, int width, int wanted, bool gathered) {
                    current = m.shared;
                    current.tokens = rows;
                    current.width = width;
                    current.padded = (width + 31) / 32 * 32;
                    current.apart = p.rows();
                    share(rows, 1, [&](int first, int c) {
                        for (int r = first; r < first + c; ++r) {
                            const float* at =
                                from + (std::size_t)(gathered ? r : m.route_token[r]) * width;
                            if (!gathered && op.a[6]) {
                                k.norm(at, own.row, width, m.vector(op.a[4]), m.vector(op.a[5]),
                                       op.a[6], op.f[0]);
                                at = own.row;
                            }
                            k.prepare(at, current, r, wanted);
                        }
                    });
                    m.pool->barrier().wait();
                };
                const auto of_expert = [&](int e) {
                    const int first = m.route_start[e];
                    const std::size_t padded = current.padded;
                    Activation a = current;
                    a.tokens = m.route_start[e + 1] - first;
                    a.f += first * padded;
                    a.q += first * padded;
                    a.d += first * (padded / 32);
                    a.s += first * (padded / 16);
                    a.hi += first * padded;
                    a.lo += first * padded;
                    return a;
                };
                const auto bias = [&](int e, int part) {
                    return op.a[11] < 0 ? nullptr : m.vector(op.a[11] + 3 * e + part);
                };
                const auto each = [&](int height, const auto& work) {
                    const int pieces = (height + 15) / 16, at_once = chunk(pieces);
                    const int turns = (pieces + at_once - 1) / at_once;
                    std::vector<int> used;
                    for (int e = 0; e < experts; ++e)
                        if (m.route_start[e + 1] > m.route_start[e]) used.push_back(e);
                    share((int)used.size() * turns, 1, [&](int first, int c) {
                        for (int i = first; i < first + c; ++i) {
                            const int from = i % turns * at_once;
                            work(used[i / turns], from,
                                 pieces - from < at_once ? pieces - from : at_once);
                        }
                    });
                    m.pool->barrier().wait();
                };
                spread(x, n, every(weights[0].type) | every(weights[1].type), false);
                float *gates = buffer(op.a[18]), *side = buffer(op.a[19]), *results = buffer(op.a[20]);
                each(wide, [&](int e, int first, int c) {
                    const Activation a = of_expert(e);
                    const std::size_t at = (std::size_t)m.route_start[e] * wide;
                    k.matmul(weights[3 * e], a, first, c, gates + at, wide, bias(e, 0), false,
                             own.scratch);
                    k.matmul(weights[3 * e + 1], a, first, c, side + at, wide, bias(e, 1), false,
                             own.scratch);
                    const int to = 16 * (first + c) < wide ? 16 * (first + c) : wide;
                    for (int t = 0; t < a.tokens; ++t) {
                        float* g = gates + at + (std::size_t)t * wide + 16 * first;
                        k.act(g, side + at + (std::size_t)t * wide + 16 * first, g, to - 16 * first,
                              op.a[7], op.f[2]);
                    }
                });
                spread(gates, wide, every(weights[2].type), true);
                each(n, [&](int e, int first, int c) {
                    k.matmul(weights[3 * e + 2], of_expert(e), first, c,
                             results + (std::size_t)m.route_start[e] * n, n, bias(e, 2), false,
                             own.scratch);
                });
                float* out = buffer(op.a[1]);
                share(p.count, 1, [&](int first, int c) {
                    for (int t = first; t < first + c; ++t) {
                        float* y = out + (std::size_t)t * n;
                        std::memset(y, 0, (std::size_t)n * 4);
                        for (int j = 0; j < chosen; ++j) {
                            const int i = t * chosen + j;
                            const float* r = results + (std::size_t)m.route_place[i] * n;
                            const float w = m.route_weight[i];
                            for (int d = 0; d < n; ++d) y[d] += w * r[d];
                        }
                    }
                });
                break;
            }
            case kAdd: {
                const int n = op.a[2];
                const float* x = buffer(op.a[0]);
                float* out = buffer(op.a[1]);
                share(p.count, 1, [&](int first, int c) {
                    for (int t = first; t < first + c; ++t) {
                        float factor = 1;
                        if (op.a[3] >= 0) factor = 1.0f / (1.0f + std::exp(-buffer(op.a[3])[t]));
                        const std::size_t at = (std::size_t)t * n;
                        for (int d = 0; d < n; ++d) out[at + d] += factor * x[at + d];
                    }
                });
                break;
            }
            case kAbsorb: {
                const int heads = op.a[3], nope = op.a[4], turning = op.a[5], rank = op.a[7];
                const float *cos = p.angles[2 * (op.a[8] - 1)], *sin = p.angles[2 * (op.a[8] - 1) + 1];
                const int half = op.a[10];
                const float* q = buffer(op.a[0]);
                float* out = buffer(op.a[1]);
                share(p.count * heads, 1, [&](int first, int c) {
                    for (int i = first; i < first + c; ++i) {
                        const int t = i / heads, h = i % heads;
                        const float* x = q + (std::size_t)i * (nope + turning);
                        float* y = out + (std::size_t)i * (rank + turning);
                        k.mix_rows(m.weights[op.a[2]], h * (nope + op.a[6]), nope, x, y);
                        std::memcpy(y + rank, x + nope, turning * sizeof(float));
                        k.rope(y + rank, cos + (std::size_t)t * half, sin + (std::size_t)t * half,
                               half, op.a[9] != 0);
                    }
                });
                break;
            }
            case kLatent: {
                const int key_width = p.layer(0, op.a[1]).key_width;
                const int rank = op.a[3], half = op.a[6];
                const float *cos = p.angles[2 * (op.a[4] - 1)], *sin = p.angles[2 * (op.a[4] - 1) + 1];
                float* x = buffer(op.a[0]);
                share(p.count, 1, [&](int first, int n) {
                    for (int t = first; t < first + n; ++t) {
                        float* row = x + (std::size_t)t * key_width;
                        k.norm(row, row, rank, m.vector(op.a[2]), nullptr, 1, op.f[0]);
                        k.rope(row + rank, cos + (std::size_t)t * half, sin + (std::size_t)t * half,
                               half, op.a[5] != 0);
                        k.cache_store(p.layer(t, op.a[1]), 0, p.position(t), row, row);
                    }
                });
                break;
            }
            case kExpand: {
                const int heads = op.a[3], nope = op.a[4], value = op.a[5], rank = op.a[6];
                const float* x = buffer(op.a[0]);
                float* out = buffer(op.a[1]);
                share(p.count * heads, 1, [&](int first, int c) {
                    for (int i = first; i < first + c; ++i)
                        k.dot_each(m.weights[op.a[2]], i % heads * (nope + value) + nope, value,
                                   x + (std::size_t)i * rank, out + (std::size_t)i * value);
                });
                break;
            }
        }
        if (!op.sync) continue;
        if (threads == 1 || p.count > 8 || m.next[index] < 0) {
            m.pool->barrier().wait();
            continue;
        }
        if (ahead_of != m.next[index]) {
            ahead_of = m.next[index];
            const Weight& w = m.weights[m.ops[ahead_of].a[0]];
            Parts parts((w.rows + 15) / 16, threads);
            ahead = Ahead{};
            if (parts.seek(thread)) {
                const std::size_t bytes = piece_bytes(w);
                const std::size_t all = parts.count() * bytes;
                ahead.at = (const char*)w.data + parts.first() * bytes;
                ahead.end = ahead.at + (all < kAhead ? all : kAhead);
            }
        }
        m.pool->barrier().wait([&] { ahead(); });
    }
}

void run(const Pass& p) {
    Model& m = p.m;
    m.settle();
    for (std::size_t i = 0; i < m.ops.size() * kStages; ++i)
        m.counters[i].store(0, std::memory_order_relaxed);
    m.pool->run([&](int thread) { walk(p, thread); });
}

std::size_t element(int type) { return type == 0 ? 4 : type == 1 ? 2 : 1; }

std::size_t layer_bytes(const AprLayer& l, int type) {
    const std::size_t positions = (std::size_t)l.kv_heads * l.blocks * 16;
    const std::size_t scales = type == 2 ? 8 : 0;
    const int width = l.latent ? l.key_width : l.key_width + l.value_width;
    return positions * (width * element(type) + scales) + 4 * 64;
}

}  // namespace
}  // namespace apr

using apr::Model;

void* apr_model_new(int threads, const char* set) {
    const apr::Kernels* k = apr::kernels(set);
    return k == nullptr || threads < 1 ? nullptr : new Model(threads, k);
}

void apr_model_free(void* model) { delete static_cast<Model*>(model); }

int64_t apr_packed_bytes(int type, int64_t rows, int64_t columns) {
    if (apr::float_bytes(type)) return 0;
    const apr::Layout* l = apr::layout(type);
    if (l == nullptr || columns % l->source_columns) return -1;
    return (rows + 15) / 16 * (int64_t)apr::row_block_bytes(type, columns);
}

void apr_pack(void* model, int type, int rows, int columns, const void* source, void* target) {
    Model& m = *static_cast<Model*>(model);
    m.settle();
    const int blocks = (rows + 15) / 16;
    std::atomic<int> next{0};
    m.pool->run([&](int) {
        for (int first; (first = next.fetch_add(8)) < blocks;)
            apr::pack(type, rows, columns, static_cast<const std::uint8_t*>(source), first,
                      blocks - first < 8 ? blocks - first : 8, static_cast<std::uint8_t*>(target));
    });
}

int apr_add_weight(void* model, int type, int rows, int columns, const void* data) {
    Model& m = *static_cast<Model*>(model);
    m.weights.push_back({type, rows, columns, static_cast<const std::uint8_t*>(data)});
    return (int)m.weights.size() - 1;
}

int apr_add_vector(void* model, const float* data) {
    Model& m = *static_cast<Model*>(model);
    m.vectors.push_back(data);
    return (int)m.vectors.size() - 1;
}

void apr_set_program(void* model, const AprOp* ops, int count, const int32_t* widths, int buffers,
                     int most) {
    Model& m = *static_cast<Model*>(model);
    m.ops.assign(ops, ops + count);
    m.widths.assign(widths, widths + buffers);
    m.most = most;
    m.counters = std::make_unique<std::atomic<int>[]>((std::size_t)count * apr::kStages);
    m.chosen = 1;
    for (const AprOp& op : m.ops)
        if (op.kind == apr::kExperts && op.a[10] > m.chosen) m.chosen = op.a[10];
    // What a product reads is decided by the types of the weights that follow its preparation.
    for (int i = 0; i < count; ++i) {
        if (m.ops[i].kind != apr::kPrepare) continue;
        int few = 0, many = 0;
        for (int j = i + 1; j < count && m.ops[j].kind != apr::kPrepare; ++j) {
            const auto need = [&](int w) {
                few |= m.kernels->forms(m.weights[w].type, 1);
                many |= m.kernels->forms(m.weights[w].type, 1 << 20);
            };
            if (m.ops[j].kind == apr::kMatmul || m.ops[j].kind == apr::kGated) need(m.ops[j].a[0]);
            if (m.ops[j].kind == apr::kGated) need(m.ops[j].a[1]);
        }
        m.ops[i].a[5] = few;
        m.ops[i].a[6] = many;
    }
    m.next.assign(count, -1);
    for (int i = count - 2; i >= 0; --i) {
        const int kind = m.ops[i + 1].kind;
        if (kind == apr::kMatmul || kind == apr::kGated) m.next[i] = i + 1;
        else if (kind != apr::kExperts) m.next[i] = m.next[i + 1];
    }
    apr::make_room(m);
}

int64_t apr_cache_bytes(const AprLayer* layers, int count, int type) {
    int64_t total = 0;
    for (int i = 0; i < count; ++i) total += (int64_t)apr::layer_bytes(layers[i], type);
    return total;
}

void* apr_cache_new(const AprLayer* layers, int count, int type) {
    auto cache = std::make_unique<apr::Cache>();
    cache->pages = std::make_unique<apr::Pages>((std::size_t)apr_cache_bytes(layers, count, type));
    std::uint8_t* p = cache->pages->data();
    if (p == nullptr) return nullptr;
    const auto take = [&](std::size_t bytes) {
        std::uint8_t* at = p;
        p += (bytes + 63) / 64 * 64;
        return at;
    };
    for (int i = 0; i < count; ++i) {
        const AprLayer& l = layers[i];
        const std::size_t positions = (std::size_t)l.kv_heads * l.blocks * 16;
        apr::LayerCache c{};
        c.kv_heads = l.kv_heads;
        c.key_width = l.key_width;
        c.value_width = l.value_width;
        c.blocks = l.blocks;
        c.type = type;
        c.latent = l.latent != 0;
        if (!c.latent) c.keys = take(positions * l.key_width * apr::element(type));
        c.values = take(positions * (c.latent ? l.key_width : l.value_width) * apr::element(type));
        if (type == 2) {
            c.key_scales = (float*)take(positions * 4);
            c.value_scales = (float*)take(positions * 4);
        }
        cache->layers.push_back(c);
    }
    return cache.release();
}

void apr_cache_free(void* cache) { delete static_cast<apr::Cache*>(cache); }

void apr_run(void* model, void* cache, const int32_t* ids, int count, int64_t past,
             const float* const* angles, float* logits, int last) {
    Model& m = *static_cast<Model*>(model);
    apr::Cache* const one = static_cast<apr::Cache*>(cache);
    apr::run({m, &one, ids, count, past, nullptr, angles, logits, last});
}

void apr_run_rows(void* model, void* const* caches, const int64_t* positions, const int32_t* ids,
                  int count, const float* const* angles, float* logits) {
    Model& m = *static_cast<Model*>(model);
    std::vector<apr::Cache*> own;
    for (int i = 0; i < count; ++i) own.push_back(static_cast<apr::Cache*>(caches[i]));
    apr::run({m, own.data(), ids, count, 0, positions, angles, logits, count});
}

void apr_unpack_row(void* model, int weight, int row, float* out) {
    Model& m = *static_cast<Model*>(model);
    m.kernels->unpack_row(m.weights[weight], row, out);
}

void apr_matmul(void* model, int weight, const float* x, int tokens, float* out) {
    Model& m = *static_cast<Model*>(model);
    m.settle();
    const apr::Weight& w = m.weights[weight];
    const int padded = (w.columns + 31) / 32 * 32;
    apr::Pages room(apr::activation_bytes(tokens, padded) + 4096);
    apr::Activation a = apr::lay_out(room.data(), tokens, padded);
    a.tokens = tokens;
    a.width = w.columns;
    a.padded = padded;
    const int forms = m.kernels->forms(w.type, tokens);
    for (int t = 0; t < tokens; ++t) m.kernels->prepare(x + (std::size_t)t * w.columns, a, t, forms);
    const int blocks = (w.rows + 15) / 16;
    std::atomic<int> next{0};
    const std::size_t bytes = apr::scratch_bytes(padded, 64);
    m.pool->run([&](int) {
        apr::Pages scratch(bytes);
        for (int first; (first = next.fetch_add(4)) < blocks;)
            m.kernels->matmul(w, a, first, blocks - first < 4 ? blocks - first : 4, out, w.rows,
                              nullptr, false, scratch.data());
    });
}

double apr_read_memory(void* model, const void* data, int64_t bytes) {
    Model& m = *static_cast<Model*>(model);
    m.settle();
    const int threads = m.pool->threads();
    std::atomic<std::uint64_t> sink{0};
    const auto start = std::chrono::steady_clock::now();
    m.pool->run([&](int thread) {
        typedef std::uint64_t words __attribute__((vector_size(64)));
        // Four runs at once, as the kernels read: one alone leaves reads of a core unused.
        const int64_t run = bytes / threads / 4 / 64 * 64;
        const std::uint8_t* p = static_cast<const std::uint8_t*>(data) + 4 * run * thread;
        words a{}, b{}, c{}, d{};
        for (int64_t i = 0; i < run; i += 64) {
            words w[4];
            for (int k = 0; k < 4; ++k) std::memcpy(&w[k], p + k * run + i, 64);
            a ^= w[0], b ^= w[1], c ^= w[2], d ^= w[3];
        }
        a ^= b ^ c ^ d;
        sink.fetch_xor(a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7]);
    });
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return sink.load() == 1 ? seconds + 1e-12 : seconds;
}
