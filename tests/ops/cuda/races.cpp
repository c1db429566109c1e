// What `make race` looks for is found, and nothing else: small kernels with a race and without, in the emulator.
#include <fcntl.h>
#include <sanitizer/common_interface_defs.h>

#include <cstdio>

#include "cuda/emulator.h"

using namespace l2t_fast::cuda;

namespace {

constexpr int row = 4;  // elements of a row of ldmatrix
int reports = 0, launch = 0;
alignas(16) float memory[2 * threads];

float* shared(EmulatedThread& m) { return reinterpret_cast<float*>(m.shared()); }

void write_own(EmulatedThread& m) { shared(m)[m.thread()] = 1; }
void read_of(EmulatedThread& m, int thread) { [[maybe_unused]] const volatile float found = shared(m)[thread]; }
void read_neighbour(EmulatedThread& m) { read_of(m, m.thread() ^ 1); }

void request(EmulatedThread& m) {
  m.copy4(shared(m) + m.thread(), memory + m.thread(), true);
  m.commit();
}

// Rows that the next lane wrote.
void load_matrices(EmulatedThread& m) {
  uint32_t registers[4];
  m.load_matrices(registers, shared(m) + (m.thread() ^ 1) * row);
}
void load_transposed(EmulatedThread& m) {
  uint32_t registers[4];
  m.load_transposed(registers, shared(m) + (m.thread() ^ 1) * row);
}
void write_row(EmulatedThread& m) {
  const uint32_t zeros[4] = {};
  m.write16(shared(m) + m.thread() * row, zeros);
}

struct Case {
  const char* what;
  bool races;
  void (*kernel)(EmulatedThread& m);
  int blocks = 1, launches = 1;
};

const Case cases[] = {
    {"written, a barrier, read", false,
     [](EmulatedThread& m) {
       write_own(m);
       m.barrier();
       read_neighbour(m);
     }},
    {"written, read", true,
     [](EmulatedThread& m) {
       write_own(m);
       read_neighbour(m);
     }},
    {"written, an exchange in the warp, read", true,
     [](EmulatedThread& m) {
       write_own(m);
       m.exchange(0, 1);
       read_neighbour(m);
     }},
    {"written, a product in the warp, read", true,
     [](EmulatedThread& m) {
       Sums<1> sums{};
       const uint32_t a[1][4] = {}, b[2][4] = {};
       write_own(m);
       m.multiply_tf32<1>(sums, a, b);
       read_neighbour(m);
     }},
    {"written, a barrier, read, a barrier, written", false,
     [](EmulatedThread& m) {
       write_own(m);
       m.barrier();
       read_neighbour(m);
       m.barrier();
       write_own(m);
     }},
    {"written, a barrier, read, written", true,
     [](EmulatedThread& m) {
       write_own(m);
       m.barrier();
       read_neighbour(m);
       write_own(m);
     }},
    {"written after a barrier by one thread, read by another before the next one", true,
     [](EmulatedThread& m) {
       m.barrier();
       if (m.thread() == 0) write_own(m);
       if (m.thread() == threads - 1) read_of(m, 0);
       m.barrier();
     }},
    {"16 bytes cleared, a part of them read", true,
     [](EmulatedThread& m) {
       m.zero16(shared(m) + m.thread() * row);
       read_of(m, (m.thread() ^ 1) * row + 3);
     }},
    {"8 bytes written, 16 read", true,
     [](EmulatedThread& m) {
       float values[4];
       m.write8(shared(m) + m.thread() * row, 0, 0);
       m.read4(values, shared(m) + (m.thread() ^ 1) * row);
     }},
    {"a row written, a barrier, a warp's load", false,
     [](EmulatedThread& m) {
       write_row(m);
       m.barrier();
       load_matrices(m);
       load_transposed(m);
     }},
    {"a row written, a warp's load", true,
     [](EmulatedThread& m) {
       write_row(m);
       load_matrices(m);
     }},
    {"a row written, a warp's transposed load", true,
     [](EmulatedThread& m) {
       write_row(m);
       load_transposed(m);
     }},
    {"a copy, waited for, a barrier, read", false,
     [](EmulatedThread& m) {
       request(m);
       m.wait_for_all_but<0>();
       m.barrier();
       read_neighbour(m);
     }},
    {"a copy, waited for, read", true,
     [](EmulatedThread& m) {
       request(m);
       m.wait_for_all_but<0>();
       read_neighbour(m);
     }},
    {"a copy, a barrier, waited for, read", true,
     [](EmulatedThread& m) {
       request(m);
       m.barrier();
       m.wait_for_all_but<0>();
       read_neighbour(m);
     }},
    {"read, a barrier, a copy requested", false,
     [](EmulatedThread& m) {
       read_neighbour(m);
       m.barrier();
       request(m);
     }},
    {"read, a copy requested, a barrier, waited for", true,
     [](EmulatedThread& m) {
       read_neighbour(m);
       request(m);
       m.barrier();
       m.wait_for_all_but<0>();
     }},
    {"written, read by another block in the next launch", false,
     [](EmulatedThread& m) {
       if (launch == 0)
         memory[m.block() * threads + m.thread()] = 1;
       else [[maybe_unused]]
         const volatile float found = memory[(m.block() ^ 1) * threads + (m.thread() ^ 1)];
     },
     2, 2},
    {"blocks that write the same", true, [](EmulatedThread& m) { memory[m.thread()] = 1; }, 2},
    {"a block that reads what another one writes", true,
     [](EmulatedThread& m) {
       if (m.block() == 0)
         memory[m.thread()] = 1;
       else [[maybe_unused]]
         const volatile float found = memory[m.thread()];
     },
     2},
};

}  // namespace

extern "C" {
// Called where a race is found: not looked at itself.
__attribute__((no_sanitize_thread)) void __tsan_on_report(void* /*report*/) { ++reports; }
const char* __tsan_default_options() {
  return "suppress_equal_stacks=0:suppress_equal_addresses=0:symbolize=0:exitcode=0";
}
}

int main() {
  __sanitizer_set_report_fd(reinterpret_cast<void*>(intptr_t(open("/dev/null", O_WRONLY))));
  int wrong = 0;
  for (const Case& each : cases) {
    reports = 0;
    for (launch = 0; launch < each.launches; ++launch) emulate(each.blocks, threads * 16, false, each.kernel);
    if ((reports > 0) == each.races) continue;
    ++wrong;
    std::printf("%s: %s\n", each.what, each.races ? "not reported" : "reported");
  }
  std::printf("%zu small kernels: %s\n", sizeof cases / sizeof *cases,
              wrong ? "not as they should be" : "as they should be");
  return wrong != 0;
}
