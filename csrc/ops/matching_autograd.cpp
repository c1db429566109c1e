// Derivatives of the operators.
//
//     matching_forward   makes the gradients along with the loss (matching_loss returns that alone); its backward hands
//                        them to
//     matching_backward  which scales them by grad_loss and recomputes nothing; its own backward is
//     matching_hvp       the Hessian times a vector; its backward raises: there is no third derivative.
//
// The gradients saved by the forward are values, not functions, so matching_backward takes the problem too and is
// differentiated as what it stands for, grad_loss * (gradient of the loss at the problem).
#include <ATen/SavedTensorHooks.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <algorithm>

#include "arguments.h"
#include "edges.h"

namespace l2t_fast {

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr const char* kNoThirdDerivative =
    "the fused matching loss can be differentiated twice, not three times; backend=\"reference\" can be differentiated "
    "any number of times";

// ---- what a node keeps ----------------------------------------------------------------------------------------------

// Tensors first (sources, then the slots), so that a node may append its own.
variable_list tensors_of(const Arguments& arguments) {
  variable_list list(arguments.sources);
  for (auto& input : arguments.inputs()) list.push_back(std::move(input));
  return list;
}

void keep_numbers(AutogradContext* ctx, const Arguments& arguments) {
  std::vector<int64_t> numbers{static_cast<int64_t>(arguments.family), static_cast<int64_t>(arguments.sources.size()),
                               static_cast<int64_t>(arguments.targets.size())};
  numbers.insert(numbers.end(), arguments.pairs.begin(), arguments.pairs.end());
  ctx->saved_data["numbers"] = std::move(numbers);
  ctx->saved_data["needs"] = arguments.needs;
}

// The inverse of the two; removes the problem's tensors from `saved`, leaving the node's own.
Arguments take_arguments(AutogradContext* ctx, variable_list& saved) {
  Arguments arguments;
  const auto numbers = ctx->saved_data["numbers"].toIntVector();
  arguments.family = static_cast<Family>(numbers[0]);
  arguments.pairs.assign(numbers.begin() + 3, numbers.end());
  arguments.needs = ctx->saved_data["needs"].toBoolList();
  const size_t pair_count = arguments.pairs.size() / 2;
  auto next = std::make_move_iterator(saved.begin());
  const auto take = [&next](size_t count) {
    variable_list list(next, next + static_cast<ptrdiff_t>(count));
    next += static_cast<ptrdiff_t>(count);
    return list;
  };
  arguments.sources = take(numbers[1]);
  arguments.targets = take(numbers[2]);
  arguments.weights = take(pair_count);
  for (auto& bias : take(pair_count))
    arguments.biases.push_back(bias.defined() ? std::optional<Tensor>(std::move(bias)) : std::nullopt);
  arguments.alpha = take(1).front();
  saved.erase(saved.begin(), next.base());
  return arguments;
}

// ---- checks at the door ---------------------------------------------------------------------------------------------

void refuse_forward_mode(const Tensor& tensor) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !tensor.defined() || !tensor._fw_grad(/*level=*/0).defined(),
      "the fused matching loss got a forward-mode tangent, which it cannot carry; take the operator matching_hvp "
      "for the derivative along a direction, or backend=\"reference\"");
}

void refuse_sources(const Arguments& arguments) {
  for (size_t i = 0; i < arguments.sources.size(); ++i)
    TORCH_CHECK_VALUE(!arguments.sources[i].requires_grad(), "source feature ", i,
                      " requires grad, but the fused matching loss has no derivative for sources; detach it, "
                      "or take backend=\"reference\"");
}

void check_tangents(const Arguments& arguments) {
  for (const auto* tensors : {&arguments.sources, &arguments.targets, &arguments.weights})
    for (const auto& tensor : *tensors) refuse_forward_mode(tensor);
  for (const std::optional<Tensor> bias : arguments.biases)
    if (bias.has_value()) refuse_forward_mode(*bias);
  refuse_forward_mode(arguments.alpha);
}

bool requires_grad(const variable_list& tensors) {
  return at::GradMode::is_enabled() && torch::autograd::any_variable_requires_grad(tensors);
}

// autograd's list of inputs may hold no undefined tensor
variable_list defined_only(variable_list list) {
  list.erase(std::remove_if(list.begin(), list.end(), [](const Tensor& t) { return !t.defined(); }), list.end());
  return list;
}

// ---- second derivative ----------------------------------------------------------------------------------------------

// Whatever is computed in a double backward hangs below one of these, so that asking for a third derivative raises
// instead of leaving terms out; asking for its graph (create_graph=True) without using it does no harm.
struct NoThirdDerivative : Function<NoThirdDerivative> {
  template <typename Compute>
  static variable_list forward(AutogradContext* ctx, at::TensorList /*depends_on*/, const Compute& compute) {
    ctx->set_materialize_grads(false);
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return compute();
  }
  static variable_list backward(AutogradContext* /*ctx*/, const variable_list& /*grads*/) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, kNoThirdDerivative);
  }
};

