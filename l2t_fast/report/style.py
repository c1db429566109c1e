"""Colours, markers and names that all figures and the page share.

Figures are drawn with the colours of the light theme. In the page each of them becomes a CSS variable with a second
value for dark mode, so one drawing serves both. Light and dark values keep a contrast of at least 4.5 against their
background, and no two lines of a figure differ by colour alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1c2127",
    "muted": "#59636e",
    "grid": "#dfe3e8",
    "m0": "#5f6873",
    "m1": "#0068a8",
    "m2": "#00785a",
    "m3": "#b84300",
    "m4": "#8d3f78",
    "m5": "#855b00",
    "m6": "#5140b5",
    "m7": "#0b6f83",
    "s0": "#b45309",
    "s1": "#0f766e",
    "s2": "#4338ca",
    "s3": "#be185d",
    "s4": "#4d6b10",
    "s5": "#1d4e89",
}
"""Variable name -> colour: page, text, grid; m0.. for methods; s0.. for source layers, from shallow to deep."""

DARK = {
    "paper": "#14181d",
    "ink": "#e8ebee",
    "muted": "#a2acb7",
    "grid": "#2c343d",
    "m0": "#a7b0ba",
    "m1": "#56b4e9",
    "m2": "#2fc79a",
    "m3": "#ff8f52",
    "m4": "#e292c6",
    "m5": "#e6a823",
    "m6": "#a99ff7",
    "m7": "#63cfe0",
    "s0": "#f5b041",
    "s1": "#4fd1c5",
    "s2": "#a5a2ff",
    "s3": "#ff8fc0",
    "s4": "#b6d957",
    "s5": "#7fb8ff",
}

DASHES = [(0, (1, 1.2)), (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), "-", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<"]


@dataclass(frozen=True)
class LineStyle:
    color: str
    marker: str
    dashes: object


KNOWN_METHODS = {
    "scratch": ("Scratch", 0),
    "fm": ("FM", 1),
    "l2t-w": ("L2T-w", 2),
    "l2t-ww": ("L2T-ww", 3),
    "lwf": ("LwF", 4),
    "at": ("AT", 5),
    "lwf+at": ("LwF+AT", 6),
    "fine-tune": ("Fine-tune", 7),
}
"""Name in configs -> name on figures (the paper's), style; a method has the same colour in every report."""

SCHEMES = ("single", "one-to-one", "all-to-all")


def method_label(method: str) -> str:
    """``fm-single`` -> ``FM (single)``; a name that is not known stays as it is."""
    for pairs in SCHEMES:
        name = method.removesuffix(f"-{pairs}")
        if name != method and name in KNOWN_METHODS:
            return f"{KNOWN_METHODS[name][0]} ({pairs})"
    return KNOWN_METHODS[method][0] if method in KNOWN_METHODS else method


def method_styles(methods: list[str]) -> dict[str, LineStyle]:
    """Known methods keep their own style; others take those that are left, in order."""
    used = {KNOWN_METHODS[name][1] for name in methods if name in KNOWN_METHODS}
    free = itertools.cycle([index for index in range(8) if index not in used] or range(8))
    styles = {}
    for name in methods:
        index = KNOWN_METHODS[name][1] if name in KNOWN_METHODS else next(free)
        styles[name] = LineStyle(LIGHT[f"m{index}"], MARKERS[index], DASHES[index % len(DASHES)])
    return styles


def layer_style(index: int) -> LineStyle:
    """Style of the source layer at ``index``, counted from the input."""
    return LineStyle(LIGHT[f"s{index % 6}"], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)])
