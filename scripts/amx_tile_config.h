// For building llama.cpp with GCC before 12.4 or 13.3: -include this file.
//
// Their _tile_loadconfig tells the compiler that 8 of the configuration's 64 bytes are read, and the
// stores to the others are dropped (GCC's bug 114098); ldtilecfg then faults. This reads all 64.
#if defined(__cplusplus) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
struct apr_tile_config {
    char bytes[64];
} __attribute__((may_alias));
#define _tile_loadconfig(c) \
    __asm__ volatile("ldtilecfg\t%X0" ::"m"(*((const apr_tile_config*)(c))))
#endif
