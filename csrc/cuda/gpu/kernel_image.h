// Can this library's CUDA kernels run on a device?
#pragma once

#include <string>

namespace l2t_fast::cuda {

struct KernelImage {
  int runtime = 0;  // CUDA run time in use, 1000 * major + 10 * minor
  int driver = 0;   // newest CUDA version that the driver supports, same coding; 0 without a driver
  int binary = 0;   // machine code chosen for the device, 10 * major + minor: 90 is sm_90
  int ptx = 0;  // architecture the code was written for; below `binary` where the driver compiled PTX for the device
  std::string error;  // why no kernel can run there, empty when one can
};

KernelImage kernel_image(int device);

// Whether they can; the driver is asked until it says so once for a device.
bool kernels_run_on(int device);

}  // namespace l2t_fast::cuda
