// What this library was built of, and what the processor under it can run.
//
// Sources: Intel's Software Developer's Manual, volume 2 (CPUID, XGETBV) and volume 1, chapters 13
// and 18 (XCR0, AMX); Linux' Documentation/arch/x86/xstate.rst for the permission to use tiles.
#include "build_info.h"

#include <cstring>
#include <initializer_list>

#include "apr_native.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// CMake gives these to this file; an editor or another build may not.
#ifndef APR_VERSION
#define APR_VERSION "unknown"
#endif
#ifndef APR_COMPILER
#define APR_COMPILER "unknown"
#endif
#ifndef APR_FLAGS
#define APR_FLAGS "unknown"
#endif
#ifndef APR_SOURCES
#define APR_SOURCES "unknown"
#endif

namespace apr {
namespace {

#if defined(__x86_64__)
constexpr const char* kArchitecture = "x86-64";
#elif defined(__aarch64__)
constexpr const char* kArchitecture = "aarch64";
#else
constexpr const char* kArchitecture = "other";
#endif

#if defined(__x86_64__)
struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // zeros if unknown
    return r;
}

bool bit(unsigned value, int number) { return (value >> number) & 1u; }

// Which register states the operating system saves; 0 if it does not say.
unsigned long long xcr0(bool osxsave) {
    if (!osxsave) return 0;
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<unsigned long long>(high) << 32) | low;
}

std::vector<Feature> read_features() {
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
    const unsigned long long saved = xcr0(bit(one.ecx, 27));
    const bool ymm = (saved & 0x6) == 0x6;                  // XMM and YMM
    bool zmm = ymm && (saved & 0xe0) == 0xe0;               // opmask, ZMM 0-15, ZMM 16-31
    const bool tiles = (saved & 0x60000) == 0x60000;        // XTILECFG, XTILEDATA
#if defined(__APPLE__)
    // macOS sets the bits of XCR0 only when a thread first uses ZMM registers.
    zmm = ymm && bit(seven.ebx, 16);
#endif
    return {
        {"f16c", ymm && bit(one.ecx, 29)},
        {"fma", ymm && bit(one.ecx, 12)},
        {"avx2", ymm && bit(seven.ebx, 5)},
        {"avx_vnni", ymm && bit(seven_one.eax, 4)},
        {"avx512f", zmm && bit(seven.ebx, 16)},
        {"avx512dq", zmm && bit(seven.ebx, 17)},
        {"avx512bw", zmm && bit(seven.ebx, 30)},
        {"avx512vl", zmm && bit(seven.ebx, 31)},
        {"avx512vbmi", zmm && bit(seven.ecx, 1)},
        {"avx512vnni", zmm && bit(seven.ecx, 11)},
        {"avx512bf16", zmm && bit(seven_one.eax, 5)},
        {"avx512fp16", zmm && bit(seven.edx, 23)},
        {"amx_tile", tiles && bit(seven.edx, 24)},
        {"amx_bf16", tiles && bit(seven.edx, 22)},
        {"amx_int8", tiles && bit(seven.edx, 25)},
    };
}
#elif defined(__aarch64__)
std::vector<Feature> read_features() { return {{"neon", true}}; }
#else
std::vector<Feature> read_features() { return {}; }
#endif

// The features of the list that are missing, joined; empty if none is.
std::string missing(std::initializer_list<const char*> wanted) {
    std::string text;
    for (const char* name : wanted) {
        bool present = false;
        for (const Feature& f : cpu_features()) {
            present = present || (f.present && std::strcmp(f.name, name) == 0);
        }
        if (!present) text += (text.empty() ? "" : ", ") + std::string(name);
    }
    return text;
}

// Tiles must be asked for once in a process, before a thread uses them. Empty if granted.
std::string ask_for_tiles() {
#if defined(__linux__) && defined(__x86_64__)
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return "";
    return std::string("the kernel refuses the permission to use tiles (") + std::strerror(errno) +
           ")";
#else
    return "tiles are used on Linux alone";
#endif
}

