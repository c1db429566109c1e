// What every lane does by itself with numbers in registers.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>

#include "machine.h"

namespace fake_gpu::ptx {
namespace {

template <class T>
using Stored = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class T>
T get(Stored<T> bits) {
  if constexpr (std::is_same_v<T, bool>)
    return bits != 0;
  else if constexpr (sizeof(T) == 1)
    return std::bit_cast<T>(uint8_t(bits));
  else if constexpr (sizeof(T) == 2)
    return std::bit_cast<T>(uint16_t(bits));
  else
    return std::bit_cast<T>(bits);
}

template <class T>
Stored<T> put(T value) {
  if constexpr (std::is_same_v<T, bool>)
    return value;
  else if constexpr (sizeof(T) == 1)
    return std::bit_cast<uint8_t>(value);
  else if constexpr (sizeof(T) == 2)
    return std::bit_cast<uint16_t>(value);
  else
    return std::bit_cast<Stored<T>>(value);
}

// `f` of the operands after the first, lane by lane.
template <auto f, class Result, class... From>
void each(Warp& warp, const Instruction& instruction) {
  [&]<size_t... n>(std::index_sequence<n...>) {
    auto* const to = warp.of<Stored<Result>>(instruction.operands[0]);
    const auto from = std::make_tuple(warp.of<Stored<From>>(instruction.operands[n + 1])...);
    if (warp.mask == ~0u) {
#pragma GCC ivdep
      for (int lane = 0; lane < lanes; ++lane) to[lane] = put<Result>(f(get<From>(std::get<n>(from)[lane])...));
    } else {
      for (int lane = 0; lane < lanes; ++lane)
        if (warp.mask >> lane & 1) to[lane] = put<Result>(f(get<From>(std::get<n>(from)[lane])...));
    }
  }(std::index_sequence_for<From...>());
}

// The same for conversions, whose registers may be wider than their types.
template <auto f, class To, class From>
void converted(Warp& warp, const Instruction& instruction) {
  const Operand &to = instruction.operands[0], &from = instruction.operands[1];
  const bool wide_to = to.bytes > sizeof(Stored<To>), wide_from = from.bytes > sizeof(Stored<From>);
  if (!wide_to && !wide_from) return each<f, To, From>(warp, instruction);
  for (int lane = 0; lane < lanes; ++lane) {
    if (!(warp.mask >> lane & 1)) continue;
    const auto bits = Stored<From>(wide_from ? warp.of<uint64_t>(from)[lane] : warp.of<Stored<From>>(from)[lane]);
    const To value = f(get<From>(bits));
    if (!wide_to)
      warp.of<Stored<To>>(to)[lane] = put<To>(value);
    else if constexpr (std::is_integral_v<To>)
      warp.of<uint64_t>(to)[lane] = uint64_t(value);  // with its sign, where it has one
    else
      warp.of<uint64_t>(to)[lane] = put<To>(value);
  }
}

using Table = std::unordered_map<std::string, Operation>;

template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
using Wide = std::conditional_t<
    std::is_signed_v<T>,
    std::conditional_t<sizeof(T) == 2, int32_t, std::conditional_t<sizeof(T) == 4, int64_t, __int128>>,
    std::conditional_t<sizeof(T) == 2, uint32_t, std::conditional_t<sizeof(T) == 4, uint64_t, unsigned __int128>>>;

template <class T>
void compare_integers(Table& table, const std::string& type) {
  const auto add = [&]<auto f>(const char* name) {
    const std::string setp = std::string("setp.") + name;
    table[setp + type] = each<f, bool, T, T>;
    table[setp + ".and" + type] = each<[](T a, T b, bool c) { return f(a, b) && c; }, bool, T, T, bool>;
    table[setp + ".or" + type] = each<[](T a, T b, bool c) { return f(a, b) || c; }, bool, T, T, bool>;
  };
  add.template operator()<[](T a, T b) { return a == b; }>("eq");
  add.template operator()<[](T a, T b) { return a != b; }>("ne");
  for (const char* name : {"lt", "lo"}) add.template operator()<[](T a, T b) { return a < b; }>(name);
  for (const char* name : {"le", "ls"}) add.template operator()<[](T a, T b) { return a <= b; }>(name);
  for (const char* name : {"gt", "hi"}) add.template operator()<[](T a, T b) { return (a > b); }>(name);
  for (const char* name : {"ge", "hs"}) add.template operator()<[](T a, T b) { return a >= b; }>(name);
}

// `count` bits from bit `from` on, with their sign where the type has one.
template <class T>
T extracted(T a, uint32_t from, uint32_t count) {
  const uint32_t bits = 8 * sizeof(T);
  from &= 255, count &= 255;
  if (count == 0) return 0;
  const uint32_t last = std::min(from + count - 1, bits - 1);
  const bool is_negative = std::is_signed_v<T> && (Unsigned<T>(a) >> last & 1);
  Unsigned<T> found = 0;
  for (uint32_t bit = 0; bit < bits; ++bit) {
    const bool is_set = bit < count && from + bit <= last ? (Unsigned<T>(a) >> (from + bit) & 1) : is_negative;
    found |= Unsigned<T>(is_set) << bit;
  }
  return T(found);
}

// The last `count` bits of `a` in the place of those of `b` from bit `from` on.
template <class T>
T inserted(T a, T b, uint32_t from, uint32_t count) {
  from &= 255, count &= 255;
  if (from >= 8 * sizeof(T)) return b;
  const T field = (count < 8 * sizeof(T) ? (T(1) << count) - 1 : ~T(0)) << from;
  return (b & ~field) | (a << from & field);
}

template <class T>
void integers(Table& table, const std::string& type) {
  using U = Unsigned<T>;
  using W = Wide<T>;
  table["add" + type] = each<[](T a, T b) { return T(U(a) + U(b)); }, T, T, T>;
  table["sub" + type] = each<[](T a, T b) { return T(U(a) - U(b)); }, T, T, T>;
  table["mul.lo" + type] = each<[](T a, T b) { return T(W(a) * W(b)); }, T, T, T>;
  table["mul.hi" + type] = each<[](T a, T b) { return T(((W(a) * W(b)) >> 8 * sizeof(T))); }, T, T, T>;
  table["mad.lo" + type] = each<[](T a, T b, T c) { return T(U(W(a) * W(b)) + U(c)); }, T, T, T, T>;
  if constexpr (sizeof(T) < 8) {
    table["mul.wide" + type] = each<[](T a, T b) { return W(W(a) * W(b)); }, W, T, T>;
    table["mad.wide" + type] =
        each<[](T a, T b, W c) { return W(Unsigned<W>(W(a) * W(b)) + Unsigned<W>(c)); }, W, T, T, W>;
  }
  const auto overflows = [](T a, T b) {
    return std::is_signed_v<T> && b == T(-1) && a == std::numeric_limits<T>::min();
  };
  table["div" + type] =
      each<[overflows](T a, T b) { return b == 0            ? T(-1)
                                          : overflows(a, b) ? a
                                                            : T(a / b); }, T, T, T>;
  table["rem" + type] = each<[overflows](T a, T b) { return b == 0 ? a : overflows(a, b) ? T(0) : T(a % b); }, T, T, T>;
  table["min" + type] = each<[](T a, T b) { return std::min(a, b); }, T, T, T>;
  table["max" + type] = each<[](T a, T b) { return std::max(a, b); }, T, T, T>;
  table["neg" + type] = each<[](T a) { return T(U(0) - U(a)); }, T, T>;
  table["abs" + type] = each<[](T a) { return a < 0 ? T(U(0) - U(a)) : a; }, T, T>;
  // A shift by all bits or more leaves nothing but the sign.
  table["shr" + type] =
      each<[](T a, uint32_t by) { return T(by < 8 * sizeof(T) ? (a >> by)
                                           : a < 0            ? -1
                                                              : 0); }, T, T, uint32_t>;
  compare_integers<T>(table, type);
  if constexpr (sizeof(T) >= 4) table["bfe" + type] = each<extracted<T>, T, T, uint32_t, uint32_t>;
}

template <class T>
void bits(Table& table, const std::string& type) {
  table["and" + type] = each<[](T a, T b) { return T(a & b); }, T, T, T>;
  table["or" + type] = each<[](T a, T b) { return T(a | b); }, T, T, T>;
  table["xor" + type] = each<[](T a, T b) { return T(a ^ b); }, T, T, T>;
  if constexpr (std::is_same_v<T, bool>)
    table["not" + type] = each<[](T a) { return !a; }, T, T>;
  else
    table["not" + type] = each<[](T a) { return T(~a); }, T, T>;
  table["mov" + type] = each<[](T a) { return a; }, T, T>;
  if constexpr (!std::is_same_v<T, bool>) {
    table["shl" + type] = each<[](T a, uint32_t by) { return T(by < 8 * sizeof(T) ? a << by : 0); }, T, T, uint32_t>;
    table["shr" + type] = each<[](T a, uint32_t by) { return T(by < 8 * sizeof(T) ? (a >> by) : 0); }, T, T, uint32_t>;
    compare_integers<T>(table, type);
  }
  if constexpr (sizeof(T) >= 4) table["bfi" + type] = each<inserted<T>, T, T, T, uint32_t, uint32_t>;
}

template <class T>
void select(Table& table, const std::string& type) {
  table["selp" + type] = each<[](T a, T b, bool c) { return c ? a : b; }, T, T, T, bool>;
}

template <class T>
void floats(Table& table, const std::string& type) {
  const auto rounded = [&](const char* name, Operation operation) {
    table[name + type] = table[std::string(name) + ".rn" + type] = operation;
  };
  rounded("add", each<[](T a, T b) { return a + b; }, T, T, T>);
  rounded("sub", each<[](T a, T b) { return a - b; }, T, T, T>);
  rounded("mul", each<[](T a, T b) { return a * b; }, T, T, T>);
  rounded("fma", each<[](T a, T b, T c) { return std::fma(a, b, c); }, T, T, T, T>);
  rounded("div", each<[](T a, T b) { return a / b; }, T, T, T>);
  rounded("sqrt", each<[](T a) { return std::sqrt(a); }, T, T>);
  table["div.full" + type] = table["div" + type];
  table["neg" + type] = each<[](T a) { return -a; }, T, T>;
  table["abs" + type] = each<[](T a) { return std::abs(a); }, T, T>;
  table["min" + type] = each<[](T a, T b) { return std::fmin(a, b); }, T, T, T>;
  table["max" + type] = each<[](T a, T b) { return std::fmax(a, b); }, T, T, T>;
  table["mov" + type] = each<[](T a) { return a; }, T, T>;
  const auto compare = [&]<auto f>(const std::string& name) {
    const std::string setp = "setp." + name;
    table[setp + type] = each<f, bool, T, T>;
    table[setp + ".and" + type] = each<[](T a, T b, bool c) { return f(a, b) && c; }, bool, T, T, bool>;
    table[setp + ".or" + type] = each<[](T a, T b, bool c) { return f(a, b) || c; }, bool, T, T, bool>;
  };
  // With a u the comparison holds where one of both is no number.
  compare.template operator()<[](T a, T b) { return a == b; }>("eq");
  compare.template operator()<[](T a, T b) { return a < b || (a > b); }>("ne");
  compare.template operator()<[](T a, T b) { return a < b; }>("lt");
  compare.template operator()<[](T a, T b) { return a <= b; }>("le");
  compare.template operator()<[](T a, T b) { return (a > b); }>("gt");
  compare.template operator()<[](T a, T b) { return a >= b; }>("ge");
  compare.template operator()<[](T a, T b) { return !(a < b || (a > b)); }>("equ");
  compare.template operator()<[](T a, T b) { return a != b; }>("neu");
  compare.template operator()<[](T a, T b) { return !(a >= b); }>("ltu");
  compare.template operator()<[](T a, T b) { return !(a > b); }>("leu");
  compare.template operator()<[](T a, T b) { return !(a <= b); }>("gtu");
  compare.template operator()<[](T a, T b) { return !(a < b); }>("geu");
  compare.template operator()<[](T a, T b) { return !std::isnan(a) && !std::isnan(b); }>("num");
  compare.template operator()<[](T a, T b) { return std::isnan(a) || std::isnan(b); }>("nan");
}

// Of the two floats in each operand.
template <auto f>
constexpr auto both = [](auto... operands) {
  const uint32_t low = std::bit_cast<uint32_t>(f(std::bit_cast<float>(uint32_t(operands))...));
  return uint64_t(std::bit_cast<uint32_t>(f(std::bit_cast<float>(uint32_t(operands >> 32))...))) << 32 | low;
};

float from_bfloat16(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }
uint16_t to_bfloat16(float value) { return std::isnan(value) ? 0x7fff : c10::BFloat16(value).x; }
float from_half(uint16_t bits) { return c10::Half(bits, c10::Half::from_bits()); }
uint16_t to_half(float value) { return c10::Half(value).x; }

// With one or two operands of 16 bits among floats.
template <auto widened>
void mixed(Table& table, const std::string& type) {
  for (const std::string rounding : {"", ".rn"}) {
    const std::string types = rounding + ".f32" + type;
    table["add" + types] = each<[](uint16_t a, float b) { return widened(a) + b; }, float, uint16_t, float>;
    table["sub" + types] = each<[](uint16_t a, float b) { return widened(a) - b; }, float, uint16_t, float>;
    table["fma" + types] = each<[](uint16_t a, uint16_t b, float c) { return std::fma(widened(a), widened(b), c); },
                                float, uint16_t, uint16_t, float>;
  }
}

// What GPUs of 10.0 and newer have.
void newer_floats(Table& table) {
  mixed<from_bfloat16>(table, ".bf16");
  mixed<from_half>(table, ".f16");
  for (const std::string type : {".f32x2", ".rn.f32x2"}) {
    table["add" + type] = each<both<[](float a, float b) { return a + b; }>, uint64_t, uint64_t, uint64_t>;
    table["sub" + type] = each<both<[](float a, float b) { return a - b; }>, uint64_t, uint64_t, uint64_t>;
    table["mul" + type] = each<both<[](float a, float b) { return a * b; }>, uint64_t, uint64_t, uint64_t>;
    table["fma" + type] =
        each<both<[](float a, float b, float c) { return std::fma(a, b, c); }>, uint64_t, uint64_t, uint64_t, uint64_t>;
  }
}

// Nearest; ties away from zero. What is infinite or no number stays so.
uint32_t to_tf32(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return (bits + ((bits & 0x7f800000) != 0x7f800000 ? 0x1000 : 0)) & 0xffffe000;
}

template <class To, class From>
void convert(Table& table, const std::string& types) {
  table["cvt" + types] = converted<[](From a) { return To(a); }, To, From>;
}

template <class From>
void convert_integer(Table& table, const std::string& type) {
  convert<int8_t, From>(table, ".s8" + type);
  convert<uint8_t, From>(table, ".u8" + type);
  convert<int16_t, From>(table, ".s16" + type);
  convert<uint16_t, From>(table, ".u16" + type);
  convert<int32_t, From>(table, ".s32" + type);
  convert<uint32_t, From>(table, ".u32" + type);
  convert<int64_t, From>(table, ".s64" + type);
  convert<uint64_t, From>(table, ".u64" + type);
  convert<float, From>(table, ".rn.f32" + type);
  convert<double, From>(table, ".rn.f64" + type);
}

template <class To>
void truncate(Table& table, const std::string& type) {
  table["cvt.rzi" + type + ".f32"] = each<[](float a) {
    if (std::isnan(a)) return To(0);
    const double whole = std::trunc(double(a)), most = double(std::numeric_limits<To>::max());
    if (whole >= most) return std::numeric_limits<To>::max();
    return To(std::max(whole, double(std::numeric_limits<To>::min())));
  },
                                          To, float>;
}

void conversions(Table& table) {
  convert_integer<int8_t>(table, ".s8");
  convert_integer<uint8_t>(table, ".u8");
  convert_integer<int16_t>(table, ".s16");
  convert_integer<uint16_t>(table, ".u16");
  convert_integer<int32_t>(table, ".s32");
  convert_integer<uint32_t>(table, ".u32");
  convert_integer<int64_t>(table, ".s64");
  convert_integer<uint64_t>(table, ".u64");
  truncate<int32_t>(table, ".s32");
  truncate<int64_t>(table, ".s64");
  convert<double, float>(table, ".f64.f32");
  convert<float, double>(table, ".rn.f32.f64");
  table["cvt.f32.bf16"] = each<from_bfloat16, float, uint16_t>;
  table["cvt.f32.f16"] = each<from_half, float, uint16_t>;
  table["cvt.rn.bf16.f32"] = each<to_bfloat16, uint16_t, float>;
  table["cvt.rn.f16.f32"] = each<to_half, uint16_t, float>;
  table["cvt.rn.bf16x2.f32"] =  // the first one is the upper half
      each<[](float a, float b) { return uint32_t(to_bfloat16(a)) << 16 | to_bfloat16(b); }, uint32_t, float, float>;
  table["cvt.rn.f16x2.f32"] =
      each<[](float a, float b) { return uint32_t(to_half(a)) << 16 | to_half(b); }, uint32_t, float, float>;
  table["cvt.rna.tf32.f32"] = each<to_tf32, uint32_t, float>;
}

uint32_t permuted(uint32_t a, uint32_t b, uint32_t how) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t found = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t which = how >> 4 * i & 15;
    uint32_t byte = uint32_t(bytes >> 8 * (which & 7) & 255);
    if (which & 8) byte = byte & 128 ? 255 : 0;  // its sign alone
    found |= byte << 8 * i;
  }
  return found;
}

