// A CUDA runtime without a GPU: device memory is the host's, and what is launched has run when the launch returns.
//
// While a stream is captured, work runs too, so that what follows sees real numbers. It is kept for the graph, and what
// it wrote is put back when the capture ends, as if it had not run.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>

namespace fake_gpu {

using Work = std::function<void()>;

bool is_capturing(cudaStream_t stream);
void keep_for_the_graph(cudaStream_t stream, Work work);
void put_back_after_the_capture(cudaStream_t stream, Work work);

// Now, and whenever the graph is launched that is being captured.
void run(cudaStream_t stream, const Work& work);

// Device memory, or memory of the host that devices may read.
struct Found {
  const void* begin;  // null if the address lies in none
  size_t bytes;
};
Found memory_at(const void* address);

// A number among the variables of the environment, or else the other one.
int setting(const char* variable, int otherwise);

// Runs the kernel of that (mangled) name, or, if it is not one of ours, says so once and leaves it out.
void launch(const std::string& kernel, dim3 grid, dim3 block, size_t shared, void** arguments, cudaStream_t stream);

// Where FAKE_GPU_PTX names a file of PTX and it has that kernel: runs it, and says so.
bool launch_ptx(const std::string& kernel, dim3 grid, dim3 block, size_t shared, void** arguments, cudaStream_t stream);

}  // namespace fake_gpu
