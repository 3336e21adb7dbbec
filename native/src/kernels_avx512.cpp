// The kernels of the set "avx512".
namespace apr {
namespace avx512 {

const char* name() { return "avx512"; }

}  // namespace avx512
}  // namespace apr
