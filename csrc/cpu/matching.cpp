// The CPU implementation of the operators' two functions.
#include "../matching.h"

#include <map>
#include <utility>

#include "layers.h"

namespace l2t_fast {
namespace {

// One pair's operands in the type of computation, pixels flattened.
struct PairOperands {
  at::Tensor target;      // (B, C_n, P)
  at::Tensor weight;      // (C_m, C_n)
  at::Tensor alpha;       // (B, C_m, 1)
  at::Tensor difference;  // D, (B, C_m, P)
};

at::Tensor flat_target(const at::Tensor& target, at::ScalarType type) { return target.to(type).flatten(2); }

at::Tensor pair_alpha(const at::Tensor& alpha, const Pair& pair, int64_t channels) {
  return alpha.narrow(1, pair.alpha_begin, channels).unsqueeze(2);
}

at::Tensor resized_source(const at::Tensor& source, const at::Tensor& target, at::ScalarType type) {
  at::Tensor features = source.to(type);
  const int64_t height = target.size(2), width = target.size(3);
  if (source.size(2) != height || source.size(3) != width) {
    features = features.numel() == 0 || height * width == 0
                   ? features.new_zeros({source.size(0), source.size(1), height, width})
                   : at::upsample_bilinear2d(features, {height, width}, /*align_corners=*/false);
  }
  return features.flatten(2);
}

PairOperands pair_operands(const MatchingProblem& problem, size_t index) {
  const at::ScalarType type = problem.alpha.scalar_type();
  const Pair& pair = problem.pairs[index];
  const at::Tensor& source = problem.sources[pair.source];
  const at::Tensor& target = problem.targets[pair.target];
  PairOperands operands;
  operands.target = flat_target(target, type);
  operands.weight = problem.weights[index].to(type);
  operands.alpha = pair_alpha(problem.alpha, pair, source.size(1));
  operands.difference = at::matmul(operands.weight, operands.target).sub_(resized_source(source, target, type));
  if (problem.biases[index].defined()) operands.difference.add_(problem.biases[index].to(type).unsqueeze(1));
  return operands;
}

// sum over samples of left (B, M, P) right (B, N, P)^T: (M, N)
at::Tensor product_over_samples(const at::Tensor& left, const at::Tensor& right) {
  return at::matmul(left, right.transpose(1, 2)).sum(0);
}

// Accumulators in the type of computation; converted to the inputs' types and layouts at the end.
Tangents zero_accumulators(const MatchingProblem& problem, const Needs& needs) {
  const at::ScalarType type = problem.alpha.scalar_type();
  const auto zeros = [&](const at::Tensor& input) { return at::zeros(input.sizes(), input.options().dtype(type)); };
  Tangents sums;
  sums.targets.resize(problem.targets.size());
  sums.weights.resize(problem.pairs.size());
  sums.biases.resize(problem.pairs.size());
  for (size_t n = 0; n < problem.targets.size(); ++n)
    if (needs.targets[n]) sums.targets[n] = zeros(problem.targets[n]).flatten(2);
  for (size_t p = 0; p < problem.pairs.size(); ++p) {
    if (needs.weights[p]) sums.weights[p] = zeros(problem.weights[p]);
    if (needs.biases[p]) sums.biases[p] = zeros(problem.biases[p]);
  }
  if (needs.alpha) sums.alpha = zeros(problem.alpha);
  return sums;
}

Tangents to_outputs(const MatchingProblem& problem, const Tangents& sums) {
  const auto output = [](const at::Tensor& input, const at::Tensor& sum) {
    return sum.defined() ? empty_gradient(input).copy_(sum.view(input.sizes())) : at::Tensor();
  };
  Tangents results;
  for (size_t n = 0; n < problem.targets.size(); ++n)
    results.targets.push_back(output(problem.targets[n], sums.targets[n]));
  for (size_t p = 0; p < problem.pairs.size(); ++p) {
    results.weights.push_back(output(problem.weights[p], sums.weights[p]));
    results.biases.push_back(output(problem.biases[p], sums.biases[p]));
  }
  results.alpha = output(problem.alpha, sums.alpha);
  return results;
}

Gradient empty_gradients(const MatchingProblem& problem, const Needs& needs) {
  const auto empty = [](const at::Tensor& input, bool wanted) { return wanted ? empty_gradient(input) : at::Tensor(); };
  Gradient gradient;
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
                                                        const Gradient& gradient) {
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

}  // namespace

LossAndGradient matching_forward_cpu(const MatchingProblem& problem, const Needs& needs) {
  // The kernels run on plain memory; autograd and dispatch have nothing to add inside.
  const at::AutoDispatchBelowAutograd below_autograd;
  LossAndGradient result{at::Tensor(), empty_gradients(problem, needs)};
  double loss = 0;
  for (auto& [target, pairs] : pairs_by_target(problem, needs, result.gradient)) {
    cpu::StackedLayer layer(problem, needs, target, std::move(pairs), plan::Work::gradient);
    loss += layer.forward(result);
  }
  result.loss = at::full({}, loss, problem.alpha.options());
  return result;
}

HessianVector matching_hvp_cpu(const MatchingProblem& problem, const Direction& direction, const Needs& needs) {
  const at::ScalarType type = problem.alpha.scalar_type();
  Tangents sums = zero_accumulators(problem, needs);
  for (size_t p = 0; p < problem.pairs.size(); ++p) {
    const Pair& pair = problem.pairs[p];
    const PairOperands operands = pair_operands(problem, p);
    const at::Tensor& difference = operands.difference;
    const int64_t channels = difference.size(1);

    at::Tensor v_target, v_weight;
    at::Tensor change = at::zeros_like(difference);  // V
    if (direction.targets[pair.target].defined()) {
      v_target = flat_target(direction.targets[pair.target], type);
      change.add_(at::matmul(operands.weight, v_target));
    }
    if (direction.weights[p].defined()) {
      v_weight = direction.weights[p].to(type);
      change.add_(at::matmul(v_weight, operands.target));
    }
    if (direction.biases[p].defined()) change.add_(direction.biases[p].to(type).unsqueeze(1));

    const at::Tensor error = difference * (2 * operands.alpha);
    at::Tensor error_change = change * (2 * operands.alpha);  // E'
    if (direction.alpha.defined())
      error_change.add_(difference * (2 * pair_alpha(direction.alpha.to(type), pair, channels)));

    if (needs.alpha) sums.alpha.narrow(1, pair.alpha_begin, channels).copy_((difference * change).sum(2).mul_(2));
    if (needs.targets[pair.target]) {
      sums.targets[pair.target].add_(at::matmul(operands.weight.t(), error_change));
      if (v_weight.defined()) sums.targets[pair.target].add_(at::matmul(v_weight.t(), error));
    }
    if (needs.weights[p]) {
      sums.weights[p].copy_(product_over_samples(error_change, operands.target));
      if (v_target.defined()) sums.weights[p].add_(product_over_samples(error, v_target));
    }
    if (needs.biases[p]) sums.biases[p].copy_(error_change.sum(at::IntArrayRef({0, 2})));
  }
  return to_outputs(problem, sums);
}

}  // namespace l2t_fast
