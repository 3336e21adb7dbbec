// The kernels of the set "avx512".
#include "kernels.h"
#include "simd.h"
#define APR_BF16_PANELS 1

namespace apr {
namespace avx512 {
namespace {

// Up to so many tokens are multiplied one by one: unpacking a panel would cost more.
constexpr int kFew = 8;

#include "kernels_impl.h"

}  // namespace

extern const Kernels table = {"avx512",  forms,  norm,        prepare, matmul,     act,
                              rope,  cache_store, attend, unpack_row, softcap,
                              mix_rows, dot_each};

}  // namespace avx512
}  // namespace apr
