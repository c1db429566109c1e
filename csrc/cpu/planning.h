// What the planner decides for given sizes, without computing anything.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "../plan.h"

namespace l2t_fast::cpu {

// One plan a target layer that a pair uses, for all gradients wanted and a direction in all inputs, under torch's
// current number of threads. Shapes are (B, C, H, W).
std::vector<plan::LayerPlan> plan_layers(const std::vector<std::vector<int64_t>>& source_shapes,
                                         const std::vector<std::vector<int64_t>>& target_shapes,
                                         const std::vector<std::pair<int64_t, int64_t>>& pairs, at::ScalarType dtype,
                                         plan::Work work);

}  // namespace l2t_fast::cpu
