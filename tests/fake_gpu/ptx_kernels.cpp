// Kernels as the compilers leave them, in PTX: nvcc's, by name, and those that Triton has compiled, by handle.
#include <cstdlib>
#include <fstream>
#include <mutex>

#include "ptx/machine.h"
#include "runtime.h"

namespace fake_gpu {
namespace {

using Kernels = std::map<std::string, std::shared_ptr<const ptx::Kernel>>;

std::recursive_mutex mutex;

ptx::Allocation allocation_of(const void* address) {
  const Found found = memory_at(address);
  return {static_cast<const unsigned char*>(found.begin), found.bytes};
}

void write(std::ofstream& file, const std::map<std::string, uint64_t>& counts) {
  file << "{";
  const char* separator = "";
  for (const auto& [name, count] : counts) {
    file << separator << "\"" << name << "\": " << count;
    separator = ", ";
  }
  file << "}";
}

// What was executed how often, in the order of the code.
void write_listing(const ptx::Kernel& kernel, const ptx::Counts& counts) {
  static const char* const path = std::getenv("FAKE_GPU_LISTING");
  if (!path) return;
  std::ofstream file(path, std::ios::app);
  file << "\n" << kernel.name << "\n";
  for (size_t i = 0; i < kernel.code.size(); ++i)
    file << counts.runs[i] << "\t" << counts.conflicts[i] << "\t" << i << "\t" << kernel.code[i].text
         << (kernel.code[i].target < 0 ? "" : " -> " + std::to_string(kernel.code[i].target)) << "\t"
         << kernel.code[i].line << "\n";
}

// A line for each launch: what was executed, by opcode, and what it took of the memories.
void write_counts(const ptx::Kernel& kernel, const ptx::Launch& launch, const ptx::Counts& counts) {
  static const char* const path = std::getenv("FAKE_GPU_COUNTS");
  if (!path) return;
  std::map<std::string, uint64_t> by_opcode, by_line;
  for (size_t i = 0; i < kernel.code.size(); ++i) {
    if (!counts.runs[i]) continue;
    by_opcode[kernel.code[i].opcode] += counts.runs[i];
    if (!kernel.code[i].line.empty()) by_line[kernel.code[i].line] += counts.runs[i];
  }
  std::ofstream file(path, std::ios::app);
  file << "{\"kernel\": \"" << kernel.name << "\", \"blocks\": " << launch.grid.x << ", \"threads\": " << launch.block.x
       << ", \"registers\": " << kernel.registers
       << ", \"shared_bytes\": " << kernel.static_shared_bytes + launch.dynamic_shared_bytes
       << ", \"global_sectors\": " << counts.global_sectors << ", \"global_bytes\": " << counts.global_bytes
       << ", \"shared_wavefronts\": " << counts.shared_wavefronts << ", \"shared_least\": " << counts.shared_least
       << ", \"opcodes\": ";
  write(file, by_opcode);
  file << ", \"lines\": ";
  write(file, by_line);
  if (launch.timed) {
    const auto list = [&](const char* name, const std::vector<uint64_t>& numbers) {
      file << ", \"" << name << "\": [";
      for (size_t i = 0; i < numbers.size(); ++i) file << (i ? ", " : "") << numbers[i];
      file << "]";
    };
    list("cycles", counts.cycles);
    list("instructions", counts.instructions);
    const auto by_place = [&](const char* name, const std::vector<uint64_t>& numbers) {
      std::map<std::string, uint64_t> sums;
      for (size_t i = 0; i < kernel.code.size(); ++i) {
        const ptx::Instruction& instruction = kernel.code[i];
        if (numbers[i])
          sums[instruction.line.empty() ? std::to_string(i) + " " + instruction.opcode : instruction.line] +=
              numbers[i];
      }
      file << ", \"" << name << "\": ";
      write(file, sums);
    };
    by_place("waits", counts.waits);
    by_place("conflicts", counts.conflicts);
    file << ", \"lines_of_memory\": " << counts.lines.count()
         << ", \"sectors_of_first_cache\": " << counts.lines.sectors_of_first_cache()
         << ", \"sectors_of_second_cache\": " << counts.lines.sectors_of_second_cache();
  }
  file << "}\n";
}

void run_ptx(const std::shared_ptr<const ptx::Kernel>& kernel, dim3 grid, unsigned threads, size_t shared,
             void* const* arguments, cudaStream_t stream) {
  ptx::Launch launch{{grid.x, grid.y, grid.z},          {threads, 1, 1}, shared, setting("FAKE_GPU_REVERSED", 0) != 0,
                     setting("FAKE_GPU_TIMED", 0) != 0, allocation_of};
  run(stream, [=, parameters = ptx::packed(*kernel, arguments)] {
    const std::lock_guard lock(mutex);
    const ptx::Counts counts = ptx::run(*kernel, launch, parameters);
    write_counts(*kernel, launch, counts);
    write_listing(*kernel, counts);
  });
}

// What cuobjdump tells of a library: PTX of several modules, with other lines between them.
Kernels kernels_of_library() {
  Kernels all;
  const char* const path = std::getenv("FAKE_GPU_PTX");
  if (!path) return all;
  std::ifstream file(path);
  std::string line, module;
  bool is_ptx = false;
  const auto finish = [&] {
    if (!module.empty()) all.merge(ptx::parse(module));
    module.clear();
  };
  while (std::getline(file, line)) {
    if (line.starts_with("Fatbin")) is_ptx = false, finish();
    if (line.starts_with(".version")) is_ptx = true;
    if (is_ptx) module += line + "\n";
  }
  finish();
  return all;
}

}  // namespace

bool launch_ptx(const std::string& name, dim3 grid, dim3 block, size_t shared, void** arguments, cudaStream_t stream) {
  static const Kernels kernels = kernels_of_library();
  const auto found = kernels.find(name);
  if (found == kernels.end()) return false;
  run_ptx(found->second, grid, block.x, shared, arguments, stream);
  return true;
}

}  // namespace fake_gpu

// For Triton's driver (triton_driver.py). An error is a text, until the next call of the thread.
extern "C" {

const char* fake_gpu_load(const char* text, const char* name, int registers, void** kernel) {
  static thread_local std::string error;
  try {
    auto found = std::make_shared<fake_gpu::ptx::Kernel>(*fake_gpu::ptx::parse(text).at(name));
    found->registers = registers;
    *kernel = new std::shared_ptr<const fake_gpu::ptx::Kernel>(std::move(found));  // for as long as the process lives
    return nullptr;
  } catch (const std::exception& problem) {
    return (error = problem.what()).c_str();
  }
}

const char* fake_gpu_launch(void* kernel, unsigned x, unsigned y, unsigned z, unsigned threads, size_t shared,
                            void* const* arguments, void* stream) {
  static thread_local std::string error;
  try {
    fake_gpu::run_ptx(*static_cast<std::shared_ptr<const fake_gpu::ptx::Kernel>*>(kernel), dim3(x, y, z), threads,
                      shared, arguments, static_cast<cudaStream_t>(stream));
    return nullptr;
  } catch (const std::exception& problem) {
    return (error = problem.what()).c_str();
  }
}

}  // extern "C"
