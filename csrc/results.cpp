#include "results.h"

namespace l2t_fast {

Tangents empty_results(const MatchingProblem& problem, const Needs& needs,
                       at::Tensor (*empty)(const at::Tensor& input)) {
  const auto made = [empty](const at::Tensor& input, bool wanted) { return wanted ? empty(input) : at::Tensor(); };
  Tangents results;
  for (size_t n = 0; n < problem.targets.size(); ++n)
    results.targets.push_back(made(problem.targets[n], needs.targets[n]));
  for (size_t p = 0; p < problem.pairs.size(); ++p) {
    results.weights.push_back(made(problem.weights[p], needs.weights[p]));
    results.biases.push_back(made(problem.biases[p], needs.biases[p]));
  }
  results.alpha = made(problem.alpha, needs.alpha);
  return results;
}

std::map<int64_t, std::vector<int64_t>> pairs_by_target(const MatchingProblem& problem, const Needs& needs,
                                                        const Tangents& results) {
  std::map<int64_t, std::vector<int64_t>> groups;
  for (size_t p = 0; p < problem.pairs.size(); ++p) {
    const Pair& pair = problem.pairs[p];
    const at::Tensor& target = problem.targets[pair.target];
    const int64_t channels = problem.sources[pair.source].size(1);
    if (target.size(0) * target.size(2) * target.size(3) > 0 && channels > 0) {
      groups[pair.target].push_back(int64_t(p));
      continue;
    }
    if (needs.weights[p]) results.weights[p].zero_();
    if (needs.biases[p]) results.biases[p].zero_();
    if (needs.alpha) results.alpha.narrow(1, pair.alpha_begin, channels).zero_();
  }
  for (size_t n = 0; n < problem.targets.size(); ++n)
    if (needs.targets[n] && !groups.count(int64_t(n))) results.targets[n].zero_();
  return groups;
}

}  // namespace l2t_fast
