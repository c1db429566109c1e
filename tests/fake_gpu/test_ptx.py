"""The machine that runs PTX on the CPU, on kernels written by hand: what it computes, what it takes for an error."""

import ctypes
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.fake_gpu import build

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 tile[];\n"
REGISTERS = ".reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<32>; .reg .b64 %d<16>; .reg .f32 %f<16>;\n"


@pytest.fixture(scope="module")
def library():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    problem = build.why_not()
    if problem is not None:
        pytest.skip(problem)
    build.build()
    loaded = ctypes.CDLL(str(build.CUDART))
    loaded.fake_gpu_load.restype = loaded.fake_gpu_launch.restype = ctypes.c_char_p
    return loaded


class Memory:
    """Numbers on the fake device."""

    def __init__(self, library, numbers: np.ndarray) -> None:
        self.address = ctypes.c_void_p()
        assert library.cudaMalloc(ctypes.byref(self.address), ctypes.c_size_t(numbers.nbytes)) == 0
        place = ctypes.cast(self.address, ctypes.POINTER(ctypes.c_char * numbers.nbytes)).contents
        self.numbers = np.frombuffer(place, numbers.dtype).reshape(numbers.shape)
        self.numbers[...] = numbers


def run(library, body: str, *memory: Memory, threads: int = 32, shared: int = 0) -> None:
    """Run a kernel whose addresses are in %d0, %d1, ..; raises RuntimeError."""
    parameters = ", ".join(f".param .u64 p{n}" for n in range(len(memory)))
    loads = "".join(f"ld.param.u64 %d{n}, [p{n}];\n" for n in range(len(memory)))
    text = f"{HEAD}.visible .entry k({parameters})\n{{\n{REGISTERS}{loads}{body}\nret;\n}}\n"
    kernel = ctypes.c_void_p()
    error = library.fake_gpu_load(text.encode(), b"k", 0, ctypes.byref(kernel))
    if error is None:
        words = (ctypes.c_uint64 * len(memory))(*(m.address.value for m in memory))
        places = (ctypes.c_void_p * len(memory))(*(ctypes.addressof(words) + 8 * n for n in range(len(memory))))
        sizes = [ctypes.c_uint(n) for n in (1, 1, 1, threads)]
        error = library.fake_gpu_launch(kernel, *sizes, ctypes.c_size_t(shared), places, None)
    if error is not None:
        raise RuntimeError(error.decode())


# %d1 + 4 lane -> %d2, and the lane's number to %r0
OWN_PLACE = "mov.u32 %r0, %tid.x;\nmul.wide.u32 %d3, %r0, 4;\nadd.s64 %d2, %d0, %d3;\n"


def test_lanes_that_part_meet_again(library):
    """Lane l goes through a loop l times; then the warp adds up."""
    result = Memory(library, np.zeros(32, np.int32))
    body = f"""{OWN_PLACE}
        mov.u32 %r1, 0; mov.u32 %r2, 0;
    again:
        setp.ge.u32 %p0, %r1, %r0;
        @%p0 bra done;
        add.u32 %r1, %r1, 1; add.u32 %r2, %r2, %r1;
        bra.uni again;
    done:
        shfl.sync.bfly.b32 %r3|%p1, %r2, 1, 31, -1;
        st.global.u32 [%d2], %r3;"""
    run(library, body, result)
    sums = np.arange(32) * np.arange(1, 33) // 2
    assert np.array_equal(result.numbers, sums[np.arange(32) ^ 1])


