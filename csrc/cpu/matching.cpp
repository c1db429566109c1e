// The CPU implementation of the operators' two functions.
#include "../matching.h"

#include <cstdint>
#include <map>
#include <utility>

#include "layers.h"
#include "memory.h"

namespace l2t_fast {
namespace {

Tangents empty_gradients(const MatchingProblem& problem, const Needs& needs) {
  const auto empty = [](const at::Tensor& input, bool wanted) {
    return wanted ? cpu::pooled_gradient(input) : at::Tensor();
  };
  Tangents gradient;
  for (size_t n = 0; n < problem.targets.size(); ++n)
    gradient.targets.push_back(empty(problem.targets[n], needs.targets[n]));
  for (size_t p = 0; p < problem.pairs.size(); ++p) {
    gradient.weights.push_back(empty(problem.weights[p], needs.weights[p]));
    gradient.biases.push_back(empty(problem.biases[p], needs.biases[p]));
  }
  gradient.alpha = empty(problem.alpha, needs.alpha);
  return gradient;
}

// The targets with something to compute, each with its pairs. What has nothing to sum gets its zeros here.
std::map<int64_t, std::vector<int64_t>> pairs_by_target(const MatchingProblem& problem, const Needs& needs,
                                                        const Tangents& gradient) {
  std::map<int64_t, std::vector<int64_t>> groups;
  for (size_t p = 0; p < problem.pairs.size(); ++p) {
    const Pair& pair = problem.pairs[p];
    const at::Tensor& target = problem.targets[pair.target];
    const int64_t channels = problem.sources[pair.source].size(1);
    if (target.size(0) * target.size(2) * target.size(3) > 0 && channels > 0) {
      groups[pair.target].push_back(int64_t(p));
      continue;
    }
    if (needs.weights[p]) gradient.weights[p].zero_();
    if (needs.biases[p]) gradient.biases[p].zero_();
    if (needs.alpha) gradient.alpha.narrow(1, pair.alpha_begin, channels).zero_();
  }
  for (size_t n = 0; n < problem.targets.size(); ++n)
    if (needs.targets[n] && !groups.count(int64_t(n))) gradient.targets[n].zero_();
  return groups;
}

// Every target's pairs, one after the other: K1 without a direction, K2 with one.
double run(const MatchingProblem& problem, const Direction* direction, const Needs& needs, const Tangents& result) {
  // The kernels run on plain memory; autograd has nothing to add inside.
  const at::AutoDispatchBelowAutograd below_autograd;
  double loss = 0;
  for (auto& [target, pairs] : pairs_by_target(problem, needs, result))
    loss += cpu::StackedLayer(problem, direction, needs, target, std::move(pairs)).run(result);
  return loss;
}

}  // namespace

LossAndGradient matching_forward_cpu(const MatchingProblem& problem, const Needs& needs) {
  Gradient gradient = empty_gradients(problem, needs);
  const double loss = run(problem, nullptr, needs, gradient);
  return {at::full({}, loss, problem.alpha.options()), std::move(gradient)};
}

HessianVector matching_hvp_cpu(const MatchingProblem& problem, const Direction& direction, const Needs& needs) {
  HessianVector product = empty_gradients(problem, needs);
  run(problem, &direction, needs, product);
  return product;
}

}  // namespace l2t_fast
