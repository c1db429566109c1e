// What every device's implementation of the operators does with the memory of results before it computes anything.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "matching.h"

namespace l2t_fast {

// A result for each input that is in need, made by `empty` from the input; undefined where there is no need.
Tangents empty_results(const MatchingProblem& problem, const Needs& needs,
                       at::Tensor (*empty)(const at::Tensor& input));

// The targets with something to compute, each with its pairs. What has nothing to sum gets its zeros here.
std::map<int64_t, std::vector<int64_t>> pairs_by_target(const MatchingProblem& problem, const Needs& needs,
                                                        const Tangents& results);

}  // namespace l2t_fast