template <Family family>
std::vector<Tensor> hvp_autograd(at::TensorList sources, at::TensorList targets, at::TensorList weights,
                                 const OptionalTensorList& biases, const Tensor& alpha, at::IntArrayRef pairs,
                                 const OptionalTensorList& directions, const c10::List<bool>& needs) {
  const Arguments arguments{sources.vec(), targets.vec(), weights.vec(), biases, alpha, pairs.vec(), needs, family};
  check_tangents(arguments);
  for (const std::optional<Tensor> direction : directions)
    if (direction.has_value()) refuse_forward_mode(*direction);
  const auto compute = [&] { return call_matching_hvp(arguments, directions); };
  if (at::GradMode::is_enabled()) {
    variable_list depends_on = tensors_of(arguments);
    for (const std::optional<Tensor> direction : directions) depends_on.push_back(direction.value_or(Tensor()));
    depends_on = defined_only(std::move(depends_on));
    if (requires_grad(depends_on)) return NoThirdDerivative::apply(at::TensorList(depends_on), compute);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return compute();
}

// grad_loss * Hessian * directions, for the slots in needs. One entry a slot. The Hessian's every term holds alpha or
// its direction once, except alpha's own product, so small tensors are scaled and no large one.
variable_list scaled_hvp(const std::optional<Tensor>& grad_loss, Arguments arguments, variable_list directions) {
  const auto scaled = [&grad_loss](const Tensor& tensor) {
    return grad_loss.has_value() && tensor.defined() ? at::mul(tensor, *grad_loss) : tensor;
  };
  variable_list slots(directions.size());
  bool any_need = false, any_direction = false;
  for (const bool need : arguments.needs) any_need |= need;
  for (const auto& direction : directions) any_direction |= direction.defined();
  if (!any_need || !any_direction) return slots;

  arguments.alpha = scaled(arguments.alpha);
  directions.back() = scaled(directions.back());
  const auto inputs = arguments.inputs();
  OptionalTensorList list;
  for (size_t slot = 0; slot < slots.size(); ++slot) {  // a gradient, whose type they have, may be wider than its input
    const auto& direction = directions[slot];
    list.push_back(direction.defined() ? std::optional<Tensor>(direction.to(inputs[slot].scalar_type()))
                                       : std::nullopt);
  }
  auto products = call_matching_hvp(arguments, list);
  size_t next = 0;
  for (size_t slot = 0; slot < slots.size(); ++slot)
    if (arguments.needs.get(slot)) slots[slot] = std::move(products[next++]);
  slots.back() = scaled(slots.back());
  return slots;
}

// One entry a slot out of one entry a need; undefined elsewhere.
variable_list spread(const c10::List<bool>& needs, variable_list gradients) {
  variable_list slots(needs.size());
  size_t next = 0;
  for (size_t slot = 0; slot < slots.size(); ++slot)
    if (needs.get(slot)) slots[slot] = std::move(gradients[next++]);
  return slots;
}

// The slots some edge of the running backward wants; edge_of_first is the edge of the first slot that is defined.
c10::List<bool> wanted_slots(const AutogradContext* ctx, const variable_list& inputs, size_t edge_of_first) {
  std::vector<bool> there;
  for (const auto& input : inputs) there.push_back(input.defined());
  c10::List<bool> wanted;
  for (const bool own : wanted_now(ctx, there, edge_of_first)) wanted.push_back(own);
  return wanted;
}

// ---- first derivative -----------------------------------------------------------------------------------------------

// apply(depends_on = grad_loss and the defined slots, ...) -> scaled gradients
struct MatchingBackward : Function<MatchingBackward> {
  static variable_list forward(AutogradContext* ctx, at::TensorList depends_on, const variable_list& gradients,
                               const Arguments& arguments) {
    const Tensor& grad_loss = depends_on.front();
    ctx->set_materialize_grads(false);
    auto keep = tensors_of(arguments);
    keep.push_back(grad_loss);
    // The derivative along grad_loss alone reads them, and they are as large as the maps.
    if (grad_loss.requires_grad()) keep.insert(keep.end(), gradients.begin(), gradients.end());
    ctx->save_for_backward(std::move(keep));
    keep_numbers(ctx, arguments);
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return call_matching_backward(grad_loss, gradients, arguments);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& directions) {
    auto saved = ctx->get_saved_variables();
    auto arguments = take_arguments(ctx, saved);
    const Tensor grad_loss = saved.front();
    saved.erase(saved.begin());
    const auto inputs = arguments.inputs();

    Tensor grad_grad_loss;
    if (ctx->needs_input_grad(0)) {
      // sum of direction * gradient; it too depends on the problem, which the saved gradients do not show
      const auto sum = [&] {
        Tensor total = at::zeros_like(grad_loss);
        for (size_t i = 0; i < directions.size(); ++i)
          if (directions[i].defined())
            total = total + at::sum(directions[i].to(total.scalar_type()) * saved[i].to(total.scalar_type()));
        return variable_list{total};
      };
      auto depends_on = defined_only(inputs);
      for (const auto& direction : directions)
        if (direction.defined()) depends_on.push_back(direction);
      grad_grad_loss =
          (requires_grad(depends_on) ? NoThirdDerivative::apply(at::TensorList(depends_on), sum) : sum()).front();
    }

    auto slots = spread(arguments.needs, directions);
    arguments.needs = wanted_slots(ctx, inputs, /*edge_of_first=*/1);
    const auto products = scaled_hvp(grad_loss, std::move(arguments), std::move(slots));

    variable_list result{grad_grad_loss};
    for (size_t slot = 0; slot < inputs.size(); ++slot)
      if (inputs[slot].defined()) result.push_back(products[slot]);
    result.resize(result.size() + 2);  // gradients and arguments, as they were handed to forward
    return result;
  }
};

// What the node's backward pass goes by; anyone may call the operator.
void check_backward(const Arguments& arguments, size_t gradients) {
  const auto slots = arguments.inputs().size();
  size_t needed = 0;
  for (const bool need : arguments.needs) needed += need;
  TORCH_CHECK_VALUE(arguments.needs.size() == slots, "got ", arguments.needs.size(), " needs for ", slots, " slots");
  TORCH_CHECK_VALUE(gradients == needed, "got ", gradients, " gradients for ", needed, " needs");
}

template <Family family>
std::vector<Tensor> backward_autograd(const Tensor& grad_loss, at::TensorList gradients, at::TensorList sources,
                                      at::TensorList targets, at::TensorList weights, const OptionalTensorList& biases,
                                      const Tensor& alpha, at::IntArrayRef pairs, const c10::List<bool>& needs) {
  const Arguments arguments{sources.vec(), targets.vec(), weights.vec(), biases, alpha, pairs.vec(), needs, family};
  check_backward(arguments, gradients.size());
  refuse_forward_mode(grad_loss);
  check_tangents(arguments);
  if (at::GradMode::is_enabled()) refuse_sources(arguments);
  variable_list depends_on{grad_loss};
  for (auto& input : defined_only(arguments.inputs())) depends_on.push_back(std::move(input));
  if (requires_grad(depends_on)) return MatchingBackward::apply(at::TensorList(depends_on), gradients.vec(), arguments);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_matching_backward(grad_loss, gradients, arguments);
}

// True if nothing but this node will ever read the saved gradients again, so that they may be scaled where they lie.
// Under tracing and compiled autograd the answer has to be no. `holders`: how many tensors share a saved one's storage
// where nobody else does.
bool may_consume(const Tensor& grad_loss, const variable_list& gradients, size_t holders) {
  if (at::GradMode::is_enabled() || torch::autograd::get_current_graph_task_keep_graph() ||
      c10::impl::TorchDispatchModeTLS::any_modes_set())
    return false;
  const auto is_plain = [](const Tensor& tensor) {
    using c10::DispatchKey;
    return !tensor.key_set().has_any(
        c10::DispatchKeySet({DispatchKey::Python, DispatchKey::Functionalize, DispatchKey::Batched,
                             DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper}));
  };
  if (!is_plain(grad_loss)) return false;
  for (const auto& gradient : gradients)
    if (!is_plain(gradient) || gradient.storage().use_count() > holders) return false;
  return true;
}

// apply(depends_on = the defined slots, ...) -> loss, and with `gives_gradients` the gradients, differentiable too:
// each result more takes the host as long as a small launch does.
template <bool gives_gradients>
struct MatchingForward : Function<MatchingForward<gives_gradients>> {
  static variable_list forward(AutogradContext* ctx, at::TensorList /*depends_on*/, const Arguments& arguments) {
    ctx->set_materialize_grads(false);
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [loss, gradients] = call_matching_forward(arguments);
    auto keep = tensors_of(arguments);
    keep.insert(keep.end(), gradients.begin(), gradients.end());
    ctx->save_for_backward(std::move(keep));
    // A hook on what is saved, or a mode that saw the operator, may hold it without a sign.
    const bool watched =
        at::SavedTensorDefaultHooks::get_hooks().has_value() || c10::impl::TorchDispatchModeTLS::any_modes_set();
    ctx->saved_data["capture"] = watched ? std::nullopt : capture_now(loss);
    keep_numbers(ctx, arguments);
    variable_list outputs{std::move(loss)};
    if constexpr (gives_gradients) outputs.insert(outputs.end(), gradients.begin(), gradients.end());
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    auto gradients = ctx->get_saved_variables();
    auto arguments = take_arguments(ctx, gradients);
    const auto inputs = arguments.inputs();
    const auto made = arguments.needs;
    const auto wanted = wanted_slots(ctx, inputs, /*edge_of_first=*/0);

    variable_list slots(inputs.size());
    if (const auto& grad_loss = grads[0]; grad_loss.defined()) {
      // Of a node's result, the saved tensor is a copy, and so is what is unpacked from it; else they are one tensor.
      // A CUDA graph other than the one that makes them may be replayed more often, and scales them each time.
      const auto capture = ctx->saved_data["capture"].toOptional<int64_t>();
      const bool consume = capture.has_value() && may_consume(grad_loss, gradients, gives_gradients ? 2 : 1) &&
                           capture == capture_now(grad_loss);
      variable_list chosen;
      c10::List<bool> asked;
      size_t next = 0;
      for (size_t slot = 0; slot < inputs.size(); ++slot) {
        const bool is_made = made.get(slot);
        asked.push_back(is_made && wanted.get(slot));
        // A result of the node comes with the node as its history.
        if (is_made && wanted.get(slot))
          chosen.push_back(gives_gradients ? gradients[next].variable_data() : std::move(gradients[next]));
        next += is_made;
      }
      if (!consume) {
        arguments.needs = asked;
        chosen = call_matching_backward(grad_loss, chosen, arguments);
      } else if (!grad_loss.is_cpu() || grad_loss.item<double>() != 1) {
        scale_in_place(chosen, grad_loss);
      }
      slots = spread(asked, std::move(chosen));
    }

    if constexpr (gives_gradients) {
      // only for callers of the operator itself that differentiate the gradients it returned
      const variable_list directions(grads.begin() + 1, grads.end());
      arguments.needs = wanted;
      const auto products = scaled_hvp(std::nullopt, std::move(arguments), spread(made, directions));
      for (size_t slot = 0; slot < slots.size(); ++slot)
        if (products[slot].defined())
          slots[slot] = slots[slot].defined() ? slots[slot] + products[slot] : products[slot];
    }

    variable_list result;
    for (size_t slot = 0; slot < inputs.size(); ++slot)
      if (inputs[slot].defined()) result.push_back(slots[slot]);
    result.emplace_back();  // arguments as they were handed to forward
    return result;
  }
};

template <Family family, bool gives_gradients>
std::tuple<Tensor, std::vector<Tensor>> forward_autograd(at::TensorList sources, at::TensorList targets,
                                                         at::TensorList weights, const OptionalTensorList& biases,
                                                         const Tensor& alpha, at::IntArrayRef pairs,
                                                         const c10::List<bool>& needs) {
  const Arguments arguments{sources.vec(), targets.vec(), weights.vec(), biases, alpha, pairs.vec(), needs, family};
  check_tangents(arguments);
  if (at::GradMode::is_enabled()) refuse_sources(arguments);
  const auto inputs = arguments.inputs();
  const auto depends_on = defined_only(inputs);
  if (!requires_grad(depends_on)) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return call_matching_forward(arguments);
  }
  for (size_t slot = 0; slot < inputs.size(); ++slot)
    TORCH_CHECK_VALUE(
        !inputs[slot].defined() || !inputs[slot].requires_grad() || (slot < needs.size() && needs.get(slot)), "input ",
        slot, " (of targets, weights, biases, alpha) requires grad, but needs says its gradient is not wanted");
  auto outputs = MatchingForward<gives_gradients>::apply(at::TensorList(depends_on), arguments);
  Tensor loss = std::move(outputs.front());
  outputs.erase(outputs.begin());
  return {std::move(loss), std::move(outputs)};
}

template <Family family>
Tensor loss_autograd(at::TensorList sources, at::TensorList targets, at::TensorList weights,
                     const OptionalTensorList& biases, const Tensor& alpha, at::IntArrayRef pairs,
                     const c10::List<bool>& needs) {
  return std::get<0>(forward_autograd<family, false>(sources, targets, weights, biases, alpha, pairs, needs));
}

template <Family family>
void register_derivatives(torch::Library& library) {
  library.impl("matching_forward", forward_autograd<family, true>);
  library.impl("matching_loss", loss_autograd<family>);
  library.impl("matching_backward", backward_autograd<family>);
  library.impl("matching_hvp", hvp_autograd<family>);
}

}  // namespace

TORCH_LIBRARY_IMPL(l2t_fast, Autograd, library) { register_derivatives<Family::native>(library); }
TORCH_LIBRARY_IMPL(l2t_fast_triton, Autograd, library) { register_derivatives<Family::triton>(library); }

}  // namespace l2t_fast
