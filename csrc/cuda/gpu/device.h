// The Machine of tile.h on a GPU: the instructions, of sm_80 and newer.
#pragma once

#include <cuda_fp16.h>

#include "../tile.h"

namespace l2t_fast::cuda {

class Device {
 public:
  L2T_FAST_KERNEL explicit Device(unsigned char* shared) : shared_(shared) {}

  // Asked again in every phase of a kernel: what is made of it, tiles' addresses above all, would otherwise be computed
  // for all phases ahead, and fill the registers.
  L2T_FAST_KERNEL int thread() const {
    int number;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
    return number & (threads - 1);  // which tells the compiler that it is not negative
  }
  L2T_FAST_KERNEL int block() const { return int(blockIdx.x); }
  L2T_FAST_KERNEL unsigned char* shared() const { return shared_; }
  L2T_FAST_KERNEL void barrier() const { __syncthreads(); }
  L2T_FAST_KERNEL float exchange(float value, int mask) const { return __shfl_xor_sync(0xffffffff, value, mask); }

  template <class T>
  L2T_FAST_KERNEL T read(const T* from) const {
    return __ldg(from);
  }

  // Where nothing lives, nothing is read: so many bytes of zeros are written. What is copied is read behind a barrier,
  // which orders it for the compiler too: one that clobbers memory here would have all records read anew.
  L2T_FAST_KERNEL void copy16(void* to, const void* from, bool lives) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address(to)), "l"(from), "r"(lives ? 16 : 0));
  }
  L2T_FAST_KERNEL void copy8(void* to, const void* from, bool lives) const {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(address(to)), "l"(from), "r"(lives ? 8 : 0));
  }
  L2T_FAST_KERNEL void copy4(void* to, const void* from, bool lives) const {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address(to)), "l"(from), "r"(lives ? 4 : 0));
  }
  L2T_FAST_KERNEL void read4(float (&values)[4], const float* from) const {
    const float4 found = *reinterpret_cast<const float4*>(from);
    values[0] = found.x, values[1] = found.y, values[2] = found.z, values[3] = found.w;
  }
  L2T_FAST_KERNEL void read8(uint32_t (&bits)[2], const void* from) const {
    const uint2 found = *static_cast<const uint2*>(from);
    bits[0] = found.x, bits[1] = found.y;
  }
  L2T_FAST_KERNEL void write8(void* to, uint32_t first, uint32_t second) const {
    *static_cast<uint2*>(to) = make_uint2(first, second);
  }
  L2T_FAST_KERNEL void write16(void* to, const uint32_t (&bits)[4]) const {
    *static_cast<uint4*>(to) = make_uint4(bits[0], bits[1], bits[2], bits[3]);
  }
  L2T_FAST_KERNEL void zero16(void* to) const { *static_cast<uint4*>(to) = make_uint4(0, 0, 0, 0); }
  L2T_FAST_KERNEL void commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  template <int groups>
  L2T_FAST_KERNEL void wait_for_all_but() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
  }

  // Rounds to nearest, for products by tensor cores alone: they do not look at the lower 13 bits, which stay as they
  // come. Half of a unit of tf32 in the number's own size is added to it: two instructions, where cvt.rna.tf32 is four
  // or five. What is infinite or no number stays so.
  L2T_FAST_KERNEL uint32_t tf32(uint32_t bits) const {
    return __float_as_uint(__fmaf_rn(__uint_as_float(bits & 0xff800000), 0x1p-11f, __uint_as_float(bits)));
  }
  L2T_FAST_KERNEL void round_to_tf32(float* piece) const {
    auto* const place = reinterpret_cast<uint4*>(piece);
    const uint4 bits = *place;
    *place = make_uint4(tf32(bits.x), tf32(bits.y), tf32(bits.z), tf32(bits.w));
  }
  L2T_FAST_KERNEL uint32_t split_tf32(uint32_t& bits) const {
    const float whole = __uint_as_float(bits);
    bits = tf32(bits) & 0xffffe000;
    // Rounded by half a unit more in its bits: of what is infinite or no number the first part tells.
    return __float_as_uint(whole - __uint_as_float(bits)) + 0x1000;
  }

  // Four matrices of 8 rows of 16 bytes: lane l names row l % 8 of matrix l / 8, and gets, of each matrix, word l % 4
  // of row l / 4; or, transposed, elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4) of 16 bits.
  L2T_FAST_KERNEL void load_matrices(uint32_t (&registers)[4], const void* row) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address(row)));
  }
  L2T_FAST_KERNEL void load_transposed(uint32_t (&registers)[4], const void* row) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address(row)));
  }

  template <int blocks>
  L2T_FAST_KERNEL void multiply_tf32(Sums<blocks>& sums, const uint32_t (&a)[blocks][4],
                                     const uint32_t (&b)[2][4]) const {
    L2T_FAST_UNROLL
    for (int i = 0; i < blocks; ++i) {
      L2T_FAST_UNROLL
      for (int j = 0; j < 4; ++j) {
        float (&s)[4] = sums[i][j];
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
            : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j / 2][j % 2 * 2]),
              "r"(b[j / 2][j % 2 * 2 + 1]));
      }
    }
  }
  template <int blocks>
  L2T_FAST_KERNEL void multiply_bfloat16(Sums<blocks>& sums, const uint32_t (&a)[blocks][4],
                                         const uint32_t (&b)[2][4]) const {
    L2T_FAST_UNROLL
    for (int i = 0; i < blocks; ++i) {
      L2T_FAST_UNROLL
      for (int j = 0; j < 4; ++j) {
        float (&s)[4] = sums[i][j];
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
            : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j / 2][j % 2 * 2]),
              "r"(b[j / 2][j % 2 * 2 + 1]));
      }
    }
  }

  L2T_FAST_KERNEL float as_float(uint32_t bits) const { return __uint_as_float(bits); }
  L2T_FAST_KERNEL uint32_t as_bits(float value) const { return __float_as_uint(value); }
  L2T_FAST_KERNEL float from_half(uint16_t bits) const { return __half2float(__ushort_as_half(bits)); }
  L2T_FAST_KERNEL uint16_t to_half(float value) const { return __half_as_ushort(__float2half_rn(value)); }
  L2T_FAST_KERNEL uint16_t to_bfloat16(float value) const {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
  }

 private:
  static L2T_FAST_KERNEL uint32_t address(const void* shared) { return uint32_t(__cvta_generic_to_shared(shared)); }

  unsigned char* const shared_;
};

}  // namespace l2t_fast::cuda
