// Which rows belong to which adapter slot.
#pragma once

#include <cstdint>

namespace graftwork {

// Rows [start, stop) of one slot: a row of an (n, 3) int32 tensor.
struct Run {
  int32_t slot;
  int32_t start;
  int32_t stop;
};

}  // namespace graftwork
