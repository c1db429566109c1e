// A machine for PTX, the assembler that nvcc and Triton write for NVIDIA GPUs: runs it on the CPU, a warp at a time.
//
// What a GPU leaves open is made visible, as in csrc/cuda/emulator.h: shared memory is NaN before it is written, an
// asynchronous copy arrives no sooner than it is waited for, warps of a block run in order or in the opposite one, each
// for as long as it can. What a GPU takes for an error is one: memory that nobody allocated, vectors that are not
// aligned, instructions of a whole warp that lanes never meet at.
//
// Instruction set: "PTX ISA" 8.8. What no kernel here has is not there, and parsing it is an error.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace fake_gpu::ptx {

constexpr int lanes = 32;

struct Warp;
struct Instruction;
using Operation = void (*)(Warp&, const Instruction&);

// Where 32 values stand, one a lane: 4 bytes each, or 8 where the type has 64 bits. Predicates are 0 or 1.
struct Operand {
  uint32_t at = 0;  // bytes from the beginning of the warp's registers, or of the kernel's constants
  bool is_constant = false;
  uint8_t bytes = 4;  // of a lane: 4 or 8
};

// Where an instruction is given to the warp as a whole, what it waits for.
enum class Meets { nobody, lanes, block };

struct Instruction {
  Operation operation = nullptr;  // none: a branch or the end
  std::vector<Operand> operands;  // results first
  std::vector<int64_t> numbers;   // what the operation takes besides: offsets, sizes, ids
  int target = -1;                // of a branch
  bool ends = false;
  Meets meets = Meets::nobody;
  bool is_guarded = false, is_negated = false;
  Operand guard;
  std::string opcode, text;
  std::string line;  // of the source, where the compiler was asked for it
};

struct Parameter {
  size_t at, bytes;
};

struct Kernel {
  std::string name;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0, static_shared_bytes = 0, register_bytes = 0;
  int registers = 0;                       // of a thread, in machine code; 0: it was not asked
  std::vector<uint32_t> constants;         // as an operand wants them: 32 lanes of each
  std::map<std::string, Operand> special;  // %tid.x and others that a warp finds in its registers
  std::vector<Instruction> code;
};

// Its kernels, by name. Raises std::invalid_argument for what this machine does not have.
std::map<std::string, std::shared_ptr<const Kernel>> parse(std::string_view text);

// The operation of an opcode such as "add.s32"; `numbers` are filled in where the opcode holds some. Null if there is
// none.
Operation arithmetic_of(const std::string& opcode, Instruction& instruction);
Operation memory_of(const std::string& opcode, Instruction& instruction);
Operation tensor_cores_of(const std::string& opcode, Instruction& instruction);

}  // namespace fake_gpu::ptx
