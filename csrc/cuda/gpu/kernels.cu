#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace l2t_fast::cuda {
namespace {

// As much as the parameters of a kernel hold, and a small one for small tables.
template <int capacity>
struct Bytes {
  uint4 pieces[capacity / sizeof(uint4)];
};
constexpr int small = 4000, large = 32000;

template <int capacity>
__global__ void __launch_bounds__(threads)
    upload_kernel(const __grid_constant__ Bytes<capacity> bytes, uint4* to, int pieces) {
  for (int i = int(threadIdx.x); i < pieces; i += threads) to[i] = bytes.pieces[i];
}

template <int capacity>
cudaError_t upload(unsigned char* to, const unsigned char* from, size_t bytes, cudaStream_t stream) {
  Bytes<capacity> part;
  std::memcpy(part.pieces, from, bytes);
  upload_kernel<capacity><<<1, threads, 0, stream>>>(part, reinterpret_cast<uint4*>(to), int(bytes / sizeof(uint4)));
  return cudaPeekAtLastError();
}

}  // namespace

cudaError_t launch_upload(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  auto* const begin = static_cast<unsigned char*>(to);
  const auto* const source = static_cast<const unsigned char*>(from);
  for (size_t done = 0; done < bytes; done += large) {
    const size_t size = std::min<size_t>(large, bytes - done);
    const auto function = size <= small ? upload<small> : upload<large>;
    if (const cudaError_t error = function(begin + done, source + done, size, stream); error != cudaSuccess)
      return error;
  }
  return cudaSuccess;
}

}  // namespace l2t_fast::cuda