template <class Part, class Whole>
void pack(Warp& warp, const Instruction& instruction) {
  const size_t count = instruction.operands.size() - 1;
  auto* const to = warp.of<Stored<Whole>>(instruction.operands[0]);
  for (int lane = 0; lane < lanes; ++lane) {
    if (!(warp.mask >> lane & 1)) continue;
    Whole whole = 0;
    for (size_t n = 0; n < count; ++n)
      whole |= Whole(get<Part>(warp.of<Stored<Part>>(instruction.operands[n + 1])[lane])) << 8 * sizeof(Part) * n;
    to[lane] = whole;
  }
}

template <class Part, class Whole>
void unpack(Warp& warp, const Instruction& instruction) {
  const size_t count = instruction.operands.size() - 1;
  for (int lane = 0; lane < lanes; ++lane) {
    if (!(warp.mask >> lane & 1)) continue;
    const Whole whole = warp.of<Stored<Whole>>(instruction.operands[count])[lane];
    for (size_t n = 0; n < count; ++n)
      warp.of<Stored<Part>>(instruction.operands[n])[lane] = put<Part>(Part(whole >> 8 * sizeof(Part) * n));
  }
}

// The value of another lane, which `find` names from the lane and two numbers; where there is none, the lane's own. A
// second result, behind all operands, is whether there is one.
template <auto find>
void exchange(Warp& warp, const Instruction& instruction) {
  const auto& operands = instruction.operands;
  const uint32_t *from = warp.of(operands[1]), *number = warp.of(operands[2]), *limits = warp.of(operands[3]);
  uint32_t found[lanes];
  for (int lane = 0; lane < lanes; ++lane) {
    const int other = find(lane, int(number[lane]), int(limits[lane]));
    found[lane] = from[other < 0 ? lane : other];
    if (operands.size() > 5) warp.of(operands[5])[lane] = other >= 0;
  }
  std::memcpy(warp.of(operands[0]), found, sizeof found);
}

