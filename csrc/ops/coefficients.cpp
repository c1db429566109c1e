// The operators coefficients, coefficients_backward and joined: schemas, checks, shapes without data, derivatives.
//
// alpha is linear in `what` and in `where` (coefficients.h), and with its adjoint it is a form that is linear in three:
// each of its derivatives is one of the first two operators again, with a direction or an adjoint in the place of what
// it belongs to. So there are derivatives of any order.
#include "../coefficients.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../cuda/emulation.h"
#include "../cuda/matching.h"
#include "edges.h"

namespace l2t_fast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

Tensor or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }
OptionalTensor if_defined(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }
// What an operator returns for a derivative that is not wanted.
Tensor or_empty(const Tensor& tensor, const Tensor& like) {
  return tensor.defined() ? tensor : at::empty({0}, like.options());
}

// ---- the operators, below autograd ----------------------------------------------------------------------------------

Columns columns_of(at::IntArrayRef channels, at::ArrayRef<double> scales, int64_t batch) {
  TORCH_CHECK_VALUE(channels.size() == scales.size() && !channels.empty(), "got ", channels.size(), " channels and ",
                    scales.size(), " scales; one of each a pair is needed");
  for (const int64_t own : channels)
    TORCH_CHECK_VALUE(0 < own && own < int64_t(1) << 31, "a pair has ", own, " channels; 1 to 2^31 - 1 are needed");
  return {channels.vec(), scales.vec(), batch};
}

// The term as devices take it.
Term checked(const OptionalTensor& what, const OptionalTensor& where, const Columns& columns,
             const at::TensorOptions& options) {
  const auto check = [&](const OptionalTensor& tensor, const char* name, int64_t width, bool may_share) {
    if (!tensor) return Tensor();
    TORCH_CHECK_VALUE(tensor->dim() == 2 && tensor->size(1) == width &&
                          (tensor->size(0) == columns.batch || (may_share && tensor->size(0) == 1)),
                      name, " have shape ", tensor->sizes(), "; (", columns.batch, ", ", width, ") is needed");
    const at::ScalarType type = c10::typeMetaToScalarType(options.dtype());
    TORCH_CHECK_TYPE(tensor->scalar_type() == type, name, " are ", tensor->scalar_type(), ", others ", type);
    TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, name, " are ", type, ", use float32 or float64");
    TORCH_CHECK_VALUE(tensor->device() == options.device(), name, " are on ", tensor->device(), ", others on ",
                      options.device());
    return tensor->contiguous();
  };
  return {check(what, "channel weights", columns.count(), false),
          check(where, "pair weights", int64_t(columns.channels.size()), true)};
}

using Forward = Tensor(const std::vector<Term>&, const Columns&, const at::TensorOptions&);
using Backward = Adjoints(const Tensor&, const Term&, const Columns&, bool, bool);

template <Forward* compute>
Tensor forward_on(const OptionalTensor& what, const OptionalTensor& where, const OptionalTensor& what_too,
                  const OptionalTensor& where_too, at::IntArrayRef channels, at::ArrayRef<double> scales,
                  int64_t batch) {
  const Columns columns = columns_of(channels, scales, batch);
  TORCH_CHECK_VALUE(what || where, "neither channel weights nor pair weights are given");
  const at::TensorOptions options = (what ? *what : *where).options();
  std::vector<Term> terms{checked(what, where, columns, options)};
  if (what_too || where_too) terms.push_back(checked(what_too, where_too, columns, options));
  return compute(terms, columns, options);
}

template <Backward* compute>
std::tuple<Tensor, Tensor> backward_on(const Tensor& adjoint, const OptionalTensor& what, const OptionalTensor& where,
                                       at::IntArrayRef channels, at::ArrayRef<double> scales, bool wants_what,
                                       bool wants_where) {
  Columns columns = columns_of(channels, scales, 0);
  TORCH_CHECK_VALUE(adjoint.dim() == 2 && adjoint.size(1) == columns.count(), "the adjoint has shape ", adjoint.sizes(),
                    " where the pairs' channels sum to ", columns.count());
  columns.batch = adjoint.size(0);
  const Term term = checked(what, where, columns, adjoint.options());
  auto [of_what, of_where] = compute(adjoint.contiguous(), term, columns, wants_what, wants_where);
  if (wants_where && where && where->size(0) != columns.batch) of_where = of_where.sum(0, /*keepdim=*/true);
  return {or_empty(of_what, adjoint), or_empty(of_where, adjoint)};
}

