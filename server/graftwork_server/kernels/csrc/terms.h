// What adapters add to a linear module's output beyond the low-rank pair: another kind of term for
// each slot, all of a step in one call.
#pragma once

#include <utility>
#include <vector>

#include "circulant.h"
#include "dense.h"
#include "kronecker.h"
#include "parallel.h"
#include "runs.h"
#include "shared_bases.h"
#include "shared_low_rank.h"
#include "sparse.h"
#include "spectral.h"
#include "term.h"

namespace graftwork {

enum TermKind : int64_t {
  kNoTerm,
  kDense,
  kKronecker,
  kCirculant,
  kSparse,
  kSharedLowRank,
  kSharedBases,
  kSpectral,
};

struct TermTile {
  const TermSlot* slot;
  int64_t row;
  int64_t rows;
};

inline void add_term(const TermSlot& slot, const TermRows& rows, Ahead ahead) {
  switch (slot.kind) {
    case kDense:
      return add_dense(parameters_of<Dense>(slot), rows, ahead);
    case kKronecker:
      return add_kronecker(parameters_of<Kronecker>(slot), rows, ahead);
    case kCirculant:
      return add_circulant(parameters_of<Circulant>(slot), rows, ahead);
    case kSparse:
      return add_sparse(parameters_of<Sparse>(slot), rows, ahead);
  }
}

inline void add_terms(const TermSlot* slots, const Run* runs, int64_t count, const float* x,
                      int64_t x_stride, float* y, int64_t y_stride) {
  std::vector<TermTile> tiles;
  std::vector<SharedRow> sharing;
  BasesRows bases;
  SpectralRows spectral;
  for (int64_t i = 0; i < count; ++i) {
    const TermSlot& slot = slots[runs[i].slot];
    if (slot.kind == kSharedLowRank) {
      for (int64_t row = runs[i].start; row < runs[i].stop; ++row)
        sharing.push_back({&parameters_of<SharedLowRank>(slot), row});
    } else if (slot.kind == kSharedBases) {
      for (int64_t row = runs[i].start; row < runs[i].stop; ++row)
        bases.push_back({&parameters_of<SharedBases>(slot), row});
    } else if (slot.kind == kSpectral) {
      for (int64_t row = runs[i].start; row < runs[i].stop; ++row)
        spectral.push_back({&parameters_of<Spectral>(slot), row});
    } else if (slot.kind != kNoTerm) {
      // Long runs in wide tiles; short ones in narrow tiles, for there are few to share out.
      const int64_t height = runs[i].stop - runs[i].start >= 64 ? 16 : 8;
      for (int64_t row = runs[i].start; row < runs[i].stop; row += height)
        tiles.push_back({&slot, row, std::min<int64_t>(height, runs[i].stop - row)});
    }
  }
  const int64_t chunk = std::max<int64_t>(1, divide_up(tiles.size(), 8 * at::get_num_threads()));
  const int64_t last = static_cast<int64_t>(tiles.size()) - 1;
  for_each_chunk(tiles.size(), chunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const TermTile& tile = tiles[i];
      // With two threads the chunk after the next is the likely one.
      const TermTile& next = tiles[std::min(i + 1 < end ? i + 1 : i + 1 + chunk, last)];
      const bool is_new = next.slot != tile.slot;
      add_term(*tile.slot,
               {tile.rows, x + tile.row * x_stride, x_stride, y + tile.row * y_stride, y_stride},
               Ahead(next.slot->data, is_new ? next.slot->bytes : 0));
    }
  });
  add_shared_low_rank(sharing, x, x_stride, y, y_stride);
  add_shared_bases(bases, x, x_stride, y, y_stride);
  if (!spectral.empty()) add_spectral(std::move(spectral), x, x_stride, y, y_stride);
}

}  // namespace graftwork
