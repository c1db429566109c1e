// Blocks, warps, and which lanes of a warp go on.
#include <algorithm>
#include <climits>
#include <numeric>

#include "machine.h"

namespace fake_gpu::ptx {
namespace {

constexpr size_t guard_bytes = 1024;

void set_special(Warp& warp, const std::string& name, const Operand& operand, int block_number, const Launch& launch) {
  uint32_t* const to = warp.of(operand);
  const auto b = uint32_t(block_number);
  const Dimensions& grid = launch.grid;
  const std::map<std::string, uint32_t> same{
      {"%ntid.x", launch.block.x},
      {"%ntid.y", 1},
      {"%nctaid.x", grid.x},
      {"%nctaid.y", grid.y},
      {"%nctaid.z", grid.z},
      {"%ctaid.x", b % grid.x},
      {"%ctaid.y", b / grid.x % grid.y},
      {"%ctaid.z", b / grid.x / grid.y},
      {"%tid.y", 0},
      {"%tid.z", 0},
      {"%warpid", uint32_t(warp.number)},
  };
  const auto found = same.find(name);
  const bool is_lane = name == "%laneid", is_thread = name == "%tid.x";
  if (found == same.end() && !is_lane && !is_thread) throw std::logic_error("there is no " + name);
  for (int lane = 0; lane < lanes; ++lane)
    to[lane] = is_lane ? uint32_t(lane) : is_thread ? uint32_t(warp.number * lanes + lane) : found->second;
}

// At a barrier, or the end: everybody waits for the last one, whose waits are the block's.
void meet(Block& block, std::vector<Warp>& warps) {
  const auto earlier = [](const Warp& a, const Warp& b) { return a.timeline.now() < b.timeline.now(); };
  const auto last = std::max_element(warps.begin(), warps.end(), earlier);
  const uint64_t time = last->timeline.now() + latency::barrier;
  for (const auto& [at, cycles] : last->timeline.take_waits()) block.counts.waits[size_t(at)] += cycles;
  for (Warp& warp : warps) {
    warp.timeline.take_waits();
    warp.timeline.meet(time);
  }
}

void run_block(Block& block, int number, const Launch& launch, std::vector<unsigned char>& registers) {
  const int count = int(launch.block.x) / lanes;
  std::memset(block.shared, 0xff, block.shared_bytes + guard_bytes);
  std::vector<Warp> warps;
  warps.reserve(size_t(count));
  for (int w = 0; w < count; ++w)
    warps.emplace_back(block, w, number, launch, registers.data() + size_t(w) * block.kernel.register_bytes);
  const auto all_runs = [&counts = block.counts] {
    return std::accumulate(counts.runs.begin(), counts.runs.end(), uint64_t(0));
  };
  const uint64_t executed = launch.timed ? all_runs() : 0;
  for (bool is_left = true; is_left;) {
    is_left = false;
    for (int w = 0; w < count; ++w) warps[size_t(launch.reversed ? count - 1 - w : w)].run();
    if (launch.timed) meet(block, warps);
    for (Warp& warp : warps) {
      warp.waits = false;
      is_left |= !warp.groups.empty();
    }
  }
  if (launch.timed) {
    block.counts.cycles.push_back(warps[0].timeline.now());
    block.counts.instructions.push_back(all_runs() - executed);
  }
  for (const Warp& warp : warps)
    if (!warp.products.empty()) throw std::logic_error("ends before products it asked for");
  for (size_t i = block.shared_bytes; i < block.shared_bytes + guard_bytes; ++i)
    if (block.shared[i] != 0xff) throw std::logic_error("a block wrote beyond its shared memory");
}

}  // namespace

Warp::Warp(Block& block, int number, int block_number, const Launch& launch, unsigned char* registers)
    : block(block),
      number(number),
      constants(reinterpret_cast<unsigned char*>(const_cast<uint32_t*>(block.kernel.constants.data()))),
      registers(registers),
      groups{{0, ~0u}},
      timeline(block.kernel, block.timings) {
  for (const auto& [name, operand] : block.kernel.special) set_special(*this, name, operand, block_number, launch);
}

// Whoever is furthest behind, so that lanes which went different ways meet where the ways do.
Group& Warp::next() {
  uint32_t all = 0;
  for (const Group& group : groups) all |= group.mask;
  Group* found = nullptr;
  for (Group& group : groups) {
    const bool lacks_some = block.kernel.code[size_t(group.at)].meets != Meets::nobody && group.mask != all;
    if (!lacks_some && (!found || group.at < found->at)) found = &group;
  }
  if (!found)
    throw std::logic_error("lanes of a warp wait for each other at different places, one of them: " +
                           block.kernel.code[size_t(groups[0].at)].text);
  return *found;
}

void Warp::run() {
  while (!groups.empty() && !waits) run(next());
}

void Warp::run(Group& group) {
  const Instruction* const code = block.kernel.code.data();
  uint64_t* const runs = block.counts.runs.data();
  int at = group.at;
  const auto mine = size_t(&group - groups.data());
  const auto next_of_others = [&] {
    int next = INT_MAX;
    for (size_t g = 0; g < groups.size(); ++g)
      if (g != mine && groups[g].at >= at) next = std::min(next, groups[g].at);
    return next;
  };
  int others = next_of_others();
  const uint32_t all = group.mask;
  const bool is_whole = groups.size() == 1, is_timed = !block.timings.empty();
  const auto conflicts = [&counts = block.counts] { return counts.shared_wavefronts - counts.shared_least; };
  const auto left_by = [this](int i) {  // groups that are not waited for
    const auto& operands = block.kernel.code[size_t(i)].operands;
    return block.timings[size_t(i)].waits_for_groups() && !operands.empty() ? uint64_t(*of(operands[0])) : 0;
  };
  while (at != others) {
    const Instruction& instruction = code[at];
    if (instruction.meets != Meets::nobody && !is_whole) break;
    ++runs[at];
    mask = all;
    if (instruction.is_guarded) {
      const uint32_t* const guard = of(instruction.guard);
      uint32_t holds = 0;
      for (int lane = 0; lane < lanes; ++lane) holds |= uint32_t((guard[lane] != 0) != instruction.is_negated) << lane;
      mask &= holds;
    }
    found_after = 0;
    if (instruction.operation) {
      const uint64_t before = conflicts();
      if (mask) {
        try {
          instruction.operation(*this, instruction);
        } catch (const std::exception& error) {
          throw std::logic_error("warp " + std::to_string(number) + ": " + instruction.text + ": " + error.what());
        }
      }
      block.counts.conflicts[size_t(at)] += conflicts() - before;
      if (is_timed) timeline.did(at, found_after, left_by(at));
      ++at;
      if (instruction.meets == Meets::block) {
        waits = true;
        break;
      }
      continue;
    }
    if (is_timed) timeline.did(at, 0, 0);
    const uint32_t rest = all & ~mask;
    if (mask && rest) {  // they part
      groups.erase(groups.begin() + ptrdiff_t(mine));
      add(at + 1, rest);
      if (!instruction.ends) add(instruction.target, mask);
      return;
    }
    if (mask && instruction.ends) {
      groups.erase(groups.begin() + ptrdiff_t(mine));
      return;
    }
    at = mask ? instruction.target : at + 1;
    others = next_of_others();
  }
  groups.erase(groups.begin() + ptrdiff_t(mine));
  add(at, all);
}

// Lanes that stand at the same place are one group.
void Warp::add(int at, uint32_t lanes_there) {
  for (Group& group : groups)
    if (group.at == at) {
      group.mask |= lanes_there;
      return;
    }
  groups.push_back({at, lanes_there});
}

unsigned char* shared_at(Warp& warp, uint32_t offset, size_t bytes) {
  if (offset + bytes > warp.block.shared_bytes) throw std::logic_error("beyond the block's shared memory");
  if (offset % bytes) throw std::logic_error("an address in shared memory is not aligned");
  return warp.block.shared + offset;
}

unsigned char* generic_at(Warp& warp, uint64_t address, size_t bytes) {
  auto* const found = reinterpret_cast<unsigned char*>(address);
  const auto offset = uint64_t(found - warp.block.shared);
  if (offset < warp.block.shared_bytes) return shared_at(warp, uint32_t(offset), bytes);
  if (address % bytes) throw std::logic_error("an address is not aligned to " + std::to_string(bytes) + " bytes");
  const auto lies_in = [&](const unsigned char* begin, size_t size) {
    return uint64_t(found - begin) < size && uint64_t(found - begin) + bytes <= size;
  };
  Allocation& last = warp.block.last_found;
  if (!warp.block.allocation_of || lies_in(last.begin, last.bytes) ||
      lies_in(warp.block.parameters, warp.block.kernel.parameter_bytes))
    return found;
  last = warp.block.allocation_of(found);
  if (!lies_in(last.begin, last.bytes)) throw std::logic_error("nothing is allocated at " + std::to_string(address));
  return found;
}

std::vector<unsigned char> packed(const Kernel& kernel, void* const* given) {
  std::vector<unsigned char> parameters(kernel.parameter_bytes);
  for (size_t i = 0; i < kernel.parameters.size(); ++i)
    std::memcpy(parameters.data() + kernel.parameters[i].at, given[i], kernel.parameters[i].bytes);
  return parameters;
}

Counts run(const Kernel& kernel, const Launch& launch, const std::vector<unsigned char>& parameters) {
  if (launch.block.x % lanes || launch.block.y != 1 || launch.block.z != 1)
    throw std::logic_error(kernel.name + ": a block is not a line of whole warps");
  const size_t shared_bytes = kernel.static_shared_bytes + launch.dynamic_shared_bytes;
  std::vector<unsigned char> memory(shared_bytes + guard_bytes + 1024);
  unsigned char* const shared = memory.data() + (1024 - reinterpret_cast<uintptr_t>(memory.data()) % 1024);
  Counts counts;
  counts.runs.resize(kernel.code.size());
  counts.waits.resize(kernel.code.size());
  counts.conflicts.resize(kernel.code.size());
  const auto timings = launch.timed ? timings_of(kernel) : std::vector<Timing>{};
  Block block{kernel, parameters.data(), shared, shared_bytes, counts, timings, 0, launch.allocation_of};
  std::vector<unsigned char> registers(kernel.register_bytes * launch.block.x / lanes, 0xff);
  const int blocks = int(launch.grid.x * launch.grid.y * launch.grid.z);
  for (int b = 0; b < blocks; ++b) {
    const int number = launch.reversed ? blocks - 1 - b : b;
    block.number = number;
    try {
      run_block(block, number, launch, registers);
    } catch (const std::exception& error) {
      throw std::logic_error(kernel.name + ", block " + std::to_string(number) + ", " + error.what());
    }
  }
  return counts;
}

}  // namespace fake_gpu::ptx
