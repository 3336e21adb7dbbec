// The kernels of the set "amx".
#include "kernels.h"
#include "simd.h"
#define APR_BF16_PANELS 1
#define APR_TILES 1

namespace apr {
namespace amx {
namespace {

// Up to so many tokens are multiplied one by one: unpacking a panel would cost more.
constexpr int kFew = 8;

#include "kernels_impl.h"

}  // namespace

extern const Kernels table = {"amx",  forms,  norm,        prepare, matmul,     act,
                              rope,  cache_store, attend, unpack_row, softcap,
                              mix_rows, dot_each};

}  // namespace amx
}  // namespace apr
