"""The kernels compile from scratch, and take no more of a chip than it has. No GPU is needed."""

import os
from pathlib import Path

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton's interpreter compiles nothing", allow_module_level=True)

from benchmarks.machine_code import CHOSEN_FOR, SHARED_BYTES, read_resources
from benchmarks.triton_resources import PRODUCTS, Resources, in_flight, layouts_of, resources, tiles
from l2t_fast.ops.triton.tiles import Tile

REPORT = Path(__file__).parents[3] / "benchmarks" / "results" / "triton_resources.csv"

# Kernels that read maps for products in their own type.
OF_MAPS = ("gram_planes", "gram_products")


@pytest.fixture
def from_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def first_tiles(products, architectures=CHOSEN_FOR):
    """The tile for the fewest channels, which most maps of most pixels get, of every kernel and architecture."""
    entries = [entry for entry in tiles(products) if entry[0] in architectures]
    return list({entry[:3]: entry for entry in reversed(entries)}.values())


@pytest.mark.parametrize(
    ("products", "architecture", "kernel", "second", "tile"),
    [("tf32", *entry) for entry in first_tiles("tf32")]
    + [("tf32x3", *entry) for entry in first_tiles("tf32x3") if entry[0] == 90]
    + [(products, *first_tiles(products)[0]) for products in ("bfloat16", "float16")]
    + [("bfloat16 maps", *entry) for entry in first_tiles("bfloat16 maps") if entry[0] == 90 and entry[1] in OF_MAPS],
)
def test_tiles_fit_the_chip(from_scratch, products, architecture, kernel, second, tile):
    """Maps of any size, which take the most registers. All tiles, in all ways: the recorded report, below."""
    assert resources(architecture, kernel, second, tile, products, "NCHW odd").problem is None


@pytest.mark.parametrize(
    ("architecture", "kernel", "second", "tile"),
    [entry for entry in first_tiles("tf32", SHARED_BYTES) if entry[0] not in CHOSEN_FOR and not entry[2]],
)
def test_other_chips_have_what_tiles_take(from_scratch, architecture, kernel, second, tile):
    check_other_chip(resources(architecture, kernel, second, tile, "tf32", "NCHW even"))


def check_other_chip(found):
    """Nobody chose tiles for it: some may spill a little."""
    assert found.shared <= SHARED_BYTES[found.architecture], found
    assert found.instruction != "none" and not found.local and not found.in_flight, found
    assert found.stack <= 64, found


@pytest.mark.parametrize(
    ("products", "kernel", "tile"),
    [
        ("tf32", "differences", Tile(64, 64, 0, 32, 4, 3)),
        ("tf32x3", "differences", Tile(32, 64, 0, 16, 4, 2)),
        ("tf32x3", "gradients", Tile(64, 64, 64, 16, 4, 3)),
        ("float16", "gradients", Tile(64, 128, 64, 32, 4, 3)),
        ("bfloat16 maps", "differences", Tile(64, 64, 0, 32, 4, 3)),
    ],
)
@pytest.mark.parametrize("second", [False, True])
def test_pipelined_loops_wait_for_products_of_registers(from_scratch, products, kernel, tile, second):
    """Tuning may choose pipelines where the table has none."""
    assert resources(90, kernel, second, tile, products).in_flight == 0


def test_products_in_flight_are_found():
    product = "wgmma.mma_async.sync.aligned.m64n32k8.f32.tf32.tf32 {%r1,%r2}, {%r3,%r4,%r5,%r6}, %rd1, %p1, 1, 1;"
    of_memory = "wgmma.mma_async.sync.aligned.m64n32k8.f32.tf32.tf32 {%r1,%r2}, %rd2, %rd1, %p1, 1, 1;"
    wait, branch = "wgmma.wait_group.sync.aligned {};", "@%p2 bra $L__BB0_5;"
    assert in_flight("\n".join([product, wait.format(1), branch])) == 1
    assert in_flight("\n".join([product, product, wait.format(3), "$L__BB0_6:", wait.format(0)])) == 2
    assert in_flight("\n".join([product, wait.format(0), product, wait.format(0), branch])) == 0
    assert in_flight("\n".join([of_memory, wait.format(1), branch])) == 0


@pytest.mark.parametrize("products", PRODUCTS)
def test_the_recorded_report_has_every_tile_and_no_problem(products):
    """Made by `python -m benchmarks.triton_resources --output benchmarks/results/triton_resources.csv`."""
    newest = {
        (r.architecture, r.kernel, r.derivative, r.tile, r.products, r.layout): r
        for r in read_resources(REPORT, Resources)
    }
    for architecture, kernel, second, tile in tiles(products):
        for layout in layouts_of(kernel):
            row = newest.get((architecture, kernel, 2 if second else 1, tile, products, layout))
            assert row is not None, f"no row of {kernel} {tile} for {products}, {layout}, sm_{architecture}"
            if architecture in CHOSEN_FOR:
                assert row.problem is None, row
            else:
                check_other_chip(row)
