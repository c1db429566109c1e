// The checked longjmp takes a jump to another coroutine's stack for an error: CMakeLists.txt compiles this file
// without.
#include "emulator.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <exception>
#include <stdexcept>

#include "emulator_races.h"

namespace l2t_fast::cuda {
namespace {

constexpr size_t stack_bytes = 256 * 1024;
constexpr size_t guard_bytes = 4096;
constexpr int warp_size = 32, warps = threads / warp_size;

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float toward_zero(double value) {
  const float nearest = float(value);
  const bool is_larger = std::abs(double(nearest)) > std::abs(value) && std::isfinite(nearest);
  return is_larger ? std::nextafter(nearest, 0.f) : nearest;
}

// A number of threads that meet: the last one to come does what is to do for all.
struct Meeting {
  int members;
  int arrived = 0;
  uint64_t generation = 0;
};

}  // namespace

class EmulatedBlock {
 public:
  EmulatedBlock(int number, unsigned char* shared, unsigned char* stacks, bool reversed,
                const std::function<void(EmulatedThread&)>& kernel)
      : number(number), shared(shared), reversed_(reversed), kernel_(kernel), all_{threads} {
    for (int t = 0; t < threads; ++t) fibers_.emplace_back(std::make_unique<Fiber>(*this, t, stacks + t * stack_bytes));
  }

  void run() {
    while (finished_ < threads) {
      const uint64_t before = progress_;
      for (int t = 0; t < threads; ++t) resume(*fibers_[reversed_ ? threads - 1 - t : t]);
      if (error_) std::rethrow_exception(error_);
      if (progress_ == before) throw std::logic_error("the threads of a block wait for each other at different places");
    }
  }

  void barrier() {
    // Of two in turn: who goes on from this one must not order what it does next before what the others do.
    races::Order& order = barriers_[all_.generation % 2];
    order.release();
    meet(all_, [] {});
    order.acquire();
  }

  template <class Action>
  void meet_warp(int thread, const Action& action) {
    meet(of_warp_[thread / warp_size], action);
  }

  const int number;
  unsigned char* const shared;
  float exchanged[threads];
  float (*sums[threads])[4][4];
  const uint32_t (*a[threads])[4];
  const uint32_t (*b[threads])[4];
  const void* rows[threads];

 private:
  struct Fiber {
    Fiber(EmulatedBlock& block, int number, unsigned char* stack)
        : block(block), thread(block, number), seen_as(block.number, number), stack(stack) {}

    EmulatedBlock& block;
    EmulatedThread thread;
    races::Fiber seen_as;
    unsigned char* stack;
    ucontext_t start;
    jmp_buf place;
    bool started = false, finished = false;
  };

  void resume(Fiber& fiber) {
    if (fiber.finished) return;
    running_ = &fiber;
    if (_setjmp(scheduler_)) return;
    fiber.seen_as.enter();
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack;
    fiber.start.uc_stack.ss_size = stack_bytes;
    fiber.start.uc_link = nullptr;
    const auto address = reinterpret_cast<uintptr_t>(&fiber);
    makecontext(&fiber.start, reinterpret_cast<void (*)()>(&EmulatedBlock::enter), 2, unsigned(address >> 32),
                unsigned(address));
    setcontext(&fiber.start);
  }

  static void enter(unsigned high, unsigned low) {
    Fiber& fiber = *reinterpret_cast<Fiber*>(uintptr_t(high) << 32 | low);
    EmulatedBlock& block = fiber.block;
    races::begin_thread();
    try {
      block.kernel_(fiber.thread);
    } catch (...) {
      block.error_ = std::current_exception();
    }
    fiber.finished = true;
    ++block.finished_;
    ++block.progress_;
    races::end_thread();
    block.scheduling_.enter();
    _longjmp(block.scheduler_, 1);
  }

  void leave() {
    Fiber& fiber = *running_;
    if (_setjmp(fiber.place)) return;
    scheduling_.enter();
    _longjmp(scheduler_, 1);
  }

