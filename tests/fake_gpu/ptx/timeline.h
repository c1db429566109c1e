// When a warp would do what it does: a model of a GPU's processor, simple enough to be read in a minute.
//
// A warp issues an instruction a cycle, in order, and stands still where one needs a number that is on its way. Between
// two branches, labels or barriers the order is ptxas's to choose: there every instruction begins as soon as what it
// needs is there. At a barrier all wait for the last warp. Nothing is said of other blocks on the same processor, nor
// of how much the memories can bring: what comes out is the time that a block takes at least.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "program.h"

namespace fake_gpu::ptx {

// Cycles until a result can be used. Of the same size on all GPUs of the last years.
namespace latency {
constexpr uint64_t arithmetic = 4, parameters = 8, shared = 30, product = 33, barrier = 20;
// a line of memory that the block has had before, that the launch has had, and another
constexpr uint64_t first_cache = 35, second_cache = 270, memory = 600;
}  // namespace latency

// Of an instruction, what the model asks.
struct Timing {
  enum class Kind : uint8_t {
    ordinary,
    load,
    copy,
    close_copies,
    wait_for_copies,
    request,
    close_products,
    wait_for_products,
    block
  };
  Kind kind = Kind::ordinary;
  uint32_t results = 0;  // how many of its operands are
  uint64_t latency = latency::arithmetic;
  bool begins = false;  // a label stands before it

  bool waits_for_groups() const { return kind == Kind::wait_for_copies || kind == Kind::wait_for_products; }
};

// Of all instructions of a kernel.
std::vector<Timing> timings_of(const Kernel& kernel);

// Which lines of memory a launch has touched, the last block that did, and which of their four sectors. The first cache
// keeps what its block has touched; blocks run one after another, and have nothing of each other's there.
class Lines {
 public:
  // A warp's access to some sectors of a line: what it takes.
  uint64_t latency_of(uint64_t line, uint32_t sectors, int block, bool past_first_cache);
  size_t count() const { return last_.size(); }
  uint64_t sectors_of_first_cache() const { return sectors_of_first_cache_; }
  uint64_t sectors_of_second_cache() const { return sectors_of_second_cache_; }

 private:
  struct Last {
    int block;
    uint32_t sectors;
  };
  std::unordered_map<uint64_t, Last> last_;
  uint64_t sectors_of_first_cache_ = 0, sectors_of_second_cache_ = 0;
};

// Of a warp.
class Timeline {
 public:
  Timeline(const Kernel& kernel, const std::vector<Timing>& timings)
      : code_(kernel.code.data()),
        timings_(timings.data()),
        ready_(timings.empty() ? 0 : kernel.register_bytes / (4 * lanes) + 2) {}

  // The instruction was executed; `found` is what its access to memory takes, if it had one, and `left` how many groups
  // of copies or products may be left.
  void did(int at, uint64_t found, uint64_t left);
  void leave();  // the end of a stretch that ptxas orders as it likes

  uint64_t now() const { return entry_; }
  void meet(uint64_t time) { entry_ = last_ = time; }

  // Since the last call: cycles that it stood still, by instruction.
  std::unordered_map<int, uint64_t> take_waits() { return std::exchange(waits_, {}); }

 private:
  uint64_t ready_at(const Operand& operand) const { return operand.is_constant ? 0 : ready_[operand.at / (4 * lanes)]; }

  const Instruction* code_;
  const Timing* timings_;
  std::vector<uint64_t> ready_;      // by register
  uint64_t entry_ = 0, issued_ = 0;  // when the stretch began, instructions since
  uint64_t last_ = 0;                // when the last of them began
  int last_at_ = 0;
  uint64_t copies_ = 0, products_ = 0;  // when those that were requested are done
  std::vector<uint64_t> closed_copies_, closed_products_;
  std::unordered_map<int, uint64_t> waits_;
};

}  // namespace fake_gpu::ptx
