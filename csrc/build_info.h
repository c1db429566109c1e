// What this library was built from and with. No torch type here: the file compiles in a second when the commit changes.
#pragma once

#include <string>
#include <vector>

namespace l2t_fast {

struct BuildInfo {
  std::string version;
  std::string commit;  // empty outside a git checkout; ends in "-dirty" when the checkout had changes
  std::string torch;   // the PyTorch it was compiled against, as torch.__version__ names it
  std::string compiler;
  std::string cxx_flags;
  std::vector<std::string> instruction_sets;  // those with kernels of their own, beside the compiler's baseline
  std::string cuda;                           // nvcc's version, empty without CUDA kernels
  std::string cuda_architectures;             // as CMake names them, e.g. "80;90a-real"
};

BuildInfo build_info();

}  // namespace l2t_fast
