"""YAML that was written by somebody else: read without running, or multiplying, what is in it."""

from pathlib import Path
from typing import Any

import yaml

from l2t_fast.errors import L2TFastError

#: Of a configuration file: many times what the longest one has.
LARGEST = 1 << 20


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: tables, lists and plain values, without tags of Python and without nested aliases.

    Raises:
        L2TFastError: the file cannot be read, is no such YAML, has a key twice, or is made to fill the memory.
    """
    return parse_yaml(_text(path), f"{path}")


def parse_yaml(text: str, where: str) -> Any:
    """As `read_yaml`, of text; `where` names it in messages."""
    _check_shape(text, where)
    try:
        repeated = _repeated_key(yaml.compose(text, Loader=yaml.SafeLoader))
        if repeated is not None:
            line = repeated.start_mark.line + 1
            raise L2TFastError(f"{where} has the key {repeated.value} twice, again in line {line}: keep one of them")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or str(error).replace('in "<unicode string>", ', "")
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", in line {mark.line + 1}"
        raise L2TFastError(f"{where} is not YAML of plain values: {reason}{line}") from error


def _repeated_key(node: yaml.Node | None) -> yaml.ScalarNode | None:
    """The first key that stands in its table twice, where it stands again; PyYAML would take the last one's value."""
    below = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    return key
                seen.add((key.tag, key.value))
            below.append(value)
    return next((found for part in below if (found := _repeated_key(part)) is not None), None)


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise L2TFastError(f"{path} is larger than {LARGEST >> 20} MiB, which no configuration is")
        return content.decode("utf-8")
    except OSError as error:
        raise L2TFastError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise L2TFastError(f"{path} is not text in UTF-8") from error


def _check_shape(text: str, where: str) -> None:
    """Refuse what is deeper than any configuration, aliases inside of what has a name, and much by many aliases.

    Nine of them, each a list of nine of the one before, are a gigabyte when they are written out.
    """
    depth, size = 0, 0
    anchored: list[tuple[int, str, int]] = []  # (depth, name, size before it) of what is open and has a name
    sizes: dict[str, int] = {}
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            size += 1
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if event.anchor is not None:
                    anchored.append((depth, event.anchor, size))
            elif isinstance(event, yaml.CollectionEndEvent):
                if anchored and anchored[-1][0] == depth:
                    _, name, before = anchored.pop()
                    sizes[name] = size - before
                depth -= 1
            elif isinstance(event, yaml.ScalarEvent):
                size += len(event.value)
                if event.anchor is not None:
                    sizes[event.anchor] = len(event.value)
            elif isinstance(event, yaml.AliasEvent):
                if anchored:
                    raise L2TFastError(
                        f"{where} has an alias (*{event.anchor}) inside of an anchor, write its value out"
                    )
                size += sizes.get(event.anchor, 0)
            if size > LARGEST:
                raise L2TFastError(f"{where} is larger than {LARGEST >> 20} MiB when its aliases are written out")
            if depth > 50:
                raise L2TFastError(f"{where} is nested deeper than 50 levels, which no configuration is")
    except (yaml.YAMLError, ValueError):
        pass  # whoever reads it says what is wrong