// `limits` has the most a lane may name, and, from its eighth bit on, which bits of a lane's number have to agree.
int most_of(int lane, int limits) { return (lane & (limits >> 8)) | (limits & 31 & ~(limits >> 8)); }
int across(int lane, int mask, int limits) { return (lane ^ mask) <= most_of(lane, limits) ? lane ^ mask : -1; }
int below(int lane, int by, int limits) { return lane + by <= most_of(lane, limits) ? lane + by : -1; }
int numbered(int lane, int number, int limits) {
  const int found = (lane & (limits >> 8)) | (number & 31 & ~(limits >> 8));
  return found <= most_of(lane, limits) ? found : -1;
}

Table made() {
  Table table;
  integers<int16_t>(table, ".s16");
  integers<uint16_t>(table, ".u16");
  integers<int32_t>(table, ".s32");
  integers<uint32_t>(table, ".u32");
  integers<int64_t>(table, ".s64");
  integers<uint64_t>(table, ".u64");
  bits<bool>(table, ".pred");
  bits<uint16_t>(table, ".b16");
  bits<uint32_t>(table, ".b32");
  bits<uint64_t>(table, ".b64");
  floats<float>(table, ".f32");
  floats<double>(table, ".f64");
  newer_floats(table);
  for (const char* type : {".b16", ".u16", ".s16"}) select<uint16_t>(table, type);
  for (const char* type : {".b32", ".u32", ".s32", ".f32"}) select<uint32_t>(table, type);
  for (const char* type : {".b64", ".u64", ".s64", ".f64"}) select<uint64_t>(table, type);
  for (const char* type : {".u16", ".s16"}) table[std::string("mov") + type] = table["mov.b16"];
  for (const char* type : {".u32", ".s32"}) table[std::string("mov") + type] = table["mov.b32"];
  for (const char* type : {".u64", ".s64"}) table[std::string("mov") + type] = table["mov.b64"];
  table["mov.b32.pack"] = pack<uint16_t, uint32_t>;
  table["mov.b32.unpack"] = unpack<uint16_t, uint32_t>;
  table["mov.b64.pack"] = pack<uint32_t, uint64_t>;
  table["mov.b64.unpack"] = unpack<uint32_t, uint64_t>;
  table["prmt.b32"] = each<permuted, uint32_t, uint32_t, uint32_t, uint32_t>;
  conversions(table);
  return table;
}

}  // namespace

Operation arithmetic_of(const std::string& opcode, Instruction& instruction) {
  static const Table table = made();
  if (const auto found = table.find(opcode); found != table.end()) return found->second;
  static const Table exchanges{{"shfl.sync.bfly.b32", exchange<across>},
                               {"shfl.sync.idx.b32", exchange<numbered>},
                               {"shfl.sync.down.b32", exchange<below>}};
  if (const auto found = exchanges.find(opcode); found != exchanges.end()) {
    instruction.meets = Meets::lanes;
    return found->second;
  }
  return nullptr;
}

}  // namespace fake_gpu::ptx
