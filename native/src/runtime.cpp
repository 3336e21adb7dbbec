// What runs between Python's call and the kernels: chooses the set, owns the threads.
#include "apr_native.h"
