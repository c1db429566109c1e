// How the work of a call is cut: items, runs of samples, shared memory. Knows records, no torch type.
#pragma once

#include <vector>

#include "runner.h"

namespace l2t_fast::cuda {

struct Plan {
  std::vector<Segment> segments;
  std::vector<Launch> launches;                           // of matching(), each over its own segments
  Launch sums{};                                          // of add_up(); no blocks where there is nothing to add
  int64_t weight_sums = 0, bias_sums = 0, loss_sums = 0;  // floats of partial sums
};

// Sets the pairs' runs and the places of their partial sums. Every target here has pairs, pixels and samples.
Plan make_plan(int64_t batch, const std::vector<Target>& targets, std::vector<Pair>& pairs, bool wants_squares,
               bool second, Products products, const Chip& chip);

}  // namespace l2t_fast::cuda
