// The operators convolution3x3 and convolution3x3_weight_gradient: schemas, checks, dense layouts.
#include "../convolution.h"

#include <torch/library.h>

namespace l2t_fast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

void check_map(const at::Tensor& map, const char* name) {
  TORCH_CHECK_VALUE(map.dim() == 4, name, " has shape ", map.sizes(), ", but a convolution needs (B, C, H, W)");
  TORCH_CHECK_TYPE(map.scalar_type() == at::kFloat, name, " is ", map.scalar_type(), ", use float32");
}

void check_arguments(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias, bool transposed) {
  check_map(input, "input");
  check_map(weight, "weight");
  const int64_t channels = transposed ? 0 : 1;
  TORCH_CHECK_VALUE(weight.size(2) == 3 && weight.size(3) == 3, "weight has shape ", weight.sizes(),
                    ", but this convolution is 3x3");
  TORCH_CHECK_VALUE(input.size(1) == weight.size(channels), "input has shape ", input.sizes(), ", but the weight ",
                    weight.sizes(), " needs ", weight.size(channels), " channels");
  if (!bias) return;
  TORCH_CHECK_VALUE(!transposed, "an input's gradient has no bias");
  TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == weight.size(0), "bias has shape ", bias->sizes(),
                    ", but the weight ", weight.sizes(), " needs ", weight.size(0), " values");
  TORCH_CHECK_TYPE(bias->scalar_type() == at::kFloat, "bias is ", bias->scalar_type(), ", use float32");
}

void check_maps(const at::Tensor& gradient, const at::Tensor& input) {
  check_map(gradient, "gradient");
  check_map(input, "input");
  TORCH_CHECK_VALUE(
      gradient.size(0) == input.size(0) && gradient.size(2) == input.size(2) && gradient.size(3) == input.size(3),
      "gradient has shape ", gradient.sizes(), ", but the input has ", input.sizes());
}

at::Tensor convolution3x3(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                          bool transposed) {
  check_arguments(input, weight, bias, transposed);
  return convolution3x3_cpu(input.contiguous(input.suggest_memory_format()),
                            weight.contiguous(weight.suggest_memory_format()), bias ? bias->contiguous() : at::Tensor(),
                            transposed);
}

at::Tensor weight_gradient(const at::Tensor& gradient, const at::Tensor& input) {
  check_maps(gradient, input);
  return convolution3x3_weight_gradient_cpu(gradient.contiguous(gradient.suggest_memory_format()),
                                            input.contiguous(input.suggest_memory_format()));
}

// Shapes alone, symbolic ones included; wrong shapes are found where the data is.
at::Tensor convolution3x3_meta(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor&,
                               bool transposed) {
  return at::empty_symint(
      {input.sym_size(0), weight.sym_size(transposed ? 1 : 0), input.sym_size(2), input.sym_size(3)},
      input.options().device(at::kMeta), input.suggest_memory_format());
}

at::Tensor weight_gradient_meta(const at::Tensor& gradient, const at::Tensor& input) {
  return at::empty_symint({gradient.sym_size(1), input.sym_size(1), 3, 3}, input.options().device(at::kMeta),
                          input.suggest_memory_format());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(l2t_fast, library) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  library.def("convolution3x3(Tensor input, Tensor weight, Tensor? bias, bool transposed) -> Tensor", tags);
  library.def("convolution3x3_weight_gradient(Tensor gradient, Tensor input) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(l2t_fast, CPU, library) {
  library.impl("convolution3x3", convolution3x3);
  library.impl("convolution3x3_weight_gradient", weight_gradient);
}
TORCH_LIBRARY_IMPL(l2t_fast, Meta, library) {
  library.impl("convolution3x3", convolution3x3_meta);
  library.impl("convolution3x3_weight_gradient", weight_gradient_meta);
}

}  // namespace l2t_fast