KernelSet judge(const char* name, bool built, std::initializer_list<const char*> wanted,
                bool tiles = false) {
    KernelSet set{name, built, false, ""};
    const std::string lacking = missing(wanted);
    if (!built) {
        set.why_not = "not built: the compiler or its target does not have it";
    } else if (!lacking.empty()) {
        set.why_not = "this processor lacks " + lacking;
    } else if (tiles) {
        set.why_not = ask_for_tiles();
    }
    set.usable = set.why_not.empty();
    return set;
}

#if defined(__x86_64__)
#if defined(APR_HAVE_AMX)
constexpr bool kAmx = true;
#else
constexpr bool kAmx = false;
#endif
#if defined(APR_HAVE_AVX512)
constexpr bool kAvx512 = true;
#else
constexpr bool kAvx512 = false;
#endif
#if defined(APR_HAVE_AVX2)
constexpr bool kAvx2 = true;
#else
constexpr bool kAvx2 = false;
#endif
#endif

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return out + "\"";
}

const char* boolean(bool value) { return value ? "true" : "false"; }

std::string build_json() {
    std::string sets;
    for (const KernelSet& set : kernel_sets()) {
        if (set.built) sets += (sets.empty() ? "" : ", ") + quoted(set.name);
    }
    return "{\"version\": " + quoted(APR_VERSION) + ", \"abi\": " + std::to_string(APR_NATIVE_ABI) +
           ", \"compiler\": " + quoted(APR_COMPILER) + ", \"flags\": " + quoted(APR_FLAGS) +
           ", \"architecture\": " + quoted(kArchitecture) + ", \"sets\": [" + sets +
           "], \"sources\": " + quoted(APR_SOURCES) + "}";
}

std::string cpu_json() {
    std::string features;
    for (const Feature& f : cpu_features()) {
        features += (features.empty() ? "" : ", ") + quoted(f.name) + ": " + boolean(f.present);
    }
    return "{\"architecture\": " + quoted(kArchitecture) + ", \"features\": {" + features + "}}";
}

std::string sets_json() {
    std::string text;
    for (const KernelSet& set : kernel_sets()) {
        text += (text.empty() ? "" : ", ") + std::string("{\"name\": ") + quoted(set.name) +
                ", \"built\": " + boolean(set.built) + ", \"usable\": " + boolean(set.usable) +
                ", \"why_not\": " + quoted(set.why_not) + "}";
    }
    return "[" + text + "]";
}

}  // namespace

const std::vector<Feature>& cpu_features() {
    static const std::vector<Feature> features = read_features();
    return features;
}

const std::vector<KernelSet>& kernel_sets() {
    static const std::vector<KernelSet> sets = {
#if defined(__x86_64__)
        judge("amx", kAmx,
              {"amx_tile", "amx_bf16", "amx_int8", "avx512f", "avx512bw", "avx512vl", "avx512dq",
               "avx512vnni", "avx512vbmi", "avx512bf16", "avx2", "fma", "f16c"},
              true),
        judge("avx512", kAvx512,
              {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "avx512vbmi",
               "avx512bf16", "avx2", "fma", "f16c"}),
        judge("avx2", kAvx2, {"avx2", "fma", "f16c"}),
#endif
        judge("portable", true, {}),
    };
    return sets;
}

bool usable(const char* name) {
    for (const KernelSet& set : kernel_sets()) {
        if (std::strcmp(set.name, name) == 0) return set.usable;
    }
    return false;
}

}  // namespace apr

int apr_native_abi(void) { return APR_NATIVE_ABI; }

const char* apr_native_build(void) {
    static const std::string text = apr::build_json();
    return text.c_str();
}

const char* apr_native_cpu(void) {
    static const std::string text = apr::cpu_json();
    return text.c_str();
}

const char* apr_native_sets(void) {
    static const std::string text = apr::sets_json();
    return text.c_str();
}
