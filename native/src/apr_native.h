// The C interface of libapr_native, as apr/native/library.py calls it through ctypes.
//
// Plain C types only, so that one build serves every Python. Whoever changes a signature or the
// meaning of an argument raises APR_NATIVE_ABI here and ABI in apr/native/library.py.
#ifndef APR_NATIVE_H
#define APR_NATIVE_H

#define APR_NATIVE_ABI 1
#define APR_EXPORT extern "C" __attribute__((visibility("default")))

// The number above, as it was when the library was built.
APR_EXPORT int apr_native_abi(void);

// JSON, owned by the library: version, abi, compiler, flags, architecture, sets, sources (a hash).
APR_EXPORT const char* apr_native_build(void);

// JSON, owned by the library: {"architecture": ..., "features": {name: true|false, ...}}.
APR_EXPORT const char* apr_native_cpu(void);

// JSON, owned by the library: [{"name", "built", "usable", "why_not"}, ...], the fastest set first.
APR_EXPORT const char* apr_native_sets(void);

#endif
