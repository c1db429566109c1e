#include "emulation.h"

#include <cstring>

#include "differences.h"
#include "emulator.h"
#include "gradients.h"
#include "gram_planes.h"
#include "gram_products.h"
#include "gram_projections.h"
#include "sums.h"

namespace l2t_fast::cuda {
namespace {

class EmulatedRunner : public Runner {
 public:
  EmulatedRunner(const Chip& chip, Emulation emulation) : chip_(chip), emulation_(emulation) {}

  Chip chip() const override { return chip_; }

  void upload(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }

  void run(Products products, bool second, const Problem& problem, const Launch& launch) override {
    if (products == Products::tf32)
      run<Tf32>(second, problem, launch);
    else if (products == Products::tf32x3)
      run<Tf32x3>(second, problem, launch);
    else
      run<Bfloat16>(second, problem, launch);
  }

  void run(const PairColumns* pairs, const CoefficientCall& call) override {
    for_some_pairs_at_a_time(pairs, call, [&](const auto& some, int blocks) {
      emulate_blocks(blocks, shared_bytes, [&](EmulatedThread& thread) { coefficients(thread, some, call); });
    });
  }

 private:
  template <class Mode>
  void run(bool second, const Problem& problem, const Launch& launch) {
    const size_t shared = launch.kernel == Kernel::gram_planes ? size_t(planes_bytes(launch.side)) : shared_bytes;
    emulate_blocks(launch.blocks, shared, [&](EmulatedThread& thread) {
      if (launch.kernel == Kernel::pack)
        pack<Mode>(thread, problem, launch);
      else if (launch.kernel == Kernel::gradients)
        gradients<Mode>(thread, problem, launch);
      else if (launch.kernel == Kernel::gram_planes)
        gram_planes(thread, problem, launch);
      else if (launch.kernel == Kernel::gram_products)
        gram_products<std::conditional_t<std::is_same_v<Mode, Bfloat16>, Bfloat16, Tf32x3>>(thread, problem, launch);
      else if (launch.kernel == Kernel::gram_projections)
        gram_projections(thread, problem, launch);
      else if (launch.kernel == Kernel::gram_targets)
        gram_targets<std::conditional_t<std::is_same_v<Mode, Bfloat16>, Bfloat16, Tf32>>(thread, problem, launch);
      else if (launch.kernel == Kernel::finish)
        finish(thread, problem, launch);
      else if (second)
        differences<Mode, true>(thread, problem, launch);
      else
        differences<Mode, false>(thread, problem, launch);
    });
  }

  template <class Kernel>
  void emulate_blocks(int blocks, size_t shared, const Kernel& kernel) {
    if (emulation_ != Emulation::host_alone) emulate(blocks, shared, emulation_ == Emulation::reversed, kernel);
  }

  const Chip chip_;
  const Emulation emulation_;
};

std::unique_ptr<Runner> runner;

}  // namespace

void emulate_on_cpu(const Chip* chip, Emulation emulation) {
  runner = chip ? std::make_unique<EmulatedRunner>(*chip, emulation) : nullptr;
}

Runner* emulated_runner() { return runner.get(); }

}  // namespace l2t_fast::cuda
