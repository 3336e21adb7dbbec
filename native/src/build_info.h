// What this library was built of, and what the processor under it can run.
#ifndef APR_BUILD_INFO_H
#define APR_BUILD_INFO_H

#include <string>
#include <vector>

namespace apr {

struct Feature {
    const char* name;
    bool present;  // the processor has it and the operating system keeps its registers
};

struct KernelSet {
    const char* name;     // "amx", "avx512", "avx2", "portable"
    bool built;           // its source was compiled into this library
    bool usable;          // built, and this process may run it
    std::string why_not;  // empty if usable
};

// Read once, at the first call; safe to call from several threads.
const std::vector<Feature>& cpu_features();

// The fastest first; the last, portable, is always usable.
const std::vector<KernelSet>& kernel_sets();

// True if the set of that name is usable.
bool usable(const char* set);

}  // namespace apr

#endif
