#include "arguments.h"

#include <ATen/core/dispatch/Dispatcher.h>
#ifndef L2T_FAST_WITH_CUDA
#include <pybind11/pybind11.h>
#endif

#include <array>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace l2t_fast {

namespace {

void check_float(const at::Tensor& tensor, const char* what, size_t index) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf, what, " ",
                   index, " has dtype ", type, "; float64, float32, bfloat16 or float16 is needed");
  TORCH_CHECK_TYPE(tensor.layout() == at::kStrided, what, " ", index, " is ", tensor.layout(),
                   "; a strided tensor is needed");
}

void check_same_computation(const at::Tensor& tensor, const at::Tensor& alpha, const char* what, size_t index) {
  TORCH_CHECK_TYPE((tensor.scalar_type() == at::kDouble) == (alpha.scalar_type() == at::kDouble), what, " ", index,
                   " has dtype ", tensor.scalar_type(), " and alpha has dtype ", alpha.scalar_type(),
                   "; either all tensors or none are float64");
  TORCH_CHECK_VALUE(tensor.device() == alpha.device(), what, " ", index, " is on ", tensor.device(),
                    " and alpha is on ", alpha.device(), "; one device is needed");
}

void check_map(const at::Tensor& map, const at::Tensor& alpha, const char* what, size_t index) {
  TORCH_CHECK_VALUE(map.dim() == 4, what, " ", index, " has shape ", map.sizes(),
                    "; (batch, channels, height, width) is needed");
  TORCH_CHECK_VALUE(map.size(0) == alpha.size(0), what, " ", index, " has shape ", map.sizes(), " and alpha has shape ",
                    alpha.sizes(), "; one batch size is needed");
  check_float(map, what, index);
  check_same_computation(map, alpha, what, index);
}

// With its numbers in memory. PyTorch sees to that itself but in lists of optional tensors: there it leaves those whose
// sign it changes when it reads them, and those that are zero without memory.
at::Tensor in_memory(const std::optional<at::Tensor>& given) {
  if (!given || !given->defined()) return {};
  return given->_is_zerotensor() ? at::zeros_like(*given) : given->resolve_neg();
}

bool is_matrix(const at::Tensor& weight, int64_t rows, int64_t columns) {
  return weight.sizes() == at::IntArrayRef{rows, columns} || weight.sizes() == at::IntArrayRef{rows, columns, 1, 1};
}

}  // namespace

std::vector<at::Tensor> Arguments::inputs() const {
  std::vector<at::Tensor> slots(targets);
  slots.reserve(slot_count(targets.size(), weights.size()));
  slots.insert(slots.end(), weights.begin(), weights.end());
  for (const std::optional<at::Tensor> bias : biases) slots.push_back(bias.value_or(at::Tensor()));
  slots.push_back(alpha);
  return slots;
}

MatchingProblem checked_problem(const Arguments& arguments) {
  const auto& [sources, targets, weights, biases, alpha, pairs, needs, family] = arguments;
  const size_t pair_count = weights.size();
  TORCH_CHECK_VALUE(pairs.size() == 2 * pair_count && biases.size() == pair_count, "got ", pair_count, " weights, ",
                    biases.size(), " biases and ", pairs.size(),
                    " pair indices; one weight, one bias (or None) and two indices a pair are needed");
  TORCH_CHECK_VALUE(alpha.dim() == 2, "alpha has shape ", alpha.sizes(),
                    "; (batch, sum of the pairs' source channels) is needed");
  TORCH_CHECK_TYPE(alpha.scalar_type() == at::kFloat || alpha.scalar_type() == at::kDouble, "alpha has dtype ",
                   alpha.scalar_type(), "; float32 or float64 is needed");
  for (size_t i = 0; i < sources.size(); ++i) check_map(sources[i], alpha, "source feature", i);
  for (size_t i = 0; i < targets.size(); ++i) check_map(targets[i], alpha, "target feature", i);

  MatchingProblem problem;
  problem.pairs.reserve(pair_count);
  problem.biases.reserve(pair_count);
  int64_t columns = 0;
  for (size_t p = 0; p < pair_count; ++p) {
    const int64_t m = pairs[2 * p], n = pairs[2 * p + 1];
    TORCH_CHECK_VALUE(
        0 <= m && m < static_cast<int64_t>(sources.size()) && 0 <= n && n < static_cast<int64_t>(targets.size()),
        "pair ", p, " is (", m, ", ", n, ") but there are ", sources.size(), " source and ", targets.size(),
        " target features");
    const auto& source = sources[m];
    const auto& target = targets[n];
    const auto& weight = weights[p];
    const std::optional<at::Tensor> bias = biases.get(p);
    TORCH_CHECK_VALUE(is_matrix(weight, source.size(1), target.size(1)), "pair ", p, " (", m, ", ", n,
                      "): the weight has shape ", weight.sizes(), " where source ", source.sizes(), " and target ",
                      target.sizes(), " need [", source.size(1), ", ", target.size(1), "]");
    check_float(weight, "weight of pair", p);
    check_same_computation(weight, alpha, "weight of pair", p);
    if (bias.has_value() && bias->defined()) {
      TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == source.size(1), "pair ", p, " (", m, ", ", n,
                        "): the bias has shape ", bias->sizes(), " where source ", source.sizes(), " needs [",
                        source.size(1), "]");
      check_float(*bias, "bias of pair", p);
      check_same_computation(*bias, alpha, "bias of pair", p);
    }
    TORCH_CHECK_VALUE(source.size(2) * source.size(3) > 0 || target.size(2) * target.size(3) == 0, "pair ", p, " (", m,
                      ", ", n, "): source ", source.sizes(), " has no pixels to resize to target ", target.sizes());
    problem.pairs.push_back({m, n, columns});
    problem.biases.push_back(in_memory(bias));
    columns += source.size(1);
  }
  TORCH_CHECK_VALUE(alpha.size(1) == columns, "alpha has shape ", alpha.sizes(),
                    " where the pairs' source channels sum to ", columns);
  problem.sources = sources;
  problem.targets = targets;
  problem.weights = weights;
  problem.alpha = alpha;
  return problem;
}

