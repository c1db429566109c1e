// The Gram form of a target: loss and gradients from T T^T and S~ T^T, fewer products where pixels are many, and no E.
// The formulas stand in csrc/README.md; what is here alone is U, the resize of smaller sources, S~ = S U^T: its adjoint
// is applied to T once for each size (shrink), and W^T 2 alpha S is made at the source's size and resized then.
//
//   planes        sums over pixels of T, S~ and S~^2; T U; W^T 2 alpha b
//   products      T T^T, S~ T^T; W^T 2 alpha W; W^T 2 alpha S where sources are smaller
//   projections   M = W T T^T + b (sum T)^T - S~ T^T, and from it Q, the sums of D, and dW
//   targets       dT = (W^T 2 alpha W) T - W^T 2 alpha S~ + W^T 2 alpha b
//
// K2 has the same steps, with the directions beside what they move.
//
// Q and dW are differences of large numbers, so all but dT is made of three products of tf32, and W is not rounded.
// Maps of bfloat16 are multiplied as they are: their products are exact. T U is not, and is the sum of two of them.
#pragma once

#include "lines.h"
#include "tile.h"

namespace l2t_fast::cuda {

// Tiles of 64 of the target's channels, which are few, by 128 rows or pixels.
template <class M>
class GramTiles {
 public:
  L2T_FAST_KERNEL GramTiles(M& m, const Problem& problem, const Target& target)
      : m_(m), problem_(problem), target_(target) {}

 protected:
  static constexpr int height = gram_height, blocks = height / 32;

  // The item's number along its innermost axis, which it leaves behind.
  static L2T_FAST_KERNEL int next(int& item, int count) {
    const int whole = item / count, number = item - whole * count;
    item = whole;
    return number;
  }

  // W or vW from a row on.
  L2T_FAST_KERNEL Packed weights_from(bool moves, int row) const {
    const auto* const weight = static_cast<const float*>(moves ? target_.weight_direction : target_.weight);
    return {weight + int64_t(row) * target_.stride, target_.stride, target_.rows - row};
  }
  // 2 alpha or 2 valpha of a sample's rows.
  L2T_FAST_KERNEL const float* twice(bool moves, int sample) const {
    return target_.gram.coefficients[moves] + int64_t(sample) * target_.rows;
  }

  M& m_;
  const Problem& problem_;
  const Target& target_;
};

}  // namespace l2t_fast::cuda
