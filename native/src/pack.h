// Packing of block types: 16 rows side by side.
#ifndef APR_PACK_H
#define APR_PACK_H

#include "types.h"

namespace apr {

// Row blocks [first, first + count) of a weight; `target` is where row block 0 goes.
void pack(int type, int rows, int columns, const std::uint8_t* source, int first, int count,
          std::uint8_t* target);

}  // namespace apr
#endif
