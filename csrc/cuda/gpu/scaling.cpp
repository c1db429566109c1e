// The CUDA implementation of scaling results where they lie, and what tells whether that may be done.
#include "../scaling.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "../../matching.h"
#include "kernel_image.h"
#include "kernels.h"

namespace l2t_fast {
namespace {

// Behind so many elements others begin a launch of their own: items are counted in 32 bits.
constexpr int64_t most_items = int64_t(1) << 30;

bool has_kernel(const at::Tensor& tensor) {
  const bool has_type = tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16;
  return has_type && tensor.is_non_overlapping_and_dense() && tensor.numel() < most_items * cuda::elements_of_block;
}

cuda::Type type_of(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat ? cuda::Type::float32 : cuda::Type::bfloat16;
}

}  // namespace

bool scale_in_place_cuda(at::TensorList tensors, const at::Tensor& factor) {
  // The kernel reads what lies in memory, which lazy factors are not yet.
  if (factor.scalar_type() != at::kFloat || factor.numel() != 1 || factor.is_neg() || factor._is_zerotensor())
    return false;
  if (!cuda::kernels_run_on(factor.get_device()))
    return false;  // Triton's serve there, and their results come here too
  for (const at::Tensor& tensor : tensors)
    if (tensor.device() != factor.device() || !has_kernel(tensor)) return false;
  const c10::cuda::CUDAGuard device(factor.device());
  const at::cuda::CUDAStream stream = at::cuda::getCurrentCUDAStream();
  cuda::SomeScaled some{};
  some.factor = factor.const_data_ptr<float>();
  int64_t items = 0;
  const auto launch = [&] {
    if (items) C10_CUDA_CHECK(cuda::launch_scaling(some, int(items), stream));
    some.count = 0;
    items = 0;
  };
  for (const at::Tensor& tensor : tensors) {
    const int64_t own = (tensor.numel() + cuda::elements_of_block - 1) / cuda::elements_of_block;
    if (!own) continue;
    if (some.count == cuda::most_scaled || items + own > most_items) launch();
    some.items[some.count++] = {tensor.mutable_data_ptr(), tensor.numel(), int32_t(items), type_of(tensor)};
    items += own;
  }
  launch();
  return true;
}

int64_t capture_cuda(c10::DeviceIndex device) {
  const at::cuda::CUDAStream stream = at::cuda::getCurrentCUDAStream(device);
  cudaStreamCaptureStatus status{};
  unsigned long long number = 0;
#if CUDART_VERSION >= 13000
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, &number));
#else
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo_v2(stream, &status, &number));
#endif
  return status == cudaStreamCaptureStatusActive ? static_cast<int64_t>(number) : 0;
}

}  // namespace l2t_fast
