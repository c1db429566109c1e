// The CPU implementation of the operators' two functions.
#include "../matching.h"

#include <cmath>
#include <limits>
#include <utility>

#include "../results.h"
#include "layers.h"
#include "memory.h"

namespace l2t_fast {
namespace {

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
  Gradient gradient = empty_results(problem, needs, cpu::pooled_gradient);
  const double loss = run(problem, nullptr, needs, gradient);
  // Beyond float's range it is inf, as wherever else float32 overflows; at::full would refuse the number.
  const bool beyond = problem.alpha.scalar_type() == at::kFloat && std::abs(loss) > std::numeric_limits<float>::max();
  const double kept = beyond ? std::copysign(std::numeric_limits<double>::infinity(), loss) : loss;
  return {at::full({}, kept, problem.alpha.options()), std::move(gradient)};
}

HessianVector matching_hvp_cpu(const MatchingProblem& problem, const Direction& direction, const Needs& needs) {
  HessianVector product = empty_results(problem, needs, cpu::pooled_gradient);
  run(problem, &direction, needs, product);
  return product;
}

}  // namespace l2t_fast
