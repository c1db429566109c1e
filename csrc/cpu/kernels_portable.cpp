#define L2T_ISA portable
#define L2T_VECTOR_BYTES 16
#include "kernels_impl.h"

namespace l2t_fast::cpu {

extern constexpr Kernels portable_kernels = portable::table("portable");

}  // namespace l2t_fast::cpu
