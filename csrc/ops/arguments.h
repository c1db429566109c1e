// The operators' arguments, as the dispatcher hands them over, and their way into and out of the host boundary.
#pragma once

#include <ATen/core/List.h>

#include <tuple>
#include <vector>

#include "../matching.h"

namespace l2t_fast {

using OptionalTensorList = c10::List<std::optional<at::Tensor>>;

// Wherever an operator takes or returns "one entry a slot", the slots are the differentiable inputs in this order:
// every target, every pair's weight, every pair's bias (with or without one), alpha.
//   needs       bool[], one a slot
//   directions  Tensor?[], one a slot, None for zero
//   gradients   Tensor[], only the slots whose need is set, in slot order
inline size_t slot_count(size_t targets, size_t pairs) { return targets + 2 * pairs + 1; }

// Whose kernels an operator has, by its namespace: torch.ops.l2t_fast's are in C++ and CUDA,
// torch.ops.l2t_fast_triton's in Triton, where Python defines those (l2t_fast/ops/triton/operators.py) with the same
// schemas. Derivatives are one.
enum class Family : uint8_t { native, triton };

// What every operator starts with: the problem, unchecked, and the needs. Owns references to its tensors.
struct Arguments {
  std::vector<at::Tensor> sources;
  std::vector<at::Tensor> targets;
  std::vector<at::Tensor> weights;  // (C_m, C_n), or (C_m, C_n, 1, 1) as a convolution has it
  OptionalTensorList biases;
  at::Tensor alpha;
  std::vector<int64_t> pairs;  // m0, n0, m1, n1, ...
  c10::List<bool> needs;
  Family family = Family::native;

  // The differentiable inputs, one a slot; undefined where a pair has no bias.
  std::vector<at::Tensor> inputs() const;
};

// Checks everything the kernels rely on and says in one sentence what is wrong (ValueError, TypeError).
MatchingProblem checked_problem(const Arguments& arguments);
Needs checked_needs(const Arguments& arguments);
Direction checked_direction(const Arguments& arguments, const OptionalTensorList& directions);

// The result's defined tensors in slot order: the ones whose need is set.
std::vector<at::Tensor> needed_only(const Tangents& result, const Needs& needs);

// Times a scalar on their device, in one launch on a GPU for all that have its type.
void scale_in_place(at::TensorList tensors, const at::Tensor& factor);
std::vector<at::Tensor> scaled(at::TensorList tensors, const at::Tensor& factor);

// The number of the capture, into a CUDA graph, that work on a tensor's device goes into now, 0 without one; nothing
// where there is one and nobody tells which.
std::optional<int64_t> capture_now(const at::Tensor& tensor);

// Typed calls through the dispatcher, of the arguments' family.
std::tuple<at::Tensor, std::vector<at::Tensor>> call_matching_forward(const Arguments& arguments);
at::Tensor call_matching_loss(const Arguments& arguments);
std::vector<at::Tensor> call_matching_backward(const at::Tensor& grad_loss, at::TensorList gradients,
                                               const Arguments& arguments);
std::vector<at::Tensor> call_matching_hvp(const Arguments& arguments, const OptionalTensorList& directions);

}  // namespace l2t_fast
