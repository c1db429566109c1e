// Runs the kernels on the CPU, a thread of a block after the other, for tests where there is no GPU.
//
// Every thread of a block is a coroutine: it runs until it meets the others, at a barrier or in a warp's instruction.
// What a GPU leaves open is made visible: shared memory is NaN before it is written, an asynchronous copy arrives no
// sooner than it is waited for, and threads can run in the opposite order; a result that depends on it lacks a barrier.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "tile.h"

namespace l2t_fast::cuda {

class EmulatedBlock;

// The Machine of tile.h for one thread.
class EmulatedThread {
 public:
  EmulatedThread(EmulatedBlock& block, int number) : block_(block), number_(number) {}

  int thread() const { return number_; }
  int block() const;
  unsigned char* shared() const;
  void barrier();
  float exchange(float value, int mask);  // the value of the thread whose number in the warp differs by `mask`

  template <class T>
  T read(const T* from) const {
    return *from;
  }
  void copy16(void* to, const void* from, bool lives) { request(to, from, 16, lives); }
  void copy8(void* to, const void* from, bool lives) { request(to, from, 8, lives); }
  void copy4(void* to, const void* from, bool lives) { request(to, from, 4, lives); }
  void read4(float (&values)[4], const float* from) const { std::memcpy(values, aligned(from, 16), 16); }
  void read8(uint32_t (&bits)[2], const void* from) const { std::memcpy(bits, aligned(from, 8), 8); }
  void write8(void* to, uint32_t first, uint32_t second) const {
    const uint32_t both[]{first, second};
    std::memcpy(aligned(to, 8), both, 8);
  }
  void write16(void* to, const uint32_t (&bits)[4]) const { std::memcpy(aligned(to, 16), bits, 16); }
  void zero16(void* to) { std::memset(aligned(to, 16), 0, 16); }
  void commit() { groups_.push_back(copies_.size()); }
  template <int groups>
  void wait_for_all_but() {
    arrive(groups);
  }

  // Nearest; ties away from zero. What is infinite or no number stays so.
  uint32_t tf32(uint32_t bits) const {
    const bool is_finite = (bits & 0x7f800000) != 0x7f800000;
    if (!is_finite) return bits & 0x7fffff ? bits | 0x400000 : bits;
    return (bits + 0x1000) & 0xffffe000;
  }
  void round_to_tf32(float* piece) const {
    for (int i = 0; i < 4; ++i) piece[i] = as_float(tf32(as_bits(piece[i])));
  }
  uint32_t split_tf32(uint32_t& bits) const;
  void load_matrices(uint32_t (&registers)[4], const void* row);
  void load_transposed(uint32_t (&registers)[4], const void* row);
  template <int blocks>
  void multiply_tf32(Sums<blocks>& sums, const uint32_t (&a)[blocks][4], const uint32_t (&b)[2][4]) {
    multiply(sums, a, b, blocks, false);
  }
  template <int blocks>
  void multiply_bfloat16(Sums<blocks>& sums, const uint32_t (&a)[blocks][4], const uint32_t (&b)[2][4]) {
    multiply(sums, a, b, blocks, true);
  }

  float as_float(uint32_t bits) const;
  uint32_t as_bits(float value) const;
  float from_half(uint16_t bits) const;
  uint16_t to_half(float value) const;
  uint16_t to_bfloat16(float value) const;

 private:
  struct Copy {
    void* to;
    const void* from;
    int bytes;
    bool lives;
  };

  // What a GPU asks of an access of so many bytes.
  template <class T>
  static T* aligned(T* at, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(at) % bytes) throw std::logic_error("a vector in memory is not aligned");
    return at;
  }

  void request(void* to, const void* from, int bytes, bool lives);
  void touch(const Copy& copy);
  void arrive(size_t groups_left);
  void multiply(float (*sums)[4][4], const uint32_t (*a)[4], const uint32_t (*b)[4], int blocks, bool bfloat16);

  EmulatedBlock& block_;
  int number_;
  std::vector<Copy> copies_;
  std::vector<size_t> groups_;  // how many copies had been requested when a group was closed
};

// Runs `kernel` once a thread, for blocks 0 .. `blocks`, one after the other. An exception of any thread ends it.
void emulate(int blocks, size_t shared_bytes, bool reversed, const std::function<void(EmulatedThread&)>& kernel);

}  // namespace l2t_fast::cuda
