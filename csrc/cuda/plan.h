// How the work of a call is cut: parts of targets, items, launches, workspace. Knows records, no torch type.
#pragma once

#include <vector>

#include "runner.h"

namespace l2t_fast::cuda {

// Where a record's pointers begin in the workspace, in bytes.
struct Places {
  int64_t weight = 0, weight_direction = 0, weight_sums = 0, row_sums = 0, bias_sums = 0;
};

struct Plan {
  std::vector<Part> parts;  // their `differences` hold places, as offsets, until bind()
  std::vector<Segment> segments;
  std::vector<Launch> launches;
  std::vector<Places> places;  // one a target
  int64_t loss_sums = 0, loss_count = 0;
  int64_t bytes = 0;  // of the workspace
};

struct Wishes {
  bool second;       // Hessian-vector product instead of loss and gradient
  bool differences;  // E of the directions is wanted beside E': some direction of a map or weight is not zero
};

// Sets what the targets' and pairs' records say of the cut; every target has pairs, rows, pixels and samples.
Plan make_plan(int64_t batch, std::vector<Target>& targets, std::vector<Pair>& pairs, const Wishes& wishes,
               Products products, const Chip& chip);

// Offsets become addresses.
void bind(Plan& plan, std::vector<Target>& targets, unsigned char* workspace);

}  // namespace l2t_fast::cuda
