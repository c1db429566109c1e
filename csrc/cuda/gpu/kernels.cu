#include <algorithm>
#include <cstring>

#include "../kernel.h"
#include "device.h"
#include "kernels.h"

namespace l2t_fast::cuda {
namespace {

struct Bytes {
  static constexpr int capacity = 4000;  // with the other parameters less than the 4 KB that every driver takes
  uint4 pieces[capacity / sizeof(uint4)];
};

__global__ void __launch_bounds__(threads) upload_kernel(const __grid_constant__ Bytes bytes, uint4* to, int pieces) {
  for (int i = int(threadIdx.x); i < pieces; i += threads) to[i] = bytes.pieces[i];
}

__global__ void __launch_bounds__(threads) add_up_kernel(const Problem* problem, Launch launch) {
  extern __shared__ __align__(16) unsigned char shared[];
  Device device(shared);
  add_up(device, *problem, launch);
}

}  // namespace

cudaError_t launch_upload(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  for (size_t done = 0; done < bytes; done += Bytes::capacity) {
    const size_t size = std::min<size_t>(Bytes::capacity, bytes - done);
    Bytes part;
    std::memcpy(part.pieces, static_cast<const unsigned char*>(from) + done, size);
    auto* const begin = reinterpret_cast<uint4*>(static_cast<unsigned char*>(to) + done);
    upload_kernel<<<1, threads, 0, stream>>>(part, begin, int(size / sizeof(uint4)));
    if (const cudaError_t error = cudaPeekAtLastError(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t launch_add_up(const Problem* problem, const Launch& launch, cudaStream_t stream) {
  add_up_kernel<<<launch.blocks, threads, launch.shared_bytes, stream>>>(problem, launch);
  return cudaPeekAtLastError();
}

}  // namespace l2t_fast::cuda
