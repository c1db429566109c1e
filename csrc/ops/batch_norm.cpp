// The operator batch_norm_double_backward: schema, checks, one layout for all maps.
#include "../batch_norm.h"

#include <torch/library.h>

namespace l2t_fast {
namespace {

using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

void check_device(const at::Tensor& tensor, const at::Tensor& input, const char* name) {
  TORCH_CHECK_VALUE(tensor.device() == input.device(), name, " is on ", tensor.device(), ", but the input is on ",
                    input.device());
}

at::Tensor channel_values(const OptionalTensor& values, const at::Tensor& input, const char* name) {
  if (!values || !values->defined()) return {};
  TORCH_CHECK_VALUE(values->dim() == 1 && values->size(0) == input.size(1), name, " has shape ", values->sizes(),
                    ", but the input ", input.sizes(), " needs one value a channel");
  TORCH_CHECK_TYPE(values->scalar_type() == input.scalar_type(), name, " is ", values->scalar_type(),
                   ", but the input is ", input.scalar_type());
  check_device(*values, input, name);
  return values->contiguous();
}

using Function = Result(const at::Tensor& adjoint, const at::Tensor& gradient, const at::Tensor& input,
                        const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& scale,
                        const at::Tensor& weight_adjoint, const at::Tensor& bias_adjoint);

template <Function& function>
Result double_backward(const at::Tensor& adjoint, const at::Tensor& gradient, const at::Tensor& input,
                       const OptionalTensor& weight, const at::Tensor& mean, const at::Tensor& scale,
                       const OptionalTensor& weight_adjoint, const OptionalTensor& bias_adjoint) {
  TORCH_CHECK_VALUE(input.dim() >= 2, "input has shape ", input.sizes(), ", but batch normalisation needs (B, C, ...)");
  TORCH_CHECK_TYPE(input.scalar_type() == at::kFloat || input.scalar_type() == at::kDouble, "input is ",
                   input.scalar_type(), ", use float32 or float64");
  const auto format = input.suggest_memory_format();
  const auto map = [&](const at::Tensor& tensor, const char* name) {
    TORCH_CHECK_VALUE(tensor.sizes() == input.sizes(), name, " has shape ", tensor.sizes(), ", but the input has ",
                      input.sizes());
    TORCH_CHECK_TYPE(tensor.scalar_type() == input.scalar_type(), name, " is ", tensor.scalar_type(),
                     ", but the input is ", input.scalar_type());
    check_device(tensor, input, name);
    return tensor.contiguous(format);
  };
  return function(map(adjoint, "adjoint"), map(gradient, "gradient"), map(input, "input"),
                  channel_values(weight, input, "weight"), channel_values(mean, input, "mean"),
                  channel_values(scale, input, "scale"), channel_values(weight_adjoint, input, "weight_adjoint"),
                  channel_values(bias_adjoint, input, "bias_adjoint"));
}

Result double_backward_meta(const at::Tensor&, const at::Tensor&, const at::Tensor& input, const OptionalTensor&,
                            const at::Tensor& mean, const at::Tensor&, const OptionalTensor&, const OptionalTensor&) {
  const auto map = [&] { return at::empty_like(input, input.options(), input.suggest_memory_format()); };
  return {map(), map(), at::empty_like(mean)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(l2t_fast, library) {
  library.def(
      "batch_norm_double_backward(Tensor adjoint, Tensor gradient, Tensor input, Tensor? weight, Tensor mean, "
      "Tensor scale, Tensor? weight_adjoint, Tensor? bias_adjoint) -> (Tensor gradient_bar, Tensor input_bar, "
      "Tensor weight_bar)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(l2t_fast, CPU, library) {
  library.impl("batch_norm_double_backward", double_backward<batch_norm_double_backward_cpu>);
}
#ifdef L2T_FAST_WITH_CUDA
TORCH_LIBRARY_IMPL(l2t_fast, CUDA, library) {
  library.impl("batch_norm_double_backward", double_backward<batch_norm_double_backward_cuda>);
}
#endif
TORCH_LIBRARY_IMPL(l2t_fast, Meta, library) { library.impl("batch_norm_double_backward", double_backward_meta); }

}  // namespace l2t_fast
