// The CPU implementation of the operators' two functions.
#include "../matching.h"

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <map>
#include <utility>

#include "layers.h"

namespace l2t_fast {
namespace {

// A gradient as large as a feature map is memory fresh from the system, and its page faults cost a sixth of the whole
// pass with pages of 4 KiB. Huge ones are asked for where the system lets a program ask (transparent_hugepage =
// madvise).
void advise_huge_pages([[maybe_unused]] const at::Tensor& fresh) {
#ifdef MADV_HUGEPAGE
  constexpr size_t smallest = 4 << 20;
  if (fresh.nbytes() < smallest) return;
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(fresh.data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + fresh.nbytes()) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: a failure changes nothing
#endif
}

Tangents empty_gradients(const MatchingProblem& problem, const Needs& needs) {
  const auto empty = [](const at::Tensor& input, bool wanted) { return wanted ? empty_gradient(input) : at::Tensor(); };
  Tangents gradient;
  for (size_t n = 0; n < problem.targets.size(); ++n)
    gradient.targets.push_back(empty(problem.targets[n], needs.targets[n]));
  for (const at::Tensor& target : gradient.targets)
    if (target.defined()) advise_huge_pages(target);
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
