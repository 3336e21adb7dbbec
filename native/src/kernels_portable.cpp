// The kernels of the set "portable".
namespace apr {
namespace portable {

const char* name() { return "portable"; }

}  // namespace portable
}  // namespace apr
