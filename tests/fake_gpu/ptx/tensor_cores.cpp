// mma, wgmma, ldmatrix, stmatrix. Layouts: PTX ISA, "Matrix fragments", "Shared memory matrix layout".
#include <c10/util/Half.h>

#include <bit>
#include <cmath>

#include "machine.h"

namespace fake_gpu::ptx {
namespace {

enum class Type { tf32, bfloat16, half };

constexpr int rows = 16;  // of a warp's part of a product

struct Product {
  Product(Type type, int columns) : type(type), columns(columns) {}

  Type type;
  int columns;
  double left[rows][16];
  double right[16][256];
  double sums[rows][256];

  int words() const { return type == Type::tf32 ? 1 : 2; }  // numbers a register
  int depth() const { return 8 * words(); }

  double number(uint32_t bits, int word) const {
    if (type == Type::tf32) return std::bit_cast<float>(bits & 0xffffe000);  // the others are not looked at
    const auto own = uint16_t(word ? bits >> 16 : bits);
    if (type == Type::bfloat16) return std::bit_cast<float>(uint32_t(own) << 16);
    return c10::Half(own, c10::Half::from_bits());
  }

  // Sums are as exact as double has them; what a float does not hold is cut off, as tensor cores do.
  void multiply() {
    for (int row = 0; row < rows; ++row)
      for (int k = 0; k < depth(); ++k)
        for (int column = 0; column < columns; ++column) sums[row][column] += left[row][k] * right[k][column];
  }
};

float toward_zero(double value) {
  const float nearest = float(value);
  const bool is_larger = std::abs(double(nearest)) > std::abs(value) && std::isfinite(nearest);
  return is_larger ? std::bit_cast<float>(std::bit_cast<uint32_t>(nearest) - 1) : nearest;
}

void take_left(Warp& warp, const Operand* registers, Product& product) {
  const int words = product.words();
  for (int e = 0; e < 4; ++e) {
    const uint32_t* const bits = warp.of(registers[e]);
    for (int lane = 0; lane < lanes; ++lane)
      for (int word = 0; word < words; ++word)
        product.left[lane / 4 + e % 2 * 8][lane % 4 * words + word + e / 2 * 4 * words] =
            product.number(bits[lane], word);
  }
}

template <class Action>
void each_sum(Warp& warp, const Operand* registers, Product& product, const Action& action) {
  for (int e = 0; e < product.columns / 2; ++e) {
    float* const own = warp.of<float>(registers[e]);
    for (int lane = 0; lane < lanes; ++lane)
      action(own[lane], product.sums[lane / 4 + e % 4 / 2 * 8][e / 4 * 8 + lane % 4 * 2 + e % 2]);
  }
}

// d, a, b, c
template <Type type>
void multiply(Warp& warp, const Instruction& instruction) {
  Product product(type, 8);
  const Operand *d = instruction.operands.data(), *a = d + 4, *b = a + 4, *c = b + 2;
  const int words = product.words();
  take_left(warp, a, product);
  for (int e = 0; e < 2; ++e)
    for (int lane = 0; lane < lanes; ++lane)
      for (int word = 0; word < words; ++word)
        product.right[lane % 4 * words + word + 4 * words * e][lane / 4] = product.number(warp.of(b[e])[lane], word);
  each_sum(warp, c, product, [](float own, double& whole) { whole = own; });
  product.multiply();
  each_sum(warp, d, product, [](float& own, double whole) { own = toward_zero(whole); });
}

// A matrix in shared memory as a descriptor has it. Its lines lie along the sum, or, turned, across it.
class Matrix {
 public:
  Matrix(Warp& warp, uint64_t descriptor, int element_bytes, bool is_turned)
      : warp_(warp), bytes_(uint32_t(element_bytes)), is_turned_(is_turned) {
    const auto field = [&](int from, int bits) { return uint32_t(descriptor >> from & ((uint64_t(1) << bits) - 1)); };
    start_ = field(0, 14) << 4;
    leading_ = field(16, 14) << 4;
    stride_ = field(32, 14) << 4;
    swizzle_ = field(62, 2);
    if (field(49, 3))
      throw std::logic_error("a matrix descriptor with a base offset, which this machine does not have");
  }

