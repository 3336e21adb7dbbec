// The kernels of the set "avx2".
#include "kernels.h"
#include "simd.h"

namespace apr {
namespace avx2 {
namespace {

// Up to so many tokens are multiplied one by one: unpacking a panel would cost more.
constexpr int kFew = 8;

#include "kernels_impl.h"

}  // namespace

extern const Kernels table = {"avx2",  forms,  norm,        prepare, matmul,     act,
                              rope,  cache_store, attend, unpack_row, softcap,
                              mix_rows, dot_each};

}  // namespace avx2
}  // namespace apr
