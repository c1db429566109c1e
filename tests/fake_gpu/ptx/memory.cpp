// Loads, stores and copies.
#include <algorithm>
#include <bit>

#include "machine.h"

namespace fake_gpu::ptx {
namespace {

enum class Space { generic, shared, parameters };

bool lives(const Warp& warp, int lane) { return warp.mask >> lane & 1; }

// The lane's address: a register, and a number of the instruction's that is added to it.
uint64_t address(Warp& warp, const Instruction& instruction, size_t operand, size_t number, int lane) {
  const auto& base = instruction.operands[operand];
  const uint64_t found = base.bytes == 8 ? warp.of<uint64_t>(base)[lane] : warp.of(base)[lane];
  return found + uint64_t(instruction.numbers[number]);
}

template <Space space>
unsigned char* checked(Warp& warp, uint64_t at, size_t bytes) {
  if constexpr (space == Space::shared) return shared_at(warp, uint32_t(at), bytes);
  if constexpr (space == Space::generic) return generic_at(warp, at, bytes);
  if (at + bytes > warp.block.kernel.parameter_bytes) throw std::logic_error("reads beyond the parameters");
  return const_cast<unsigned char*>(warp.block.parameters) + at;
}

// What an access of a warp costs: shared memory that is addressed as generic counts where it is. What is stored goes on
// to the second cache.
void count(Warp& warp, const uint64_t (&addresses)[lanes], bool is_generic, size_t bytes, bool is_load) {
  uint32_t offsets[lanes];
  const auto shared = reinterpret_cast<uint64_t>(warp.block.shared);
  const int first = std::countr_zero(warp.mask);
  const bool is_shared = !is_generic || addresses[first] - shared < warp.block.shared_bytes;
  if (!is_shared) return count_global(warp, addresses, bytes, !is_load);
  for (int lane = 0; lane < lanes; ++lane) offsets[lane] = uint32_t(addresses[lane] - (is_generic ? shared : 0));
  count_shared(warp, offsets, bytes);
}

template <Space space, class Element, bool is_load>
void access(Warp& warp, const Instruction& instruction) {
  const size_t values = instruction.operands.size() - 1, bytes = values * sizeof(Element);
  const size_t base = is_load ? values : 0, first = is_load ? 0 : 1;
  uint64_t addresses[lanes] = {};
  unsigned char* found[lanes];
  for (int lane = 0; lane < lanes; ++lane) {
    if (!lives(warp, lane)) continue;
    addresses[lane] = address(warp, instruction, base, 0, lane);
    found[lane] = checked<space>(warp, addresses[lane], bytes);
  }
  if (space != Space::parameters) count(warp, addresses, space == Space::generic, bytes, is_load);
  for (size_t n = 0; n < values; ++n) {
    const Operand& own = instruction.operands[first + n];
    for (int lane = 0; lane < lanes; ++lane) {
      if (!lives(warp, lane)) continue;
      Element element;
      if constexpr (is_load) {
        std::memcpy(&element, found[lane] + n * sizeof element, sizeof element);
        // A register may be wider than what is loaded, which keeps its sign where it has one.
        if (own.bytes == 8)
          warp.of<uint64_t>(own)[lane] = uint64_t(element);
        else
          warp.of(own)[lane] = uint32_t(element);
      } else {
        element = Element(own.bytes == 8 ? warp.of<uint64_t>(own)[lane] : warp.of(own)[lane]);
        std::memcpy(found[lane] + n * sizeof element, &element, sizeof element);
      }
    }
  }
}

template <Space space, bool is_load>
Operation access_of(const std::string& type) {
  if (type == "u8" || type == "b8") return access<space, uint8_t, is_load>;
  if (type == "s8") return access<space, int8_t, is_load>;
  if (type == "u16" || type == "b16") return access<space, uint16_t, is_load>;
  if (type == "s16") return access<space, int16_t, is_load>;
  if (type == "s32") return access<space, int32_t, is_load>;
  if (type == "u32" || type == "b32" || type == "f32") return access<space, uint32_t, is_load>;
  if (type == "u64" || type == "b64" || type == "s64" || type == "f64") return access<space, uint64_t, is_load>;
  return nullptr;
}

template <bool is_load>
Operation access_of(Space space, const std::string& type) {
  if (space == Space::shared) return access_of<Space::shared, is_load>(type);
  if (space == Space::generic) return access_of<Space::generic, is_load>(type);
  return access_of<Space::parameters, is_load>(type);
}

// cp.async [to], [from], bytes, and how many of them are read; the others are zeros
template <bool past_first_cache>
void request(Warp& warp, const Instruction& instruction) {
  const auto& operands = instruction.operands;
  Copy copy{};
  copy.bytes = *warp.of(operands[2]);
  copy.mask = warp.mask;
  uint64_t from[lanes] = {};
  uint32_t to[lanes] = {};
  uint32_t read = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    if (!lives(warp, lane)) continue;
    to[lane] = uint32_t(address(warp, instruction, 0, 0, lane));
    from[lane] = address(warp, instruction, 1, 1, lane);
    copy.group[lane] = warp.groups_closed[lane];
    copy.to[lane] = shared_at(warp, to[lane], copy.bytes);
    copy.alive[lane] = operands.size() > 3 ? warp.of(operands[3])[lane] : copy.bytes;
    if (copy.alive[lane] > copy.bytes) throw std::logic_error("copies more bytes than it has room for");
    if (from[lane] % copy.bytes) throw std::logic_error("copies from an address that is not aligned");
    if (!copy.alive[lane]) continue;
    copy.from[lane] = generic_at(warp, from[lane], copy.alive[lane]);
    read |= uint32_t(1) << lane;
  }
  count_shared(warp, to, copy.bytes);
  const uint32_t mask = std::exchange(warp.mask, read);
  if (read) count_global(warp, from, copy.bytes, past_first_cache);
  warp.mask = mask;
  warp.copies.push_back(copy);
}

void commit(Warp& warp, const Instruction&) {
  for (int lane = 0; lane < lanes; ++lane) warp.groups_closed[lane] += lives(warp, lane);
}

void wait(Warp& warp, const Instruction& instruction) {
  const uint32_t left = instruction.operands.empty() ? 0 : *warp.of(instruction.operands[0]);
  for (Copy& copy : warp.copies)
    for (int lane = 0; lane < lanes; ++lane) {
      if (!(copy.mask & warp.mask & 1u << lane) || copy.group[lane] + left >= warp.groups_closed[lane]) continue;
      if (copy.alive[lane]) std::memcpy(copy.to[lane], copy.from[lane], copy.alive[lane]);
      std::memset(copy.to[lane] + copy.alive[lane], 0, copy.bytes - copy.alive[lane]);
      copy.mask &= ~(1u << lane);
    }
  std::erase_if(warp.copies, [](const Copy& copy) { return !copy.mask; });
}

// Addresses of one kind -> of another. Those of shared memory and of parameters are offsets; generic ones the host's.
template <Space from, Space to>
void convert(Warp& warp, const Instruction& instruction) {
  const auto base = [&](Space space) {
    if (space == Space::generic) return uint64_t(0);
    return reinterpret_cast<uint64_t>(space == Space::shared ? warp.block.shared : warp.block.parameters);
  };
  auto* const result = warp.of<uint64_t>(instruction.operands[0]);
  const auto* const given = warp.of<uint64_t>(instruction.operands[1]);
  for (int lane = 0; lane < lanes; ++lane)
    if (lives(warp, lane)) result[lane] = given[lane] + base(from) - base(to);
}

void nothing(Warp&, const Instruction&) {}

std::vector<std::string> parts_of(const std::string& opcode) {
  std::vector<std::string> parts{""};
  for (const char each : opcode) {
    if (each == '.')
      parts.emplace_back();
    else
      parts.back() += each;
  }
  return parts;
}

}  // namespace