  template <class Action>
  void meet(Meeting& meeting, const Action& action) {
    const uint64_t generation = meeting.generation;
    if (++meeting.arrived == meeting.members) {
      action();
      meeting.arrived = 0;
      ++meeting.generation;
      ++progress_;
      return;
    }
    while (meeting.generation == generation) leave();
  }

  const bool reversed_;
  const std::function<void(EmulatedThread&)>& kernel_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  Meeting all_;
  std::vector<Meeting> of_warp_{warps, Meeting{warp_size}};
  races::Order barriers_[2];
  races::Current scheduling_;
  Fiber* running_ = nullptr;
  jmp_buf scheduler_;
  int finished_ = 0;
  uint64_t progress_ = 0;
  std::exception_ptr error_;
};

int EmulatedThread::block() const { return block_.number; }
unsigned char* EmulatedThread::shared() const { return block_.shared; }
void EmulatedThread::barrier() { block_.barrier(); }

float EmulatedThread::exchange(float value, int mask) {
  block_.exchanged[number_] = value;
  block_.meet_warp(number_, [] {});
  const float found = block_.exchanged[number_ ^ mask];
  block_.meet_warp(number_, [] {});
  return found;
}

void EmulatedThread::request(void* to, const void* from, int bytes, bool lives) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % unsigned(bytes))
    throw std::logic_error("an asynchronous copy is not aligned");
  copies_.push_back({to, from, bytes, lives});
  touch(copies_.back());
}

void EmulatedThread::touch(const Copy& copy) {
  if (copy.lives) races::read(copy.from, copy.bytes);
  races::write(copy.to, copy.bytes);
}

void EmulatedThread::arrive(size_t groups_left) {
  if (groups_.size() <= groups_left) return;
  const size_t count = groups_[groups_.size() - groups_left - 1];
  for (size_t i = 0; i < count; ++i) {
    const Copy& copy = copies_[i];
    touch(copy);
    if (copy.lives)
      std::memcpy(copy.to, copy.from, copy.bytes);
    else
      std::memset(copy.to, 0, copy.bytes);
  }
  copies_.erase(copies_.begin(), copies_.begin() + ptrdiff_t(count));
  groups_.erase(groups_.begin(), groups_.end() - ptrdiff_t(groups_left));
  for (size_t& group : groups_) group -= count;
}

uint32_t EmulatedThread::split_tf32(uint32_t& bits) const {
  const float whole = float_of(bits);
  bits = tf32(bits);
  return tf32(bits_of(whole - float_of(bits)));
}

void EmulatedThread::load_matrices(uint32_t (&registers)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) throw std::logic_error("a matrix's row is not aligned");
  const int lane = number_ % warp_size, first = number_ - lane;
  block_.rows[number_] = row;
  block_.meet_warp(number_, [] {});
  for (int matrix = 0; matrix < 4; ++matrix) {
    const uint32_t* const word = static_cast<const uint32_t*>(block_.rows[first + 8 * matrix + lane / 4]) + lane % 4;
    races::read(word, sizeof *word);
    registers[matrix] = *word;
  }
  block_.meet_warp(number_, [] {});
}

void EmulatedThread::load_transposed(uint32_t (&registers)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) throw std::logic_error("a matrix's row is not aligned");
  const int lane = number_ % warp_size, first = number_ - lane;
  block_.rows[number_] = row;
  block_.meet_warp(number_, [] {});
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto element = [&](int line) {
      const uint16_t* const found = static_cast<const uint16_t*>(block_.rows[first + 8 * matrix + line]) + lane / 4;
      races::read(found, sizeof *found);
      return uint32_t(*found);
    };
    registers[matrix] = element(lane % 4 * 2) | element(lane % 4 * 2 + 1) << 16;
  }
  block_.meet_warp(number_, [] {});
}

