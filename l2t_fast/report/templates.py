"""How the pages' templates are read: all text is escaped, and what they are not given is an error.

Only the figures' SVG is marked as safe, whose text matplotlib has escaped.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def templates(*folders: Path) -> Environment:
    """The templates of some folders, and this one's."""
    return Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
