# `make train` and `make test` set up what is missing: a .venv in this folder with PyTorch, torchvision, Triton and the native build.
.DEFAULT_GOAL := help
.PHONY: help train test fuzz kill soak matrix sanitize race fakegpu gpu lint format clean

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.l2t_fast-ready
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f 2>/dev/null)
CXX_FILES := $(filter %.h %.cpp %.cuh %.cu,$(SOURCES)) tests/ops/cuda/races.cpp \
  $(wildcard tests/fake_gpu/*.h tests/fake_gpu/*.cpp tests/fake_gpu/ptx/*.h tests/fake_gpu/ptx/*.cpp)
# The pythons to try; `make PYTHON=/path/to/python ...` names one.
PYTHON ?= python3 python3.13 python3.12 python3.11 python3.14 python

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

train: $(READY)  ## set up what is missing, then compare the methods on the embedded default; ARGS='--help' and others pass through
	$(BIN)/l2t-fast compare $(ARGS)

test: $(READY)  ## set up what is missing, then run all tests
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 2 $(ARGS)

fuzz: $(READY)  ## ten thousand drawn problems on every backend that runs here; ARGS='--cases 500 --seed 1' and others pass through
	OMP_WAIT_POLICY=passive $(BIN)/python -u -m tests.fuzz $(ARGS)

kill: $(READY)  ## kill training before every change of its files, in the middle of every write and at 100 random moments; each must resume
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -u -m tests.kill $(ARGS)

MINUTES ?= 60
soak: $(READY)  ## train for MINUTES (60) and fail if the process grows
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -u -m tests.soak --minutes $(MINUTES)

matrix: $(READY)  ## install, build and test with every Python and PyTorch that can be had here, native and pure; 8 GB of disk each
	MAX_JOBS=$${MAX_JOBS:-2} $(BIN)/python -u -m tests.matrix $(ARGS)

# $(call sanitized,kind,variables,run times) builds the native code so and begins a run of pytest with it: in a copy of the
# tree that holds the extension, and with the sanitizers' run times in the process before Python is.
define sanitized
$(BIN)/cmake -S . -B build/$@/native -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
  -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DL2T_FAST_SANITIZE=$(1) -DL2T_FAST_CUDA=OFF
$(BIN)/cmake --build build/$@/native
rm -rf build/$@/tree && mkdir -p build/$@/tree
git ls-files l2t_fast tests 'benchmarks/*.py' pyproject.toml | xargs cp --parents -t build/$@/tree
cp build/$@/native/_C.*.so build/$@/tree/l2t_fast/
cd build/$@/tree && OMP_WAIT_POLICY=passive $(2) LD_PRELOAD="$(foreach library,$(3) libstdc++.so.6,$$($(CXX) -print-file-name=$(library)))" \
  $(abspath $(BIN)/python) -m pytest --capture=sys
endef

sanitize: $(READY)  ## run the operators' tests with the native code under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call sanitized,address,OMP_NUM_THREADS=2 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1,libasan.so libubsan.so) \
	  tests/ops tests/fuzz tests/test_coefficients.py tests/test_convolution.py tests/test_python_calls.py \
	  --ignore tests/ops/cuda/test_resources.py --ignore tests/ops/triton/test_resources.py \
	  -k 'not compile and not aot and not gradcheck and not instruction and not snippet' $(ARGS)

# A report makes the process fail, whatever the tests say; the build fails where known races are not reported.
race: $(READY)  ## look for races between the threads of the CUDA kernels, in their emulator under ThreadSanitizer
	$(call sanitized,thread,OMP_NUM_THREADS=1,libtsan.so) \
	  tests/ops/cuda/test_emulated.py tests/ops/cuda/test_gram.py tests/ops/cuda/test_coefficients.py \
	  -k 'not error_where and not planner' $(ARGS)

FAKE := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive FAKE_GPUS=2 $(BIN)/python -m tests.fake_gpu pytest -q -n 2
fakegpu: $(READY)  ## run the tests that need a GPU on a fake one, the kernels in their emulator, then as they were compiled
ifdef ARGS
	$(FAKE) $(ARGS)
else
	$(FAKE) tests/ops tests/test_*.py tests/bilevel tests/transfer --ignore tests/ops/test_instruction_sets.py \
	  -k 'not triton and not dropout and not peak and (not compile or without_graph_breaks)'
	FAKE_GPU_CODE=compiled $(FAKE) tests/ops/test_values.py tests/ops/test_derivatives.py tests/ops/test_operators.py tests/ops/triton \
	  tests/ops/cuda/test_gpu.py tests/ops/cuda/test_coefficients.py tests/bilevel/test_second_order.py \
	  -k '(triton or cuda) and not cpu and not interpreter and not resources and not peak and not compile'
endif

# Without setting anything up, so that it works on a machine with PyTorch and no network.
gpu:  ## on a machine with a GPU: build, test, check memory accesses and measure, in 9 minutes; logs and rows in OUT or build/gpu
	$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) -m benchmarks.gpu $(ARGS)

lint: $(READY)  ## check style: ruff, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(READY)  ## repair style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info l2t_fast/_C.*

# PyTorch comes first and alone, because the native build compiles against it.
$(BIN)/pip:
	@for python in $(PYTHON); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "error: l2t_fast needs Python 3.11 or newer, and none of these is one: $(PYTHON); name one with make PYTHON=/path/to/python." >&2; exit 1; \
	fi; \
	"$$found" -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "error: $$found cannot make a virtual environment; install its venv module (on Debian: apt-get install python3-venv)." >&2; exit 1; }

$(READY): $(SOURCES) | $(BIN)/pip
	@echo "Setting up $(VENV) (the first time it downloads PyTorch, about 3 GB, which takes 6 GB of disk, and compiles for a few minutes)"
	$(BIN)/pip install torch torchvision setuptools cmake ninja
	$(BIN)/pip install --no-build-isolation -e '.[dev]'
	@touch $@
