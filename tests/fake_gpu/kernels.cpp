// The kernels of csrc/cuda by name, in their emulator.
#include <cstdio>
#include <cstring>
#include <set>
#include <stdexcept>
#include <vector>

#include "cuda/coefficients.h"
#include "cuda/differences.h"
#include "cuda/emulator.h"
#include "cuda/gradients.h"
#include "cuda/gram_planes.h"
#include "cuda/gram_products.h"
#include "cuda/gram_projections.h"
#include "cuda/runner.h"
#include "cuda/scaling.h"
#include "cuda/sums.h"
#include "runtime.h"

namespace fake_gpu {
namespace {

using namespace l2t_fast::cuda;

// In a mangled name, every identifier follows its length.
bool names(const std::string& kernel, const std::string& identifier) {
  return kernel.find(std::to_string(identifier.size()) + identifier) != std::string::npos;
}

template <class Kernel>
void emulate_blocks(int blocks, const Kernel& kernel) {
  emulate(blocks, shared_bytes, false, [&](EmulatedThread& thread) { kernel(thread); });
}

template <class Mode, class Each>
void run_direct(const std::string& kernel, const Each& each) {
  if (names(kernel, "pack_kernel"))
    each([](auto&... all) { pack<Mode>(all...); });
  else if (names(kernel, "gradients_kernel"))
    each([](auto&... all) { gradients<Mode>(all...); });
  else if (kernel.find("Lb1E") != std::string::npos)  // its argument `second` is true
    each([](auto&... all) { differences<Mode, true>(all...); });
  else
    each([](auto&... all) { differences<Mode, false>(all...); });
}

void run_matching(const std::string& kernel, const Problem& problem, const Launch& launch) {
  const bool bfloat16 = names(kernel, "Bfloat16");
  const auto each = [&](const auto& work) {
    emulate_blocks(launch.blocks, [&](EmulatedThread& thread) { work(thread, problem, launch); });
  };
  if (names(kernel, "finish_kernel"))
    each([](auto&... all) { finish(all...); });
  else if (names(kernel, "gram_planes_kernel"))
    each([](auto&... all) { gram_planes(all...); });
  else if (names(kernel, "gram_projections_kernel"))
    each([](auto&... all) { gram_projections(all...); });
  else if (names(kernel, "gram_products_kernel"))
    each([&](auto&... all) { bfloat16 ? gram_products<Bfloat16>(all...) : gram_products<Tf32x3>(all...); });
  else if (names(kernel, "gram_targets_kernel"))
    each([&](auto&... all) { bfloat16 ? gram_targets<Bfloat16>(all...) : gram_targets<Tf32>(all...); });
  else if (bfloat16)
    run_direct<Bfloat16>(kernel, each);
  else if (names(kernel, "Tf32x3"))
    run_direct<Tf32x3>(kernel, each);
  else
    run_direct<Tf32>(kernel, each);
}

template <class Value>
Value argument(void** arguments, int number) {
  return *static_cast<const Value*>(arguments[number]);
}

template <int capacity>
void launch_coefficients(int blocks, void** arguments, cudaStream_t stream) {
  const auto pairs = argument<SomePairs<capacity>>(arguments, 0);
  const auto call = argument<CoefficientCall>(arguments, 1);
  run(stream, [=] { emulate_blocks(blocks, [&](EmulatedThread& thread) { coefficients(thread, pairs, call); }); });
}

}  // namespace

void launch(const std::string& kernel, dim3 grid, dim3 block, size_t shared, void** arguments, cudaStream_t stream) {
  const int blocks = int(grid.x);
  if (launch_ptx(kernel, grid, block, shared, arguments, stream)) return;
  if (!names(kernel, "l2t_fast")) {
    static std::set<std::string> said;
    if (said.insert(kernel).second) fprintf(stderr, "fake GPU: left out the kernel %s\n", kernel.c_str());
  } else if (block.x != threads) {
    throw std::logic_error("a launch of other than " + std::to_string(threads) + " threads: " + kernel);
  } else if (names(kernel, "upload_kernel")) {
    const auto* const bytes = static_cast<const unsigned char*>(arguments[0]);
    const std::vector<unsigned char> table(bytes, bytes + 16 * argument<int>(arguments, 2));
    run(stream, [table, to = argument<void*>(arguments, 1)] { std::memcpy(to, table.data(), table.size()); });
  } else if (names(kernel, "coefficients_kernel")) {
    const std::string few = "ILi" + std::to_string(few_pairs) + "E";
    const bool are_few = kernel.find(few) != std::string::npos;
    (are_few ? launch_coefficients<few_pairs> : launch_coefficients<many_pairs>)(blocks, arguments, stream);
  } else if (names(kernel, "scaling_kernel")) {
    const auto some = argument<SomeScaled>(arguments, 0);
    run(stream, [=] { emulate_blocks(blocks, [&](EmulatedThread& thread) { scale(thread, some); }); });
  } else {
    const auto how = argument<Launch>(arguments, 1);
    if (blocks != how.blocks) throw std::logic_error("a launch of other blocks than planned: " + kernel);
    run(stream, [=, problem = argument<Problem>(arguments, 0)] { run_matching(kernel, problem, how); });
  }
}

}  // namespace fake_gpu