Operation memory_of(const std::string& opcode, Instruction& instruction) {
  const auto parts = parts_of(opcode);
  const auto has = [&](const char* part) { return std::find(parts.begin(), parts.end(), part) != parts.end(); };
  if (parts[0] == "ld" || parts[0] == "st") {
    const bool is_shared = has("shared") || has("shared::cta");
    const Space space = is_shared ? Space::shared : has("param") ? Space::parameters : Space::generic;
    return parts[0] == "ld" ? access_of<true>(space, parts.back()) : access_of<false>(space, parts.back());
  }
  if (parts[0] == "cp" && parts[1] == "async") {
    if (has("commit_group")) return commit;
    if (has("wait_group")) return wait;
    if (!has("shared") || !has("global")) return nullptr;
    return has("cg") ? request<true> : request<false>;
  }
  if (opcode == "cvta.to.global.u64" || opcode == "cvta.global.u64") return convert<Space::generic, Space::generic>;
  if (opcode == "cvta.to.shared.u64") return convert<Space::generic, Space::shared>;
  if (opcode == "cvta.shared.u64") return convert<Space::shared, Space::generic>;
  if (opcode == "cvta.param.u64") return convert<Space::parameters, Space::generic>;
  if (opcode == "bar.sync") return instruction.meets = Meets::block, nothing;
  if (opcode == "bar.warp.sync" || opcode == "wgmma.fence.sync.aligned")
    return instruction.meets = Meets::lanes, nothing;
  if (parts[0] == "fence" || parts[0] == "membar") return nothing;
  return nullptr;
}

void count_global(Warp& warp, const uint64_t (&addresses)[lanes], size_t bytes, bool past_first_cache) {
  uint64_t sectors[4 * lanes];
  size_t count = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    if (!lives(warp, lane)) continue;
    warp.block.counts.global_bytes += bytes;
    sectors[count++] = addresses[lane] / 32;
  }
  std::sort(sectors, sectors + count);
  count = size_t(std::unique(sectors, sectors + count) - sectors);
  warp.block.counts.global_sectors += count;
  if (warp.block.timings.empty()) return;
  for (size_t i = 0; i < count;) {
    const uint64_t line = sectors[i] / 4;
    uint32_t of_line = 0;
    for (; i < count && sectors[i] / 4 == line; ++i) of_line |= 1u << sectors[i] % 4;
    warp.found_after = std::max(warp.found_after,
                                warp.block.counts.lines.latency_of(line, of_line, warp.block.number, past_first_cache));
  }
}

// 32 banks of words. Lanes that take more than a word take turns: so many at a time as fill the banks.
void count_shared(Warp& warp, const uint32_t (&offsets)[lanes], size_t bytes) {
  const int words = std::max(1, int(bytes / 4)), at_once = lanes / words;
  for (int first = 0; first < lanes; first += at_once) {
    uint32_t touched[lanes];
    int count = 0;
    for (int lane = first; lane < first + at_once; ++lane)
      if (lives(warp, lane))
        for (int word = 0; word < words; ++word) touched[count++] = offsets[lane] / 4 + uint32_t(word);
    if (!count) continue;
    std::sort(touched, touched + count);
    count = int(std::unique(touched, touched + count) - touched);
    int by_bank[lanes] = {};
    for (int i = 0; i < count; ++i) ++by_bank[touched[i] % lanes];
    warp.block.counts.shared_wavefronts += uint64_t(*std::max_element(by_bank, by_bank + lanes));
    warp.block.counts.shared_least += 1;
  }
}

}  // namespace fake_gpu::ptx