@pytest.mark.parametrize("kind", ["tf32", "bf16"])
def test_tensor_cores(library, kind):
    """One product of 16 rows, 8 columns and 8 or 16 terms, fragments as PTX has them, sums cut off towards zero."""
    generator = np.random.default_rng(0)
    depth = 8 if kind == "tf32" else 16
    a, b = generator.standard_normal((16, depth)), generator.standard_normal((depth, 8))
    bits = [np.float32(x).view(np.uint32) & np.uint32(0xFFFFE000 if kind == "tf32" else 0xFFFF0000) for x in (a, b)]
    a, b = (x.view(np.float32).astype(np.float64) for x in bits)
    lane = np.arange(32)

    def register(lines, line, term):  # of a number, or of two neighbours along the sum
        if kind == "tf32":
            return lines[line, lane % 4 + term]
        first = 2 * (lane % 4) + term
        return lines[line, first] >> 16 | lines[line, first + 1]

    half = depth // 2
    rows = [lane // 4, lane // 4 + 8]
    left = [register(bits[0], rows[e % 2], half * (e // 2)) for e in range(4)]
    right = [register(bits[1].T, lane // 4, half * e) for e in range(2)]
    operands = Memory(library, np.stack(left + right).astype(np.uint32))
    result = Memory(library, np.zeros((4, 32), np.float32))
    loads = "".join(f"ld.global.b32 %r{n + 1}, [%d2+{128 * n}];\n" for n in range(6))
    stores = "".join(f"st.global.f32 [%d4+{128 * n}], %f{n};\n" for n in range(4))
    shape = f"m16n8k{depth}.row.col.f32.{kind}.{kind}.f32"
    body = f"""{OWN_PLACE} {loads} add.s64 %d4, %d1, %d3;
        mov.f32 %f4, 0f00000000;
        mma.sync.aligned.{shape} {{%f0,%f1,%f2,%f3}}, {{%r1,%r2,%r3,%r4}}, {{%r5,%r6}}, {{%f4,%f4,%f4,%f4}};
        {stores}"""
    run(library, body, operands, result)
    exact = a @ b
    for e in range(4):
        found, wanted = result.numbers[e], exact[rows[e // 2], 2 * (lane % 4) + e % 2]
        assert np.all(np.abs(found) <= np.abs(wanted))
        np.testing.assert_allclose(found, wanted, rtol=2**-22, atol=1e-30)


def test_a_copy_arrives_when_it_is_waited_for(library):
    given, result = Memory(library, np.arange(32, dtype=np.float32)), Memory(library, np.zeros((2, 32), np.float32))
    body = f"""{OWN_PLACE} add.s64 %d4, %d1, %d3;
        shl.b32 %r1, %r0, 2; mov.u32 %r2, tile; add.u32 %r2, %r2, %r1;
        cp.async.ca.shared.global [%r2], [%d2], 4, 4;
        cp.async.commit_group;
        ld.shared.f32 %f0, [%r2];
        st.global.f32 [%d4], %f0;
        cp.async.wait_group 0;
        ld.shared.f32 %f0, [%r2];
        st.global.f32 [%d4+128], %f0;"""
    run(library, body, given, result, shared=128)
    assert np.all(np.isnan(result.numbers[0]))
    assert np.array_equal(result.numbers[1], given.numbers)


TIMED = {
    "together": "ld.global.f32 %f0, [%d2]; ld.global.f32 %f1, [%d2+128]; add.f32 %f2, %f0, %f1;",
    "one after the other": "ld.global.f32 %f0, [%d2]; add.f32 %f2, %f0, %f0; bra there;\n"
    "there: ld.global.f32 %f1, [%d2+128]; add.f32 %f2, %f1, %f1;",
    "again": "ld.global.f32 %f0, [%d2]; add.f32 %f2, %f0, %f0; bra there;\n"
    "there: ld.global.f32 %f1, [%d2]; add.f32 %f2, %f1, %f1;",
    "eight to a bank": "mov.u32 %r1, tile; mad.lo.u32 %r1, %r0, 32, %r1; st.shared.u32 [%r1], %r0;",
}


def test_what_is_waited_for(library, tmp_path):
    """Numbers that are read together are waited for once, 600 cycles; what the block has had before comes sooner.

    What it has had need not come from the second cache. Lanes that take different words of a bank take turns.
    """
    script = (
        "from tests.fake_gpu.test_ptx import *\n"
        "loaded = ctypes.CDLL(str(build.CUDART))\n"
        "loaded.fake_gpu_load.restype = loaded.fake_gpu_launch.restype = ctypes.c_char_p\n"
        "for body in TIMED.values():\n"
        "    run(loaded, OWN_PLACE + body, Memory(loaded, np.zeros(64, np.float32)), shared=1024)\n"
    )
    environment = os.environ | {"FAKE_GPU_TIMED": "1", "FAKE_GPU_COUNTS": str(tmp_path / "counts")}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=build.ROOT, check=True)
    launches = [json.loads(line) for line in (tmp_path / "counts").read_text().splitlines()]
    cycles = dict(zip(TIMED, (launch["cycles"][0] for launch in launches), strict=True))
    assert 600 < cycles["together"] < 650
    assert 1200 < cycles["one after the other"] < 1250
    assert 600 < cycles["again"] < 700
    assert 1200 <= sum(launches[1]["waits"].values()) < 1250
    sectors = [(launch["sectors_of_first_cache"], launch["sectors_of_second_cache"]) for launch in launches]
    assert sectors == [(8, 8), (8, 8), (8, 4), (0, 0)]
    assert [sum(launch["conflicts"].values()) for launch in launches] == [0, 0, 0, 7]


ERRORS = {
    "beyond what is allocated": (f"{OWN_PLACE} ld.global.f32 %f0, [%d2+4];", "nothing is allocated"),
    "a vector that is not aligned": ("ld.global.v2.f32 {%f0,%f1}, [%d0+4];", "not aligned"),
    "beyond shared memory": ("mov.u32 %r1, tile; st.shared.u32 [%r1+64], %r1;", "beyond the block's shared memory"),
    "half a warp": (
        f"{OWN_PLACE} setp.lt.u32 %p0, %r0, 16;\n@%p0 bra there;\nshfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;\nret;\n"
        "there: ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1,%r2,%r3,%r4}, [%r0];",
        "wait for each other",
    ),
    "an unknown instruction": ("tanh.approx.f32 %f0, %f1;", "does not understand an instruction"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_errors(library, error):
    body, message = ERRORS[error]
    with pytest.raises(RuntimeError, match=message):
        run(library, body, Memory(library, np.zeros(32, np.float32)), shared=64)