Needs checked_needs(const Arguments& arguments) {
  const size_t targets = arguments.targets.size(), pairs = arguments.weights.size();
  TORCH_CHECK_VALUE(arguments.needs.size() == slot_count(targets, pairs), "got ", arguments.needs.size(),
                    " needs; one a target, a weight, a bias (also where it is None) and alpha, ",
                    slot_count(targets, pairs), " in all, are needed");
  Needs needs;
  size_t slot = 0;
  for (size_t i = 0; i < targets; ++i) needs.targets.push_back(arguments.needs.get(slot++));
  for (size_t i = 0; i < pairs; ++i) needs.weights.push_back(arguments.needs.get(slot++));
  for (size_t i = 0; i < pairs; ++i) {
    const std::optional<at::Tensor> bias = arguments.biases.get(i);
    needs.biases.push_back(arguments.needs.get(slot++));
    TORCH_CHECK_VALUE(!needs.biases.back() || (bias.has_value() && bias->defined()), "a gradient for the bias of pair ",
                      i, " is asked for, but that pair has no bias");
  }
  needs.alpha = arguments.needs.get(slot);
  return needs;
}

Direction checked_direction(const Arguments& arguments, const OptionalTensorList& directions) {
  const size_t targets = arguments.targets.size(), pairs = arguments.weights.size();
  const auto inputs = arguments.inputs();
  TORCH_CHECK_VALUE(directions.size() == inputs.size(), "got ", directions.size(),
                    " directions; one (or None) a target, a weight, a bias and alpha, ", inputs.size(),
                    " in all, are needed");
  std::vector<at::Tensor> slots;
  slots.reserve(inputs.size());
  for (size_t slot = 0; slot < inputs.size(); ++slot) {
    slots.push_back(in_memory(directions.get(slot)));
    const auto& direction = slots.back();
    if (!direction.defined()) continue;
    const auto& input = inputs[slot];
    TORCH_CHECK_VALUE(input.defined(), "direction ", slot, " belongs to a bias that is None; it has to be None too");
    TORCH_CHECK_VALUE(direction.sizes() == input.sizes() && direction.device() == input.device(), "direction ", slot,
                      " has shape ", direction.sizes(), " on ", direction.device(), " where its input has shape ",
                      input.sizes(), " on ", input.device());
    TORCH_CHECK_TYPE(direction.scalar_type() == input.scalar_type() && direction.layout() == at::kStrided, "direction ",
                     slot, " has dtype ", direction.scalar_type(), " where its input has dtype ", input.scalar_type());
  }
  const auto first_weight = slots.begin() + static_cast<ptrdiff_t>(targets);
  const auto first_bias = first_weight + static_cast<ptrdiff_t>(pairs);
  const auto alpha = first_bias + static_cast<ptrdiff_t>(pairs);
  return {{slots.begin(), first_weight}, {first_weight, first_bias}, {first_bias, alpha}, *alpha};
}

std::vector<at::Tensor> needed_only(const Tangents& result, const Needs& needs) {
  std::vector<at::Tensor> list;
  for (size_t i = 0; i < needs.targets.size(); ++i)
    if (needs.targets[i]) list.push_back(result.targets[i]);
  for (size_t i = 0; i < needs.weights.size(); ++i)
    if (needs.weights[i]) list.push_back(result.weights[i]);
  for (size_t i = 0; i < needs.biases.size(); ++i)
    if (needs.biases[i]) list.push_back(result.biases[i]);
  if (needs.alpha) list.push_back(result.alpha);
  return list;
}

namespace {

// Beside tensors of 16 bits a GPU rounds a scalar to these; what has their dimensions it takes as it is.
at::Tensor beside(const at::Tensor& tensor, const at::Tensor& factor) {
  return factor.reshape(std::vector<int64_t>(static_cast<size_t>(tensor.dim()), 1));
}

// What is scaled in one launch, by a factor of its type, and the rest.
struct Scaling {
  std::vector<at::Tensor> at_once;
  std::vector<size_t> places, others;

