#include "kernel_image.h"

#include <c10/cuda/CUDAFunctions.h>

#include <mutex>
#include <set>

#include "kernels.h"

namespace l2t_fast::cuda {
namespace {

// PyTorch's functions go back to a device without making a context there, some 500 MiB, where there is none yet.
cudaError_t inspect(int device, KernelImage& image) {
  c10::DeviceIndex previous = 0;
  if (const cudaError_t error = c10::cuda::GetDevice(&previous); error != cudaSuccess) return error;
  if (const cudaError_t error = cudaSetDevice(device); error != cudaSuccess) return error;
  cudaFuncAttributes attributes{};
  const cudaError_t error = ask_witness(attributes);
  image.binary = attributes.binaryVersion;
  image.ptx = attributes.ptxVersion;
  const cudaError_t restored = previous == device ? cudaSuccess : c10::cuda::MaybeSetDevice(previous);
  return error != cudaSuccess ? error : restored;
}

}  // namespace

KernelImage kernel_image(int device) {
  KernelImage image;
  cudaRuntimeGetVersion(&image.runtime);
  cudaDriverGetVersion(&image.driver);
  if (const cudaError_t error = inspect(device, image); error != cudaSuccess) {
    image.error = cudaGetErrorString(error);
    cudaGetLastError();  // the error is reported; it must not surface in somebody else's next launch check
  } else if (image.driver < 12010) {
    image.error =
        "the driver is for CUDA 12.0 or older, and kernels have the parameters of CUDA 12.1";  // 32 KB of them
  }
  return image;
}

bool kernels_run_on(int device) {
  static std::mutex mutex;
  static std::set<int> known;
  const std::scoped_lock lock(mutex);
  if (known.count(device)) return true;
  const bool runs = kernel_image(device).error.empty();  // which may be short of memory for once
  if (runs) known.insert(device);
  return runs;
}

}  // namespace l2t_fast::cuda
