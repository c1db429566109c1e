// What ThreadSanitizer is told, so that it reports where threads of a GPU would race (make race); nothing in other
// builds.
//
// Every emulated thread is a fiber of the sanitizer's: it takes them to run at the same time, whatever runs first here.
// One access comes after another one by a barrier of the block, by the order of launches, and by nothing else: blocks
// of a launch are not ordered, and a warp's instructions order no memory, as PTX has it of shfl.sync, ldmatrix and
// mma.sync. So no lockstep is assumed. An asynchronous copy writes when it is requested and when it is waited for.
//
// Kernels are compiled with the sanitizer and emulator.cpp is not, whose bookkeeping threads share without barriers.
// What it reads and writes for a kernel, it names to the sanitizer by read() and write().
#pragma once

#ifdef L2T_FAST_FIND_RACES
#include <sanitizer/tsan_interface.h>

#include <memory>
#include <string>
#include <vector>

#include "records.h"

extern "C" {
void __tsan_read_range(void* begin, unsigned long bytes);
void __tsan_write_range(void* begin, unsigned long bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace l2t_fast::cuda::races {

#ifdef L2T_FAST_FIND_RACES

inline void switch_to(void* fiber) { __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync); }

// Of one of a block's threads.
class Fiber {
 public:
  Fiber(int block, int thread) : fiber_(next()) {
    __tsan_set_fiber_name(fiber_, ("block " + std::to_string(block) + ", thread " + std::to_string(thread)).c_str());
  }
  void enter() const { switch_to(fiber_); }

 private:
  // They are taken in turn, because one takes a millisecond to make, and the sanitizer has room for 8,000. What the
  // same one does is ordered, so a block is compared with the five before it in its launch.
  static void* next() {
    static std::vector<void*> all(6 * threads);
    static size_t number = 0;
    void*& fiber = all[number++ % all.size()];
    if (!fiber) fiber = __tsan_create_fiber(0);
    return fiber;
  }

  void* const fiber_;
};

// The one that it is made in.
class Current {
 public:
  void enter() const { switch_to(fiber_); }

 private:
  void* const fiber_ = __tsan_get_current_fiber();
};

// What was done before a release comes before what is done after an acquire. On the heap, because the sanitizer forgets
// an address that is freed, and the next block would find another one's order on its stack.
class Order {
 public:
  void release() { __tsan_release(address_.get()); }
  void acquire() { __tsan_acquire(address_.get()); }

 private:
  const std::unique_ptr<char> address_ = std::make_unique<char>();
};

inline Order launch_begins, launch_ends;
inline void begin_thread() { launch_begins.acquire(); }
inline void end_thread() { launch_ends.release(); }

inline void read(const void* from, int bytes) { __tsan_read_range(const_cast<void*>(from), unsigned(bytes)); }
inline void write(void* to, int bytes) { __tsan_write_range(to, unsigned(bytes)); }

// run(begin, end) for the blocks of a launch: here one at a time, so that each has shared memory and stacks of its own.
// What sets them up is not looked at.
template <class Run>
void launch(int blocks, const Run& run) {
  struct Ignoring {
    Ignoring() {
      AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
      AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    }
    ~Ignoring() {
      AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
      AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    }
  };
  launch_begins.release();
  {
    const Ignoring ignoring;
    for (int block = 0; block < blocks; ++block) run(block, block + 1);
  }
  launch_ends.acquire();
}

#else

struct Fiber {
  Fiber(int /*block*/, int /*thread*/) {}
  void enter() const {}
};
struct Current {
  void enter() const {}
};
struct Order {
  void release() {}
  void acquire() {}
};
inline void begin_thread() {}
inline void end_thread() {}
inline void read(const void* /*from*/, int /*bytes*/) {}
inline void write(void* /*to*/, int /*bytes*/) {}
template <class Run>
void launch(int blocks, const Run& run) {
  run(0, blocks);
}

#endif

}  // namespace l2t_fast::cuda::races
