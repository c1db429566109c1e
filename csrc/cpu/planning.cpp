#include "planning.h"

#include <map>

#include "layers.h"

namespace l2t_fast::cpu {

std::vector<plan::LayerPlan> plan_layers(const std::vector<std::vector<int64_t>>& source_shapes,
                                         const std::vector<std::vector<int64_t>>& target_shapes,
                                         const std::vector<std::pair<int64_t, int64_t>>& pairs, at::ScalarType dtype,
                                         plan::Work work) {
  // Sizes are all that counts: every tensor is one element, repeated.
  const auto sized = [&](at::IntArrayRef shape, at::ScalarType type) { return at::zeros({}, type).expand(shape); };
  MatchingProblem problem;
  for (const auto& shape : source_shapes) problem.sources.push_back(sized(shape, dtype));
  for (const auto& shape : target_shapes) problem.targets.push_back(sized(shape, dtype));
  int64_t columns = 0;
  std::map<int64_t, std::vector<int64_t>> pairs_of_target;
  for (const auto& [m, n] : pairs) {
    pairs_of_target[n].push_back(int64_t(problem.pairs.size()));
    problem.pairs.push_back({m, n, columns});
    problem.weights.push_back(sized({source_shapes[m][1], target_shapes[n][1]}, dtype));
    problem.biases.push_back(sized({source_shapes[m][1]}, dtype));
    columns += source_shapes[m][1];
  }
  const int64_t batch = target_shapes.empty() ? 0 : target_shapes[0][0];
  problem.alpha = sized({batch, columns}, dtype == at::kDouble ? at::kDouble : at::kFloat);
  const Needs needs{std::vector<bool>(problem.targets.size(), true), std::vector<bool>(problem.pairs.size(), true),
                    std::vector<bool>(problem.pairs.size(), true), true};
  const Direction direction{problem.targets, problem.weights, problem.biases, problem.alpha};

  std::vector<plan::LayerPlan> plans;
  for (const auto& [target, indices] : pairs_of_target)
    plans.push_back(
        StackedLayer(problem, work == plan::Work::hessian_vector ? &direction : nullptr, needs, target, indices)
            .plan());
  return plans;
}

}  // namespace l2t_fast::cpu
