"""Colours, markers and names that all figures and the page share.

Figures are drawn with the colours of the light theme. In the page each of them becomes a CSS variable with a second
value for dark mode, so one drawing serves both. Light and dark values keep a contrast of at least 4.5 against their
background, and no two lines of a figure differ by colour alone.
"""

from __future__ import annotations

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

DASHES = [
    (0, (1, 1.2)),
    (0, (5, 1.5)),
    (0, (5, 1.5, 1, 1.5)),
    "-",
    (4, (7, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (2, 1.2)),
    (4, (7, 1.5, 2, 1.5)),
]
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
    "lwf-at": ("LwF+AT", 6),
    "fine-tune": ("Fine-tune", 7),
}
"""Name in configs -> name on figures (the paper's), style; a method has the same colour in every report."""

SCHEMES = {"single": "single", "one-to-one": "1-to-1", "all-to-all": "all pairs"}
"""Matching scheme, as a method's name in a config ends with -> what narrow figures say."""


def split_method(method: str) -> tuple[str, str | None]:
    """``fm-single@beta=2`` -> (``fm``, ``single``); without a known method's scheme, (all before the ``@``, None)."""
    plain = method.partition("@")[0]
    for scheme in SCHEMES:
        name = plain.removesuffix(f"-{scheme}")
        if name != plain and name in KNOWN_METHODS:
            return name, scheme
    return plain, None


def method_label(method: str, *, narrow: bool = False) -> str:
    """``fm-one-to-one@beta=2`` -> ``FM (one-to-one, beta 2)``, ``FM (1-to-1, beta 2)`` if narrow.

    An unknown name stays as it is.
    """
    name, scheme = split_method(method)
    label = KNOWN_METHODS[name][0] if name in KNOWN_METHODS else name
    of_pairs = [] if scheme is None else [SCHEMES[scheme] if narrow else scheme]
    options = [option.replace("=", " ").replace("_", " ") for option in method.split("@")[1:]]
    return f"{label} ({', '.join([*of_pairs, *options])})" if of_pairs or options else label


def method_styles(methods: list[str]) -> dict[str, LineStyle]:
    """A style a method, whatever their order; no two are the same while there are fewer than 64.

    Known methods have their own. A known method with a scheme or options has the method's colour, other dashes and
    another marker if the plain method is shown too. Unknown ones take colours that are left, then colours again with
    other dashes.
    """
    count = len(MARKERS)
    looks: dict[str, tuple[int, int]] = {
        name: (KNOWN_METHODS[name][1],) * 2 for name in methods if name in KNOWN_METHODS
    }
    rest = sorted(set(methods) - looks.keys(), key=lambda name: (split_method(name)[0] not in KNOWN_METHODS, name))
    for name in rest:
        base, _ = split_method(name)
        used = [color for color, _ in looks.values()]
        color = KNOWN_METHODS[base][1] if base in KNOWN_METHODS else min(range(count), key=used.count)
        # Dashes that no other line has; else those that no line of this colour has.
        taken = {look for _, look in looks.values()}, {look for other, look in looks.values() if other == color}
        order = [(color + step) % count for step in range(count)]
        look = next((look for lines in taken for look in order if look not in lines), color)
        looks[name] = (color, look)
    return {
        name: LineStyle(LIGHT[f"m{looks[name][0]}"], MARKERS[looks[name][1]], DASHES[looks[name][1]])
        for name in methods
    }


def layer_style(index: int) -> LineStyle:
    """Style of the source layer at ``index``, counted from the input."""
    return LineStyle(LIGHT[f"s{index % 6}"], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)])
