// The state of a block while it runs.
#pragma once

#include <cstring>
#include <utility>

#include "program.h"
#include "timeline.h"

namespace fake_gpu::ptx {

struct Dimensions {
  uint32_t x = 1, y = 1, z = 1;
};

// What a kernel does, counted while it runs. An instruction counts once for a warp, however many lanes take part.
struct Counts {
  std::vector<uint64_t> runs;       // by instruction
  uint64_t global_sectors = 0;      // pieces of 32 bytes that loads, stores and copies of a warp touch
  uint64_t global_bytes = 0;        // that they are asked for
  uint64_t shared_wavefronts = 0;   // what shared memory takes for them: one for each word of the fullest bank
  uint64_t shared_least = 0;        // the fewest that their bytes would take
  std::vector<uint64_t> conflicts;  // by instruction: wavefronts beyond those
  // By the model of timeline.h, if it was asked for: of each block its cycles and instructions, and by instruction the
  // cycles that the last of a block's warps stood still; lines of memory that the launch touched.
  std::vector<uint64_t> cycles, instructions, waits;
  Lines lines;
};

// Memory that is allocated on the device.
struct Allocation {
  const unsigned char* begin = nullptr;
  size_t bytes = 0;
};

// Where the address lies; nothing if nothing is allocated there.
using FindAllocation = Allocation (*)(const void* address);

struct Block {
  const Kernel& kernel;
  const unsigned char* parameters;
  unsigned char* shared;
  size_t shared_bytes;
  Counts& counts;
  const std::vector<Timing>& timings;  // none: it is not asked when
  int number;
  FindAllocation allocation_of;
  Allocation last_found{};
};

struct Copy {
  unsigned char* to[lanes];
  const unsigned char* from[lanes];
  uint32_t bytes, alive[lanes], mask;
  uint32_t group[lanes];  // lanes close groups by themselves
};

// Of a warpgroup's tensor cores: runs when it is waited for. The numbers are those that are read when it is requested.
struct RequestedProduct {
  const Instruction* instruction;
  std::vector<uint64_t> numbers;
};

struct Group {  // of lanes that stand at the same place
  int at;
  uint32_t mask;
};

struct Warp {
  Warp(Block& block, int number, int block_number, const struct Launch& launch, unsigned char* registers);

  template <class T = uint32_t>
  T* of(const Operand& operand) {
    return reinterpret_cast<T*>((operand.is_constant ? constants : registers) + operand.at);
  }

  // Until it ends, or waits for the block.
  void run();

  Block& block;
  const int number;
  unsigned char* const constants;
  unsigned char* const registers;
  uint32_t mask = ~0u;        // of the lanes that an operation is for
  std::vector<Group> groups;  // empty when all have ended
  std::vector<Copy> copies;   // requested, and not waited for
  uint32_t groups_closed[lanes] = {};
  std::vector<RequestedProduct> products;
  std::vector<size_t> closed;  // how many of `products` had been requested when a group was closed
  bool waits = false;          // at a barrier
  Timeline timeline;
  uint64_t found_after = 0;  // cycles that the last access to memory takes

 private:
  void run(Group& group);
  void add(int at, uint32_t lanes_there);
  Group& next();
};

struct Launch {
  Dimensions grid, block;
  size_t dynamic_shared_bytes = 0;
  bool reversed = false;  // blocks and warps in the opposite order
  bool timed = false;
  FindAllocation allocation_of = nullptr;  // if there is one, every address is looked up
};

// What a launch hands over: an address for each parameter -> their values, as the kernel has them.
std::vector<unsigned char> packed(const Kernel& kernel, void* const* parameters);

// Raises std::logic_error, which names kernel and instruction.
Counts run(const Kernel& kernel, const Launch& launch, const std::vector<unsigned char>& parameters);

// Checked addresses, for the operations.
unsigned char* shared_at(Warp& warp, uint32_t offset, size_t bytes);
unsigned char* generic_at(Warp& warp, uint64_t address, size_t bytes);

void count_global(Warp& warp, const uint64_t (&addresses)[lanes], size_t bytes, bool past_first_cache);
void count_shared(Warp& warp, const uint32_t (&offsets)[lanes], size_t bytes);

}  // namespace fake_gpu::ptx