Tensor forward_cpu_or_emulated(const std::vector<Term>& terms, const Columns& columns,
                               const at::TensorOptions& options) {
  cuda::Runner* const emulated = options.dtype() == at::kFloat ? cuda::emulated_runner() : nullptr;
  return emulated ? cuda::coefficients(*emulated, terms, columns, options) : coefficients_cpu(terms, columns, options);
}

Adjoints backward_cpu_or_emulated(const Tensor& adjoint, const Term& term, const Columns& columns, bool what,
                                  bool where) {
  cuda::Runner* const emulated = adjoint.scalar_type() == at::kFloat ? cuda::emulated_runner() : nullptr;
  return emulated ? cuda::coefficients_backward(*emulated, adjoint, term, columns, what, where)
                  : coefficients_backward_cpu(adjoint, term, columns, what, where);
}

Tensor forward_meta(const std::vector<Term>&, const Columns& columns, const at::TensorOptions& options) {
  return at::empty({columns.batch, columns.count()}, options);
}

Adjoints backward_meta(const Tensor& adjoint, const Term&, const Columns& columns, bool what, bool where) {
  return empty_adjoints(adjoint, columns, what, where);
}

std::tuple<Tensor, Tensor> call_backward(const Tensor& adjoint, const Term& term, const Columns& columns, bool what,
                                         bool where) {
  using Signature = std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                               at::IntArrayRef, at::ArrayRef<double>, bool, bool);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("l2t_fast::coefficients_backward", "").typed<Signature>();
  return op.call(adjoint, if_defined(term.what), if_defined(term.where), columns.channels, columns.scales, what, where);
}

// ---- derivatives ----------------------------------------------------------------------------------------------------

// `there`: whether a node has its inputs, saved or not.
void keep(AutogradContext* ctx, variable_list tensors, const std::vector<bool>& there, const Columns& columns) {
  ctx->set_materialize_grads(false);
  ctx->save_for_backward(std::move(tensors));
  c10::List<bool> list;
  for (const bool own : there) list.push_back(own);
  ctx->saved_data["there"] = list;
  ctx->saved_data["channels"] = columns.channels;
  ctx->saved_data["scales"] = columns.scales;
  ctx->saved_data["batch"] = columns.batch;
}

Columns kept_columns(AutogradContext* ctx) {
  return {ctx->saved_data["channels"].toIntVector(), ctx->saved_data["scales"].toDoubleVector(),
          ctx->saved_data["batch"].toInt()};
}

std::vector<bool> wanted_inputs(AutogradContext* ctx) {
  std::vector<bool> there;
  for (const bool own : ctx->saved_data["there"].toBoolList()) there.push_back(own);
  return wanted_now(ctx, there, 0);
}

// A term's derivatives along an adjoint; undefined where one is not wanted.
Term differentiated(const Tensor& adjoint, const Term& term, const Columns& columns, bool what, bool where);

// Gives those alone that are wanted.
struct CoefficientsBackward : Function<CoefficientsBackward> {
  static variable_list forward(AutogradContext* ctx, const Tensor& adjoint, const OptionalTensor& what,
                               const OptionalTensor& where, const Columns& columns, bool wants_what, bool wants_where) {
    const Term term{or_undefined(what), or_undefined(where)};
    keep(ctx, {adjoint, term.what, term.where}, {true, what.has_value(), where.has_value()}, columns);
    ctx->saved_data["wants_what"] = wants_what;
    ctx->saved_data["wants_where"] = wants_where;
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [of_what, of_where] = call_backward(adjoint, term, columns, wants_what, wants_where);
    variable_list results;
    if (wants_what) results.push_back(of_what);
    if (wants_where) results.push_back(of_where);
    return results;
  }