  // Bits of the element in that line across the sum, and that place along it.
  uint32_t at(uint32_t line, uint32_t k) const {
    const uint32_t line_bytes = swizzle_ == 0 ? 16 : 256 >> swizzle_;              // 1: 128, 2: 64, 3: 32
    const uint32_t along = is_turned_ ? line : k, across = is_turned_ ? k : line;  // of the lines in memory
    const uint32_t byte = along * bytes_, piece = byte / line_bytes;
    // Turned, pieces follow each other by `leading`, and groups of eight by `stride`; without a swizzle the other way.
    uint32_t offset = across % 8 * line_bytes + byte % line_bytes;
    if (!is_turned_)
      offset += across / 8 * stride_ + (swizzle_ == 0 ? piece * leading_ : piece * line_bytes);
    else
      offset += swizzle_ == 0 ? piece * stride_ + across / 8 * leading_ : piece * leading_ + across / 8 * stride_;
    uint32_t place = start_ + offset;
    if (swizzle_) place ^= (place >> 3) & (line_bytes - 16);  // 16-byte pieces change places within lines
    const unsigned char* const found = shared_at(warp_, place, bytes_);
    uint32_t bits = 0;
    std::memcpy(&bits, found, bytes_);
    return bits;
  }

 private:
  Warp& warp_;
  uint32_t bytes_, start_, leading_, stride_, swizzle_;
  bool is_turned_;
};

// d, a (registers or a descriptor), b's descriptor, whether d is added to, two signs, and for 16 bits who is turned
void multiply_asynchronously(Warp& warp, const Instruction& instruction) {
  warp.products.push_back({&instruction, {}});
  auto& descriptors = warp.products.back().numbers;
  const size_t columns = size_t(instruction.numbers[0]), sums = columns / 2;
  const bool a_in_registers = instruction.numbers[1];
  const Operand* const after = instruction.operands.data() + sums;
  if (!a_in_registers) descriptors.push_back(*warp.of<uint64_t>(after[0]));
  const Operand* const b = after + (a_in_registers ? 4 : 1);
  descriptors.push_back(*warp.of<uint64_t>(b[0]));
  descriptors.push_back(*warp.of(b[1]));
}

void finish(Warp& warp, const Instruction& instruction, const std::vector<uint64_t>& numbers) {
  Product product(Type(instruction.numbers[2]), int(instruction.numbers[0]));
  const bool a_in_registers = instruction.numbers[1];
  const Operand *const d = instruction.operands.data(), *const a = d + product.columns / 2;
  const Operand* const b = a + (a_in_registers ? 4 : 1);
  const int words = product.words(), bytes = 4 / words;
  const size_t turned = a_in_registers ? 4 : 5;  // after b: added to, two signs, a's turn (if it is in memory), b's
  const bool a_is_turned = words == 2 && !a_in_registers && *warp.of(b[4]),
             b_is_turned = words == 2 && *warp.of(b[turned]);
  if (int(*warp.of(b[2])) != 1 || int(*warp.of(b[3])) != 1)
    throw std::logic_error("subtracts a product, which this machine cannot");
  if (a_in_registers) {
    take_left(warp, a, product);
  } else {
    const Matrix left(warp, numbers[0], bytes, a_is_turned);
    for (int row = 0; row < rows; ++row)
      for (int k = 0; k < product.depth(); ++k)
        product.left[row][k] = product.number(left.at(uint32_t(warp.number % 4 * rows + row), uint32_t(k)), 0);
  }
  const Matrix right(warp, numbers[numbers.size() - 2], bytes, b_is_turned);
  for (int column = 0; column < product.columns; ++column)
    for (int k = 0; k < product.depth(); ++k)
      product.right[k][column] = product.number(right.at(uint32_t(column), uint32_t(k)), 0);
  const bool adds = numbers.back();
  each_sum(warp, d, product, [adds](float own, double& whole) { whole = adds ? own : 0; });
  product.multiply();
  each_sum(warp, d, product, [](float& own, double whole) { own = toward_zero(whole); });
}

// As late as may be: registers and shared memory that are read too early, or written, show.
void wait_for_products(Warp& warp, const Instruction& instruction) {
  const size_t left = *warp.of(instruction.operands[0]);
  if (warp.closed.size() <= left) return;
  const size_t count = warp.closed[warp.closed.size() - left - 1];
  for (size_t n = 0; n < count; ++n) finish(warp, *warp.products[n].instruction, warp.products[n].numbers);
  warp.products.erase(warp.products.begin(), warp.products.begin() + ptrdiff_t(count));
  warp.closed.erase(warp.closed.begin(), warp.closed.end() - ptrdiff_t(left));
  for (size_t& group : warp.closed) group -= count;
}

void close(Warp& warp, const Instruction&) { warp.closed.push_back(warp.products.size()); }

// Matrices of 8 rows of 16 bytes. Lane l names row l % 8 of matrix l / 8; it has, of each matrix, word l % 4 of row
// l / 4, or, turned, the elements of 16 bits (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
template <bool is_turned, bool is_load>
void matrices(Warp& warp, const Instruction& instruction) {
  const int count = int(instruction.operands.size()) - 1;
  const size_t first = is_load ? 0 : 1;
  const Operand& base = instruction.operands[is_load ? size_t(count) : 0];
  unsigned char* row[lanes];
  uint32_t offsets[lanes] = {};
  for (int lane = 0; lane < 8 * count; ++lane) {
    const uint32_t at = base.bytes == 8 ? uint32_t(warp.of<uint64_t>(base)[lane]) : warp.of(base)[lane];
    offsets[lane] = at + uint32_t(instruction.numbers[0]);
    row[lane] = shared_at(warp, offsets[lane], 16);
  }
  const uint32_t mask = std::exchange(warp.mask, count == 4 ? ~0u : (1u << 8 * count) - 1);
  count_shared(warp, offsets, 16);
  warp.mask = mask;
  const auto move = [](void* in_register, unsigned char* in_memory, size_t bytes) {
    if (is_load)
      std::memcpy(in_register, in_memory, bytes);
    else
      std::memcpy(in_memory, in_register, bytes);
  };
  for (int matrix = 0; matrix < count; ++matrix) {
    uint32_t* const registers = warp.of(instruction.operands[first + size_t(matrix)]);
    for (int lane = 0; lane < lanes; ++lane) {
      if (!is_turned) {
        move(&registers[lane], row[8 * matrix + lane / 4] + lane % 4 * 4, 4);
      } else {
        auto* const halves = reinterpret_cast<uint16_t*>(&registers[lane]);
        for (int half = 0; half < 2; ++half)
          move(halves + half, row[8 * matrix + lane % 4 * 2 + half] + lane / 4 * 2, 2);
      }
    }
  }
}

bool begins_with(const std::string& text, std::string_view what) { return text.compare(0, what.size(), what) == 0; }

}  // namespace

Operation tensor_cores_of(const std::string& opcode, Instruction& instruction) {
  instruction.meets = Meets::lanes;
  if (opcode == "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32") return multiply<Type::tf32>;
  if (opcode == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32") return multiply<Type::bfloat16>;
  if (opcode == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32") return multiply<Type::half>;
  const bool is_turned = opcode.find(".trans.") != std::string::npos;
  if (begins_with(opcode, "ldmatrix.sync.aligned.m8n8."))
    return is_turned ? matrices<true, true> : matrices<false, true>;
  if (begins_with(opcode, "stmatrix.sync.aligned.m8n8."))
    return is_turned ? matrices<true, false> : matrices<false, false>;
  if (opcode == "wgmma.commit_group.sync.aligned") return close;
  if (opcode == "wgmma.wait_group.sync.aligned") return wait_for_products;
  if (begins_with(opcode, "wgmma.mma_async.sync.aligned.m64n")) {
    const int columns = std::stoi(opcode.substr(33));
    const bool is_tf32 = opcode.ends_with(".f32.tf32.tf32"), is_bfloat16 = opcode.ends_with(".f32.bf16.bf16");
    if (!is_tf32 && !is_bfloat16 && !opcode.ends_with(".f32.f16.f16")) return nullptr;
    // besides: b, whether d is added to, two signs; for 16 bits a's turn, if it is in memory, and b's
    const size_t others = instruction.operands.size() - size_t(columns / 2);
    const bool a_in_registers = is_tf32 ? others == 8 : others == 9;
    const Type type = is_tf32 ? Type::tf32 : is_bfloat16 ? Type::bfloat16 : Type::half;
    instruction.numbers = {columns, a_in_registers, int64_t(type)};
    return multiply_asynchronously;
  }
  instruction.meets = Meets::nobody;
  return nullptr;
}

}  // namespace fake_gpu::ptx
