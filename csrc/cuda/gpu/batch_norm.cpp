// The CUDA implementation of the double backward of batch normalisation.
#include "batch_norm.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "../../batch_norm.h"

namespace l2t_fast {
namespace {

const float* data_of(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }

bool aligned(const at::Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_double_backward_cuda(
    const at::Tensor& adjoint, const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight,
    const at::Tensor& mean, const at::Tensor& scale, const at::Tensor& weight_adjoint, const at::Tensor& bias_adjoint) {
  TORCH_CHECK_TYPE(input.scalar_type() == at::kFloat, "input is ", input.scalar_type(), ", on a GPU use float32");
  const int64_t channels = input.size(1);
  const int64_t count = channels == 0 ? 0 : input.numel() / channels;
  TORCH_CHECK_VALUE(count < int64_t(1) << 31, "a channel has ", count, " values, use fewer than 2^31");
  const c10::cuda::CUDAGuard device(input.device());
  at::Tensor gradient_bar = at::empty_like(input), input_bar = at::empty_like(input), weight_bar = at::empty_like(mean);
  if (input.numel() == 0) return {gradient_bar, input_bar, weight_bar.zero_()};
  const int64_t pixels = count / input.size(0);
  bool vectors = pixels % 4 == 0;
  for (const at::Tensor& map : {adjoint, gradient, input, gradient_bar, input_bar}) vectors = vectors && aligned(map);
  const cuda::BatchNorm problem{
      data_of(adjoint),
      data_of(gradient),
      data_of(input),
      data_of(mean),
      data_of(scale),
      data_of(weight),
      data_of(weight_adjoint),
      data_of(bias_adjoint),
      uint32_t(input.size(0)),
      uint32_t(channels),
      uint32_t(pixels),
      channels > 1 && input.stride(1) == 1,  // a single pixel a channel too
      vectors,
  };
  at::Tensor sums = at::empty({5, channels, int64_t(cuda::batch_norm_chunks(problem))}, mean.options());
  C10_CUDA_CHECK(cuda::launch_batch_norm(problem, sums.mutable_data_ptr<float>(),
                                         gradient_bar.mutable_data_ptr<float>(), input_bar.mutable_data_ptr<float>(),
                                         weight_bar.mutable_data_ptr<float>(), at::cuda::getCurrentCUDAStream()));
  return {gradient_bar, input_bar, weight_bar};
}

}  // namespace l2t_fast