  // With directions v of the results, the sum over v * result is scale * adjoint * (where v_what + v_where what).
  static variable_list backward(AutogradContext* ctx, const variable_list& directions) {
    const variable_list inputs = ctx->get_saved_variables();
    const Tensor &adjoint = inputs[0], &what = inputs[1], &where = inputs[2];
    const Columns columns = kept_columns(ctx);
    const std::vector<bool> wanted = wanted_inputs(ctx);
    const bool has_what = ctx->saved_data["wants_what"].toBool(), has_where = ctx->saved_data["wants_where"].toBool();
    const Tensor of_what = has_what ? directions.front() : Tensor(),
                 of_where = has_where ? directions.back() : Tensor();

    std::vector<Term> terms;
    if (of_what.defined()) terms.push_back({of_what, where});
    if (of_where.defined()) terms.push_back({what, of_where});
    variable_list results(6);
    if (wanted[0] && !terms.empty()) results[0] = call_coefficients(terms, columns);
    if (wanted[1] && of_where.defined())
      results[1] = differentiated(adjoint, {what, of_where}, columns, true, false).what;
    if (wanted[2] && of_what.defined())
      results[2] = differentiated(adjoint, {of_what, where}, columns, false, true).where;
    return results;
  }
};

Term differentiated(const Tensor& adjoint, const Term& term, const Columns& columns, bool what, bool where) {
  if (!adjoint.defined() || (!what && !where)) return {};
  const variable_list found =
      CoefficientsBackward::apply(adjoint, if_defined(term.what), if_defined(term.where), columns, what, where);
  return {what ? found.front() : Tensor(), where ? found.back() : Tensor()};
}

struct Coefficients : Function<Coefficients> {
  static Tensor forward(AutogradContext* ctx, const OptionalTensor& what, const OptionalTensor& where,
                        const OptionalTensor& what_too, const OptionalTensor& where_too, const Columns& columns) {
    std::vector<Term> terms{{or_undefined(what), or_undefined(where)}};
    if (what_too || where_too) terms.push_back({or_undefined(what_too), or_undefined(where_too)});
    // A factor is read for the derivative by the other one alone; what all samples share, which is small, for its
    // shape.
    variable_list kept;
    std::vector<bool> there;
    for (const auto& [own, other] :
         {std::pair(what, where), {where, what}, {what_too, where_too}, {where_too, what_too}}) {
      const bool is_read = own && ((other && other->requires_grad()) || own->size(0) == 1);
      kept.push_back(is_read ? *own : Tensor());
      there.push_back(own.has_value());
    }
    keep(ctx, std::move(kept), there, columns);
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return call_coefficients(terms, columns);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& adjoints) {
    const variable_list inputs = ctx->get_saved_variables();
    const Columns columns = kept_columns(ctx);
    const std::vector<bool> wanted = wanted_inputs(ctx);
    variable_list results;
    for (size_t i = 0; i < inputs.size(); i += 2) {
      const Term derivatives =
          differentiated(adjoints[0], {inputs[i], inputs[i + 1]}, columns, wanted[i], wanted[i + 1]);
      results.push_back(derivatives.what);
      results.push_back(derivatives.where);
    }
    results.emplace_back();  // columns
    return results;
  }
};

Tensor forward_autograd(const OptionalTensor& what, const OptionalTensor& where, const OptionalTensor& what_too,
                        const OptionalTensor& where_too, at::IntArrayRef channels, at::ArrayRef<double> scales,
                        int64_t batch) {
  return Coefficients::apply(what, where, what_too, where_too, columns_of(channels, scales, batch));
}

std::tuple<Tensor, Tensor> backward_autograd(const Tensor& adjoint, const OptionalTensor& what,
                                             const OptionalTensor& where, at::IntArrayRef channels,
                                             at::ArrayRef<double> scales, bool wants_what, bool wants_where) {
  const Term term{or_undefined(what), or_undefined(where)};
  const Columns columns = columns_of(channels, scales, adjoint.dim() ? adjoint.size(0) : 0);
  const Term derivatives = differentiated(adjoint, term, columns, wants_what, wants_where);
  return {or_empty(derivatives.what, adjoint), or_empty(derivatives.where, adjoint)};
}

// ---- weights side by side -------------------------------------------------------------------------------------------

void check_joined(at::TensorList tensors) {
  TORCH_CHECK_VALUE(!tensors.empty(), "no tensor to join is given");
  for (const Tensor& tensor : tensors)
    TORCH_CHECK_VALUE((tensor.dim() == 1 || tensor.dim() == 2) && tensor.dim() == tensors[0].dim(),
                      "tensors to join have ", tensors[0].dim(), " and ", tensor.dim(),
                      " dimensions; all need one, or two");
}

