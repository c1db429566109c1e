"""Hostile names in messages."""

import pytest

from l2t_fast.text import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name.png", "plain name.png"),
        ("größe-日本.png", "größe-日本.png"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("left\u202eright", "left\\u202eright"),
        (b"\xff.png".decode("utf-8", "surrogateescape"), "\\udcff.png"),
    ],
)
def test_only_what_cannot_be_shown_is_escaped(name, shown):
    assert printable(name) == shown
    printable(name).encode("utf-8")
