#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#include <unistd.h>
#endif

#if __has_include(<pthread.h>)
#include <pthread.h>
#define L2T_FAST_FORKS
#endif

#include <algorithm>
#include <cstdint>
#include <limits>
#include <list>
#include <mutex>
#include <unordered_map>

#include "../matching.h"

namespace l2t_fast::cpu {
namespace {

constexpr size_t smallest_pooled = 1 << 20;

// A block's first use still costs page faults, a sixth of the whole pass with pages of 4 KiB. Huge ones are asked for
// where the system lets a program ask (transparent_hugepage = madvise).
void advise_huge_pages([[maybe_unused]] void* block, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr size_t smallest = 4 << 20;
  if (bytes < smallest) return;
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(block);
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: a failure changes nothing
#endif
}

// A request takes the smallest free block that holds it, if that is not an eighth too large: the calls of a training
// run are alike. A quarter more than was ever in use at once is kept at most.
class Pool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const Block block = take(bytes);
    report(block.data, int64_t(block.bytes));
    return {block.data, block.data, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  Pool() {
#ifdef L2T_FAST_FORKS
    // A child that is forked while another thread is in here would wait for that thread, which it does not have.
    const auto unlock = [] { instance().mutex_.unlock(); };
    pthread_atfork([] { instance().mutex_.lock(); }, unlock, unlock);
#endif
  }

  // Never destroyed: tensors may outlive everything else.
  static Pool& instance() {
    static Pool* const pool = new Pool;
    return *pool;
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  Block take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto fits = [bytes](const Block& block) { return bytes <= block.bytes && block.bytes - bytes <= bytes / 8; };
    auto best = free_.end();
    for (auto block = free_.begin(); block != free_.end(); ++block)
      if (fits(*block) && (best == free_.end() || block->bytes <= best->bytes)) best = block;
    if (best != free_.end()) {
      const Block block = *best;
      free_.erase(best);
      kept_ -= block.bytes;
      return use(block);
    }
    const size_t limit = std::max(most_used_, used_ + bytes) / 4 * 5;
    while (!free_.empty() && used_ + bytes + kept_ > limit) {
      kept_ -= free_.front().bytes;
      c10::free_cpu(free_.front().data);
      free_.pop_front();
    }
    void* data = c10::alloc_cpu(bytes);
    advise_huge_pages(data, bytes);
    return use({data, bytes});
  }

  Block use(const Block& block) {
    used_ += block.bytes;
    most_used_ = std::max(most_used_, used_);
    sizes_.emplace(block.data, block.bytes);
    return block;
  }

  static void give_back(void* data) {
    Pool& pool = instance();
    size_t bytes = 0;
    {
      const std::lock_guard<std::mutex> lock(pool.mutex_);
      const auto entry = pool.sizes_.find(data);
      bytes = entry->second;
      pool.sizes_.erase(entry);
      pool.used_ -= bytes;
#ifdef __SANITIZE_ADDRESS__
      c10::free_cpu(data);  // so that a use after this is found
#else
      pool.free_.push_back({data, bytes});
      pool.kept_ += bytes;
#endif
    }
    report(data, -int64_t(bytes));
  }

  // What PyTorch's profiler shows is what tensors use.
  static void report(void* data, int64_t bytes) {
    if (c10::memoryProfilingEnabled())
      c10::reportMemoryUsageToProfiler(data, bytes, 0, 0, c10::Device(c10::DeviceType::CPU));
  }

  std::mutex mutex_;
  std::unordered_map<void*, size_t> sizes_;  // of the blocks in use
  std::list<Block> free_;                    // oldest first
  size_t used_ = 0, kept_ = 0, most_used_ = 0;
};

// As at::empty: under torch.use_deterministic_algorithms what is not written shows. Workspaces are bytes, and 0xFF in
// each of them is NaN in every floating-point type.
at::Tensor filled_if_deterministic(at::Tensor tensor) {
  const auto& context = at::globalContext();
  if (!context.deterministicAlgorithms() || !context.deterministicFillUninitializedMemory()) return tensor;
  if (tensor.is_floating_point()) tensor.fill_(std::numeric_limits<double>::quiet_NaN());
  if (tensor.scalar_type() == at::kByte) tensor.fill_(0xFF);
  return tensor;
}

at::Tensor pooled(at::IntArrayRef sizes, at::ScalarType type, at::MemoryFormat format) {
  return at::detail::empty_generic(sizes, &Pool::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU), type, format);
}

}  // namespace

at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType type) {
  const size_t bytes = size_t(c10::multiply_integers(sizes)) * c10::elementSize(type);
  if (bytes < smallest_pooled) return at::empty(sizes, at::TensorOptions().dtype(type));
  return filled_if_deterministic(pooled(sizes, type, at::MemoryFormat::Contiguous));
}

at::Tensor pooled_zeros(at::IntArrayRef sizes, at::ScalarType type) { return pooled_empty(sizes, type).zero_(); }

at::Tensor pooled_gradient(const at::Tensor& input) {
  const at::ScalarType type = gradient_type(input.scalar_type());
  if (size_t(input.numel()) * c10::elementSize(type) < smallest_pooled) return empty_gradient(input);
  return filled_if_deterministic(pooled(input.sizes(), type, input.suggest_memory_format()));
}

}  // namespace l2t_fast::cpu
