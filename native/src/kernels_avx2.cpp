// The kernels of the set "avx2".
namespace apr {
namespace avx2 {

const char* name() { return "avx2"; }

}  // namespace avx2
}  // namespace apr
