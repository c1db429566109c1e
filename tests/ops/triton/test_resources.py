"""The kernels compile from scratch for sm_80 and sm_90, and take no more of a chip than it has. No GPU is needed."""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton's interpreter compiles nothing", allow_module_level=True)

from benchmarks.triton_resources import resources, tiles


@pytest.fixture(autouse=True)
def from_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(("architecture", "kernel", "second", "tile"), tiles())
def test_every_tile_fits(architecture, kernel, second, tile):
    """For maps of any size, which take the most registers; `python -m benchmarks.triton_resources` knows all ways."""
    assert resources(architecture, kernel, second, tile, "tf32", "NCHW odd small").problem is None


@pytest.mark.parametrize("products", ["tf32x3", "bfloat16", "float16"])
@pytest.mark.parametrize("architecture", [80, 90])
def test_products_of_every_type_use_tensor_cores(architecture, products):
    tile = next(t for a, kernel, second, t in tiles() if (a, kernel, second) == (architecture, "target", False))
    assert resources(architecture, "target", False, tile, products).problem is None
