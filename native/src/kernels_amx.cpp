// The kernels of the set "amx".
namespace apr {
namespace amx {

const char* name() { return "amx"; }

}  // namespace amx
}  // namespace apr
