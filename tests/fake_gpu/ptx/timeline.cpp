#include "timeline.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace fake_gpu::ptx {

std::vector<Timing> timings_of(const Kernel& kernel) {
  using Kind = Timing::Kind;
  std::vector<Timing> timings(kernel.code.size());
  for (size_t i = 0; i < kernel.code.size(); ++i) {
    const Instruction& instruction = kernel.code[i];
    const std::string& opcode = instruction.opcode;
    const auto begins_with = [&](const char* text) { return opcode.starts_with(text); };
    const auto count = uint32_t(instruction.operands.size());
    Timing& timing = timings[i];
    if (instruction.target >= 0) timings[size_t(instruction.target)].begins = true;
    if (!instruction.operation) continue;
    if (begins_with("ld.") || begins_with("ldmatrix")) {
      timing = {Kind::load, count - 1, opcode.find(".param") == opcode.npos ? latency::shared : latency::parameters,
                timing.begins};
    } else if (begins_with("cp.async.commit")) {
      timing.kind = Kind::close_copies;
    } else if (begins_with("cp.async.wait")) {
      timing.kind = Kind::wait_for_copies;
    } else if (begins_with("cp.async")) {
      timing.kind = Kind::copy;
    } else if (begins_with("mma.")) {
      timing = {Kind::ordinary, 4, latency::product, timing.begins};
    } else if (begins_with("wgmma.mma_async")) {
      const auto columns = uint64_t(instruction.numbers[0]);
      timing = {Kind::request, uint32_t(columns / 2), columns / 2, timing.begins};
    } else if (begins_with("wgmma.commit")) {
      timing.kind = Kind::close_products;
    } else if (begins_with("wgmma.wait")) {
      timing.kind = Kind::wait_for_products;
    } else if (instruction.meets == Meets::block) {
      timing.kind = Kind::block;
    } else if (opcode.ends_with(".unpack")) {
      timing.results = count - 1;
    } else if (count && !begins_with("st") && !begins_with("bar.") && !begins_with("fence") && !begins_with("membar")) {
      timing.results = 1;
    }
  }
  return timings;
}

uint64_t Lines::latency_of(uint64_t line, uint32_t sectors, int block, bool past_first_cache) {
  const auto [found, is_new] = last_.try_emplace(line, Last{block, 0});
  Last& last = found->second;
  if (last.block != block) last = {block, 0};
  const uint32_t asked = past_first_cache ? sectors : sectors & ~last.sectors;
  last.sectors |= sectors;
  if (!past_first_cache) sectors_of_first_cache_ += uint64_t(std::popcount(sectors));
  sectors_of_second_cache_ += uint64_t(std::popcount(asked));
  if (is_new) return latency::memory;
  return asked ? latency::second_cache : latency::first_cache;
}

void Timeline::did(int at, uint64_t found, uint64_t left) {
  using Kind = Timing::Kind;
  const Instruction& instruction = code_[at];
  const Timing& timing = timings_[at];
  if (timing.begins) leave();
  uint64_t start = entry_;
  if (instruction.is_guarded) start = std::max(start, ready_at(instruction.guard));
  for (size_t i = timing.results; i < instruction.operands.size(); ++i)
    start = std::max(start, ready_at(instruction.operands[i]));
  ++issued_;
  if (start > last_) last_ = start, last_at_ = at;
  const auto wait_for = [&](uint64_t time) {
    leave();
    if (time > entry_) {
      waits_[at] += time - entry_;
      meet(time);
    }
  };
  const auto closed_but = [&](const std::vector<uint64_t>& closed) {
    return closed.size() > left ? closed[closed.size() - left - 1] : 0;
  };
  uint64_t done = start + timing.latency;
  switch (timing.kind) {
    case Kind::load:
      if (found) done = start + found;
      break;
    case Kind::copy:
      copies_ = std::max(copies_, start + found);
      break;
    case Kind::close_copies:
      closed_copies_.push_back(copies_);
      break;
    case Kind::wait_for_copies:
      return wait_for(closed_but(closed_copies_));
    case Kind::request:
      done = products_ = std::max(products_, start) + timing.latency;
      break;
    case Kind::close_products:
      closed_products_.push_back(products_ + latency::product);
      break;
    case Kind::wait_for_products:
      return wait_for(closed_but(closed_products_));
    case Kind::block:
      return leave();
    case Kind::ordinary:
      break;
  }
  for (size_t i = 0; i < timing.results; ++i)
    if (!instruction.operands[i].is_constant) ready_[instruction.operands[i].at / (4 * lanes)] = done;
  if (!instruction.operation) leave();
}

void Timeline::leave() {
  const uint64_t free = entry_ + issued_, end = std::max(free, last_ + (issued_ ? 1 : 0));
  if (end > free) waits_[last_at_] += end - free;
  entry_ = last_ = end;
  issued_ = 0;
}

}  // namespace fake_gpu::ptx