  Scaling(at::TensorList tensors, const at::Tensor& factor) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      const bool together = factor.is_cpu() || tensors[i].scalar_type() == factor.scalar_type();
      (together ? places : others).push_back(i);
      if (together) at_once.push_back(tensors[i]);
    }
  }
};

}  // namespace

void scale_in_place(at::TensorList tensors, const at::Tensor& factor) {
#ifdef L2T_FAST_WITH_CUDA
  if (factor.is_cuda() && scale_in_place_cuda(tensors, factor)) return;
#endif
  const Scaling scaling(tensors, factor);
  if (!scaling.at_once.empty()) at::_foreach_mul_(scaling.at_once, factor);
  for (const size_t i : scaling.others) tensors[i].mul_(beside(tensors[i], factor));
}

std::optional<int64_t> capture_now(const at::Tensor& tensor) {
  if (!tensor.is_cuda()) return 0;
#ifdef L2T_FAST_WITH_CUDA
  return capture_cuda(tensor.get_device());
#else  // Triton's kernels alone, and no CUDA run time to ask but PyTorch's
  const pybind11::gil_scoped_acquire gil;
  const bool captures = pybind11::module_::import("torch.cuda").attr("is_current_stream_capturing")().cast<bool>();
  return captures ? std::nullopt : std::optional<int64_t>(0);
#endif
}

std::vector<at::Tensor> scaled(at::TensorList tensors, const at::Tensor& factor) {
  const Scaling scaling(tensors, factor);
  std::vector<at::Tensor> results(tensors.size());
  if (!scaling.at_once.empty()) {
    auto products = at::_foreach_mul(scaling.at_once, factor);
    for (size_t i = 0; i < products.size(); ++i) results[scaling.places[i]] = std::move(products[i]);
  }
  for (const size_t i : scaling.others) {
    results[i] = at::empty_like(tensors[i]);
    at::mul_out(results[i], tensors[i], beside(tensors[i], factor));
  }
  return results;
}

namespace {

template <typename Result>
using OfProblem = Result(at::TensorList, at::TensorList, at::TensorList, const OptionalTensorList&, const at::Tensor&,
                         at::IntArrayRef, const c10::List<bool>&);

// An operator of both families, each looked up when it is first called: Triton's are there if somebody imported them.
template <typename Signature>
class Operator {
 public:
  using Handle = c10::TypedOperatorHandle<Signature>;

  explicit Operator(const char* name) : name_(name) {}

  const Handle& of(Family family) {
    Found& found = found_[static_cast<size_t>(family)];
    std::call_once(found.once, [&] {
      const char* const library = family == Family::triton ? "l2t_fast_triton::" : "l2t_fast::";
      found.handle = c10::Dispatcher::singleton()
                         .findSchemaOrThrow((std::string(library) + name_).c_str(), "")
                         .template typed<Signature>();
    });
    return *found.handle;
  }

 private:
  struct Found {
    std::once_flag once;
    std::optional<Handle> handle;
  };

  const char* name_;
  std::array<Found, 2> found_;
};

}  // namespace

std::tuple<at::Tensor, std::vector<at::Tensor>> call_matching_forward(const Arguments& a) {
  static Operator<OfProblem<std::tuple<at::Tensor, std::vector<at::Tensor>>>> op("matching_forward");
  return op.of(a.family).call(a.sources, a.targets, a.weights, a.biases, a.alpha, a.pairs, a.needs);
}

at::Tensor call_matching_loss(const Arguments& a) {
  static Operator<OfProblem<at::Tensor>> op("matching_loss");
  return op.of(a.family).call(a.sources, a.targets, a.weights, a.biases, a.alpha, a.pairs, a.needs);
}

std::vector<at::Tensor> call_matching_backward(const at::Tensor& grad_loss, at::TensorList gradients,
                                               const Arguments& a) {
  using Signature =
      std::vector<at::Tensor>(const at::Tensor&, at::TensorList, at::TensorList, at::TensorList, at::TensorList,
                              const OptionalTensorList&, const at::Tensor&, at::IntArrayRef, const c10::List<bool>&);
  static Operator<Signature> op("matching_backward");
  return op.of(a.family).call(grad_loss, gradients, a.sources, a.targets, a.weights, a.biases, a.alpha, a.pairs,
                              a.needs);
}

std::vector<at::Tensor> call_matching_hvp(const Arguments& a, const OptionalTensorList& directions) {
  using Signature =
      std::vector<at::Tensor>(at::TensorList, at::TensorList, at::TensorList, const OptionalTensorList&,
                              const at::Tensor&, at::IntArrayRef, const OptionalTensorList&, const c10::List<bool>&);
  static Operator<Signature> op("matching_hvp");
  return op.of(a.family).call(a.sources, a.targets, a.weights, a.biases, a.alpha, a.pairs, directions, a.needs);
}

}  // namespace l2t_fast