// Layout of registers: PTX, "Matrix fragments for mma.m16n8k8" and "mma.m16n8k16".
void EmulatedThread::multiply(float (*sums)[4][4], const uint32_t (*a)[4], const uint32_t (*b)[4], int blocks,
                              bool bfloat16) {
  EmulatedBlock& block = block_;
  block.sums[number_] = sums;
  block.a[number_] = a;
  block.b[number_] = b;
  block.meet_warp(number_, [&block, first = number_ / warp_size * warp_size, blocks, bfloat16] {
    const int words = bfloat16 ? 2 : 1, depth = 8 * words;  // terms a register, terms in all
    const auto value = [bfloat16](uint32_t bits, int word) {
      if (!bfloat16) return float_of(bits & 0xffffe000);  // the others are not looked at
      return float_of(word ? bits & 0xffff0000 : bits << 16);
    };
    float left[64][16], right[16][32];
    double sum[64][32];  // exact, as nearly as tensor cores have it; they cut what a float does not hold
    for (int lane = 0; lane < warp_size; ++lane)
      for (int word = 0; word < words; ++word) {
        const int group = lane / 4, k = lane % 4 * words + word;
        for (int i = 0; i < blocks; ++i)
          for (int e = 0; e < 4; ++e)
            left[16 * i + group + e % 2 * 8][k + e / 2 * 4 * words] = value(block.a[first + lane][i][e], word);
        for (int j = 0; j < 4; ++j)
          for (int e = 0; e < 2; ++e)
            right[k + 4 * words * e][8 * j + group] = value(block.b[first + lane][j / 2][j % 2 * 2 + e], word);
      }
    const auto each = [&](const auto& action) {
      for (int lane = 0; lane < warp_size; ++lane)
        for (int i = 0; i < blocks; ++i)
          for (int j = 0; j < 4; ++j)
            for (int e = 0; e < 4; ++e)
              action(block.sums[first + lane][i][j][e],
                     sum[16 * i + lane / 4 + e / 2 * 8][8 * j + lane % 4 * 2 + e % 2]);
    };
    each([](float& own, double& whole) { whole = own; });
    for (int row = 0; row < 16 * blocks; ++row)
      for (int k = 0; k < depth; ++k)
        for (int column = 0; column < 32; ++column) sum[row][column] += double(left[row][k]) * right[k][column];
    each([](float& own, double& whole) { own = toward_zero(whole); });
  });
}

float EmulatedThread::as_float(uint32_t bits) const { return float_of(bits); }
uint32_t EmulatedThread::as_bits(float value) const { return bits_of(value); }
float EmulatedThread::from_half(uint16_t bits) const { return c10::Half(bits, c10::Half::from_bits()); }
uint16_t EmulatedThread::to_half(float value) const { return c10::Half(value).x; }
uint16_t EmulatedThread::to_bfloat16(float value) const { return c10::BFloat16(value).x; }

void emulate(int blocks, size_t shared_bytes, bool reversed, const std::function<void(EmulatedThread&)>& kernel) {
  races::launch(blocks, [&](int begin, int end) {
    // room to align, and a guard behind what the kernel asked for
    std::vector<unsigned char> memory(shared_bytes + guard_bytes + 128);
    unsigned char* const shared = memory.data() + (128 - reinterpret_cast<uintptr_t>(memory.data()) % 128);
    const std::unique_ptr<unsigned char[]> stacks(new unsigned char[threads * stack_bytes]);
    for (int block = begin; block < end; ++block) {
      std::memset(shared, 0xff, shared_bytes + guard_bytes - 128);
      EmulatedBlock(reversed ? blocks - 1 - block : block, shared, stacks.get(), reversed, kernel).run();
      for (size_t i = shared_bytes; i < shared_bytes + guard_bytes - 128; ++i)
        if (shared[i] != 0xff) throw std::logic_error("a block wrote beyond its shared memory");
    }
  });
}

}  // namespace l2t_fast::cuda
