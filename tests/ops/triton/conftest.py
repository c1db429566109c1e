"""The Triton backend alone: in Triton's interpreter (see test_interpreter.py), or on a GPU."""

import pytest

from tests.ops.conftest import Backend


@pytest.fixture
def triton_backend(backend: Backend) -> Backend:
    if backend.name != "triton":
        pytest.skip("for the triton backend")
    return backend
