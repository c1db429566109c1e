// The operators, their schemas, and their kernels for the CPU, for CUDA and for tensors without data (meta, fake).
//
// All are functional: outputs alias neither inputs nor each other. "slots" and the meaning of needs, directions and the
// returned lists: arguments.h.
#include <c10/core/impl/COW.h>
#include <torch/library.h>

#include "../cuda/emulation.h"
#include "../cuda/matching.h"
#include "arguments.h"

namespace l2t_fast {

namespace {

Arguments pack(at::TensorList sources, at::TensorList targets, at::TensorList weights, const OptionalTensorList& biases,
               const at::Tensor& alpha, at::IntArrayRef pairs, const c10::List<bool>& needs) {
  return {sources.vec(), targets.vec(), weights.vec(), biases, alpha, pairs.vec(), needs};
}

using Forward = LossAndGradient(const MatchingProblem&, const Needs&);
using HessianVectorProduct = HessianVector(const MatchingProblem&, const Direction&, const Needs&);

// Below, autocast is still on for the thread and would run the kernels' matrix products in half precision.

template <Forward* compute>
std::tuple<at::Tensor, std::vector<at::Tensor>> forward_on(at::TensorList sources, at::TensorList targets,
                                                           at::TensorList weights, const OptionalTensorList& biases,
                                                           const at::Tensor& alpha, at::IntArrayRef pairs,
                                                           const c10::List<bool>& needs) {
  const auto arguments = pack(sources, targets, weights, biases, alpha, pairs, needs);
  const auto problem = checked_problem(arguments);
  const auto wanted = checked_needs(arguments);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  auto [loss, gradient] = compute(problem, wanted);
  return {std::move(loss), needed_only(gradient, wanted)};
}

template <HessianVectorProduct* compute>
std::vector<at::Tensor> hvp_on(at::TensorList sources, at::TensorList targets, at::TensorList weights,
                               const OptionalTensorList& biases, const at::Tensor& alpha, at::IntArrayRef pairs,
                               const OptionalTensorList& directions, const c10::List<bool>& needs) {
  const auto arguments = pack(sources, targets, weights, biases, alpha, pairs, needs);
  const auto problem = checked_problem(arguments);
  const auto wanted = checked_needs(arguments);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return needed_only(compute(problem, checked_direction(arguments, directions), wanted), wanted);
}

LossAndGradient forward_cpu_or_emulated(const MatchingProblem& problem, const Needs& needs) {
  cuda::Runner* const emulated = cuda::emulated_runner();
  return emulated ? cuda::matching_forward(*emulated, problem, needs) : matching_forward_cpu(problem, needs);
}

HessianVector hvp_cpu_or_emulated(const MatchingProblem& problem, const Direction& direction, const Needs& needs) {
  cuda::Runner* const emulated = cuda::emulated_runner();
  return emulated ? cuda::matching_hvp(*emulated, problem, direction, needs)
                  : matching_hvp_cpu(problem, direction, needs);
}

// What the gradients are made for is autograd's: without it nothing but the loss is seen.
at::Tensor loss_alone(at::TensorList sources, at::TensorList targets, at::TensorList weights,
                      const OptionalTensorList& biases, const at::Tensor& alpha, at::IntArrayRef pairs,
                      const c10::List<bool>& needs) {
  return std::get<0>(call_matching_forward(pack(sources, targets, weights, biases, alpha, pairs, needs)));
}

// gradients belong to loss; grad_loss is a scalar. The problem is what the double backward needs, no more is done here.
std::vector<at::Tensor> backward_scale(const at::Tensor& grad_loss, at::TensorList gradients, at::TensorList,
                                       at::TensorList, at::TensorList, const OptionalTensorList&, const at::Tensor&,
                                       at::IntArrayRef, const c10::List<bool>&) {
  return scaled(gradients, grad_loss);
}

// Whether copy on write can take a tensor: not its memory from elsewhere, a file's or NumPy's, which a hook on saved
// tensors may hand out.
bool clones_lazily(const at::Tensor& tensor) {
  const c10::StorageImpl& storage = *tensor.storage().unsafeGetStorageImpl();
  const bool known =
      c10::impl::cow::has_simple_data_ptr(storage) || c10::impl::cow::is_cow_data_ptr(storage.data_ptr());
  return known && tensor.is_non_overlapping_and_dense();
}

// Times one is the usual case, and all that a double backward needs of this operator is the graph: such a copy is made
// only if somebody writes to it or to the original (copy on write).
std::vector<at::Tensor> backward_cpu(const at::Tensor& grad_loss, at::TensorList gradients, at::TensorList sources,
                                     at::TensorList targets, at::TensorList weights, const OptionalTensorList& biases,
                                     const at::Tensor& alpha, at::IntArrayRef pairs, const c10::List<bool>& needs) {
  if (grad_loss.numel() != 1 || grad_loss.item<double>() != 1)
    return backward_scale(grad_loss, gradients, sources, targets, weights, biases, alpha, pairs, needs);
  std::vector<at::Tensor> copies;
  copies.reserve(gradients.size());
  for (const auto& gradient : gradients)
    copies.push_back(clones_lazily(gradient) ? at::_lazy_clone(gradient) : at::mul(gradient, grad_loss));
  return copies;
}

// Shapes alone, symbolic ones included; wrong shapes are found where the data is.
std::vector<at::Tensor> empty_results(const Arguments& arguments) {
  const auto inputs = arguments.inputs();
  TORCH_CHECK_VALUE(arguments.needs.size() == inputs.size(), "got ", arguments.needs.size(), " needs; ", inputs.size(),
                    " are needed");
  std::vector<at::Tensor> results;
  for (size_t slot = 0; slot < inputs.size(); ++slot) {
    if (!arguments.needs.get(slot)) continue;
    TORCH_CHECK_VALUE(inputs[slot].defined(), "need ", slot, " asks for the gradient of a bias that is None");
    results.push_back(empty_gradient(inputs[slot]));
  }
  return results;
}

std::tuple<at::Tensor, std::vector<at::Tensor>> forward_meta(at::TensorList sources, at::TensorList targets,
                                                             at::TensorList weights, const OptionalTensorList& biases,
                                                             const at::Tensor& alpha, at::IntArrayRef pairs,
                                                             const c10::List<bool>& needs) {
  return {at::empty({}, alpha.options()), empty_results(pack(sources, targets, weights, biases, alpha, pairs, needs))};
}

std::vector<at::Tensor> hvp_meta(at::TensorList sources, at::TensorList targets, at::TensorList weights,
                                 const OptionalTensorList& biases, const at::Tensor& alpha, at::IntArrayRef pairs,
                                 const OptionalTensorList&, const c10::List<bool>& needs) {
  return empty_results(pack(sources, targets, weights, biases, alpha, pairs, needs));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(l2t_fast, library) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  library.def(
      "matching_forward(Tensor[] sources, Tensor[] targets, Tensor[] weights, Tensor?[] biases, Tensor alpha, "
      "int[] pairs, bool[] needs) -> (Tensor loss, Tensor[] gradients)",
      tags);
  library.def(
      "matching_loss(Tensor[] sources, Tensor[] targets, Tensor[] weights, Tensor?[] biases, Tensor alpha, "
      "int[] pairs, bool[] needs) -> Tensor loss",
      tags);
  library.def(
      "matching_backward(Tensor grad_loss, Tensor[] gradients, Tensor[] sources, Tensor[] targets, Tensor[] weights, "
      "Tensor?[] biases, Tensor alpha, int[] pairs, bool[] needs) -> Tensor[] scaled",
      tags);
  library.def(
      "matching_hvp(Tensor[] sources, Tensor[] targets, Tensor[] weights, Tensor?[] biases, Tensor alpha, "
      "int[] pairs, Tensor?[] directions, bool[] needs) -> Tensor[] products",
      tags);
}

TORCH_LIBRARY_IMPL(l2t_fast, CompositeExplicitAutograd, library) { library.impl("matching_loss", loss_alone); }

TORCH_LIBRARY_IMPL(l2t_fast, CPU, library) {
  library.impl("matching_forward", forward_on<forward_cpu_or_emulated>);
  library.impl("matching_backward", backward_cpu);
  library.impl("matching_hvp", hvp_on<hvp_cpu_or_emulated>);
}

#ifdef L2T_FAST_WITH_CUDA
TORCH_LIBRARY_IMPL(l2t_fast, CUDA, library) {
  library.impl("matching_forward", forward_on<matching_forward_cuda>);
  library.impl("matching_backward", backward_scale);
  library.impl("matching_hvp", hvp_on<matching_hvp_cuda>);
}
#endif

TORCH_LIBRARY_IMPL(l2t_fast, Meta, library) {
  library.impl("matching_forward", forward_meta);
  library.impl("matching_backward", backward_scale);
  library.impl("matching_hvp", hvp_meta);
}

}  // namespace l2t_fast
