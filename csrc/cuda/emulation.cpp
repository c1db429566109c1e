#include "emulation.h"

#include <cstring>

#include "emulator.h"
#include "kernel.h"

namespace l2t_fast::cuda {
namespace {

class EmulatedRunner : public Runner {
 public:
  EmulatedRunner(const Chip& chip, bool reversed) : chip_(chip), reversed_(reversed) {}

  Chip chip() const override { return chip_; }

  void upload(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }

  void matching(Products products, bool second, const Problem* problem, const Launch& launch) override {
    if (products == Products::tf32)
      second ? run<Tf32, true>(*problem, launch) : run<Tf32, false>(*problem, launch);
    else if (products == Products::tf32x3)
      second ? run<Tf32x3, true>(*problem, launch) : run<Tf32x3, false>(*problem, launch);
    else
      second ? run<Bfloat16, true>(*problem, launch) : run<Bfloat16, false>(*problem, launch);
  }

  void add_up(const Problem* problem, const Launch& launch) override {
    emulate(launch.blocks, launch.shared_bytes, reversed_,
            [&](EmulatedThread& thread) { cuda::add_up(thread, *problem, launch); });
  }

 private:
  template <class Mode, bool second>
  void run(const Problem& problem, const Launch& launch) {
    emulate(launch.blocks, launch.shared_bytes, reversed_,
            [&](EmulatedThread& thread) { cuda::matching<Mode, second>(thread, problem, launch); });
  }

  const Chip chip_;
  const bool reversed_;
};

std::unique_ptr<Runner> runner;

}  // namespace

void emulate_on_cpu(const Chip* chip, bool reversed) {
  runner = chip ? std::make_unique<EmulatedRunner>(*chip, reversed) : nullptr;
}

Runner* emulated_runner() { return runner.get(); }

}  // namespace l2t_fast::cuda