// Autocast refuses types that are lower than its own, and promotion alone is wanted.
Tensor side_by_side(at::TensorList tensors) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return tensors[0].dim() == 1 ? at::stack(tensors, 1) : at::cat(tensors, 1);
}

// The derivative of at::cat cuts out each tensor's part by an operator of its own, the derivative of which is a whole
// matrix with zeros elsewhere; here it is views of one matrix, whose derivative joins again.
struct Joined : Function<Joined> {
  static Tensor forward(AutogradContext* ctx, at::TensorList tensors) {
    std::vector<int64_t> widths;
    if (tensors[0].dim() > 1)
      for (const Tensor& tensor : tensors) widths.push_back(tensor.size(1));
    ctx->set_materialize_grads(false);
    ctx->saved_data["widths"] = widths;
    ctx->saved_data["count"] = int64_t(tensors.size());
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return side_by_side(tensors);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& adjoints);
};

struct Parted : Function<Parted> {
  static variable_list forward(AutogradContext* /*ctx*/, const Tensor& whole, const std::vector<int64_t>& widths) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return widths.empty() ? whole.unbind(1) : whole.split_with_sizes(widths, 1);
  }
  static variable_list backward(AutogradContext* /*ctx*/, const variable_list& adjoints) {
    return {Joined::apply(at::TensorList(adjoints)), Tensor()};
  }
};

variable_list Joined::backward(AutogradContext* ctx, const variable_list& adjoints) {
  if (!adjoints[0].defined()) return variable_list(size_t(ctx->saved_data["count"].toInt()));
  return Parted::apply(adjoints[0], ctx->saved_data["widths"].toIntVector());
}

Tensor joined(at::TensorList tensors) {
  check_joined(tensors);
  return side_by_side(tensors);
}

Tensor joined_autograd(at::TensorList tensors) {
  check_joined(tensors);
  return Joined::apply(tensors);
}

}  // namespace

Tensor call_coefficients(const std::vector<Term>& terms, const Columns& columns) {
  using Signature = Tensor(const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                           at::IntArrayRef, at::ArrayRef<double>, int64_t);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("l2t_fast::coefficients", "").typed<Signature>();
  const Term none, &first = terms.front(), &last = terms.size() > 1 ? terms.back() : none;
  return op.call(if_defined(first.what), if_defined(first.where), if_defined(last.what), if_defined(last.where),
                 columns.channels, columns.scales, columns.batch);
}

TORCH_LIBRARY_FRAGMENT(l2t_fast, library) {
  library.def(
      "coefficients(Tensor? channel_weights, Tensor? pair_weights, Tensor? channel_weights_too, "
      "Tensor? pair_weights_too, int[] channels, float[] scales, int batch) -> Tensor");
  library.def(
      "coefficients_backward(Tensor adjoint, Tensor? channel_weights, Tensor? pair_weights, int[] channels, "
      "float[] scales, bool wants_channel_weights, bool wants_pair_weights) -> (Tensor, Tensor)");
  library.def("joined(Tensor[] tensors) -> Tensor");
}

TORCH_LIBRARY_IMPL(l2t_fast, Autograd, library) {
  library.impl("coefficients", forward_autograd);
  library.impl("coefficients_backward", backward_autograd);
  library.impl("joined", joined_autograd);
}

TORCH_LIBRARY_IMPL(l2t_fast, CompositeExplicitAutograd, library) { library.impl("joined", joined); }

TORCH_LIBRARY_IMPL(l2t_fast, CPU, library) {
  library.impl("coefficients", forward_on<forward_cpu_or_emulated>);
  library.impl("coefficients_backward", backward_on<backward_cpu_or_emulated>);
}
#ifdef L2T_FAST_WITH_CUDA
TORCH_LIBRARY_IMPL(l2t_fast, CUDA, library) {
  library.impl("coefficients", forward_on<coefficients_cuda>);
  library.impl("coefficients_backward", backward_on<coefficients_backward_cuda>);
}
#endif
TORCH_LIBRARY_IMPL(l2t_fast, Meta, library) {
  library.impl("coefficients", forward_on<forward_meta>);
  library.impl("coefficients_backward", backward_on<backward_meta>);
}

}  // namespace l2t_fast
