"""From command-line flags and YAML files to configuration objects, with mistakes told in one sentence."""

import dataclasses
import difflib
import json
import re
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

from jsonargparse import SUPPRESS, ArgumentError, ArgumentParser, Namespace

from l2t_fast.config import TransferOptions
from l2t_fast.config_types import SCALARS
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable
from l2t_fast.yaml_files import parse_yaml, read_yaml

#: What the types of plain values are called in messages.
_KINDS = {kind.__name__: words for kind, words in SCALARS.items()} | {"bool": "true or false"}  # as YAML has them
#: What those that may be left out are called.
_OPTIONAL = _KINDS | {"list[int]": "a list of whole numbers", "list[str]": "a list of names"}

Config = TypeVar("Config", bound=TransferOptions)


def new_parser(**arguments: object) -> ArgumentParser:
    """A parser that raises instead of ending the program, and takes no abbreviated flags."""
    return ArgumentParser(exit_on_error=False, allow_abbrev=False, **arguments)


def add_config_options(parser: ArgumentParser, kind: type[TransferOptions]) -> None:
    """Add ``--config FILE`` and one flag for every field of `kind`, nested ones with dots."""
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with any of the options below; without one, the embedded digits with settings of their own, or "
        "the defaults below if --data.dataset names other images; of files and options, what stands further right on "
        "the command line counts",
    )
    parser.add_class_arguments(kind)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    for action in parser._actions:
        if any(flag.startswith(f"{own}.") for own in action.option_strings for flag in flags):
            action.help = SUPPRESS  # --source FILE, which `parse` refuses


def to_config(options: Namespace, kind: type[Config]) -> Config:
    """The configuration object from what `parse` returned."""
    names = kind.__dataclass_fields__
    config = kind(**{name: value for name, value in vars(options).items() if name in names})
    _refuse_null(config)
    return config


def _refuse_null(config: object, prefix: str = "") -> None:
    """jsonargparse takes ``key: null`` for every key; say which ones cannot be."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            _refuse_null(value, f"{prefix}{name}.")
        elif isinstance(value, dict):
            for key, item in value.items():
                _refuse_null(item, f"{prefix}{name}.{key}.")
        elif value is None and type(None) not in get_args(kind):
            raise L2TFastError(f"{prefix}{name} is null, it needs a value; leave the key out for its default")


def parse(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    """Parse, and make the nested configuration objects.

    Raises:
        L2TFastError: an unknown option or key, with the closest one; a value of the wrong type; a file that is not
            YAML.
    """
    if any(pair == ("--config", "") for pair in pairwise([*arguments, ""])) or "--config=" in arguments:
        raise L2TFastError("--config is empty, it must name a YAML file; leave it out for the defaults")
    known = _option_names(parser, arguments)
    groups = {name.rpartition(".")[0] for name in known if "." in name}
    trees = []
    for path in _config_files(arguments):
        trees.append(read_yaml(path))
        if not isinstance(trees[-1], dict):
            found = {type(None): "is empty", list: "holds a list"}.get(type(trees[-1]), "holds a single value")
            raise L2TFastError(f"{path} {found}, it must hold keys and their values, such as epochs: 3")
        if "config" in trees[-1]:  # jsonargparse would read that file, without these checks
            raise L2TFastError(f"{path}: unknown key config, name several files by one --config each")
        _refuse_plain_groups(trees[-1], groups, f"{path}: ")
    for argument in arguments:
        if (name := argument.partition("=")[0].removeprefix("--")) in groups and argument.startswith("--"):
            below = "NAME.KEY" if name == "sources" else "KEY"
            raise L2TFastError(f"--{name} takes no value, its keys do: --{name}.{below}")
    if not any(isinstance(tree, dict) and tree.get("sources") for tree in trees):
        arguments = _with_sources_in_one(arguments)
    try:
        return parser.instantiate(parser.parse_args(arguments))
    except ArgumentError as error:
        raise L2TFastError(_sentence(str(error), known)) from error


def _refuse_plain_groups(tree: object, groups: Collection[str], where: str, prefix: str = "") -> None:
    """Refuse what is no table where the keys of a group must stand, such as nothing, all of them being comments.

    jsonargparse would say so of none by its name, and open a file that stands there, whatever it is and holds.
    """
    if not isinstance(tree, dict):
        return
    for name, value in tree.items():
        key = f"{prefix}{name}"
        # Nothing is what sources are by default, and of a list `_about_sources` says what they are.
        plain = not isinstance(value, dict | None | list) if key == "sources" else not isinstance(value, dict)
        if plain and (key in groups or prefix == "sources."):
            shown = "null" if value is None else f"{printable(str(value))!r:.100}"
            hint = ", or be left out" if value is None else ""
            raise L2TFastError(f"{where}{key} is {shown}, it must have keys below it{hint}")
        _refuse_plain_groups(value, groups, where, f"{key}.")


def _with_sources_in_one(arguments: list[str]) -> list[str]:
    """`--sources.NAME.KEY VALUE` flags as one `--sources {NAME: {KEY: VALUE}}`: keys cannot go below null."""
    kept: list[str] = []
    sources: dict[str, dict[str, object]] = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        name, _, key = flag.removeprefix("--sources.").rpartition(".")
        if not flag.startswith("--sources.") or not name:
            kept.append(argument)
            continue
        value = value if equals else next(rest, "")
        sources.setdefault(name, {})[key] = parse_yaml(value, flag)
    return [*kept, "--sources", json.dumps(sources)] if sources else kept


def _config_files(arguments: list[str]) -> Iterator[Path]:
    """The files that ``--config`` names and that are there."""
    for flag, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = flag.partition("=")
        path = Path(value if equals else following)
        if name == "--config" and path.is_file():
            yield path


def read_config(path: Path, kind: type[Config]) -> Config:
    """Read a YAML file; keys it leaves out take their defaults.

    Raises:
        L2TFastError: as `parse`.
    """
    parser = new_parser()
    add_config_options(parser, kind)
    return to_config(parse(parser, ["--config", str(path)]), kind)


def _option_names(parser: ArgumentParser, arguments: list[str]) -> list[str]:
    """All options, without dashes, of the parser or of the command (and its command) that `arguments` begins with."""
    arguments = list(arguments)
    while (commands := getattr(parser, "_subcommands_action", None)) is not None:
        if not arguments or arguments[0] not in commands.choices:
            return []
        parser = commands.choices[arguments.pop(0)]
    flags = [flag for action in parser._actions for flag in action.option_strings]
    return [flag.removeprefix("--") for flag in flags if flag.startswith("--") and not flag.endswith("+")]


def _sentence(message: str, known: list[str]) -> str:
    """What jsonargparse says in several lines, in one."""
    if message.startswith('Parser key "sources"'):
        return _about_sources(message, [name.removeprefix("source.") for name in known if name.startswith("source.")])
    unknown_key = re.search(r"(?:does not accept option|Option) '([^']+)'", message)
    unknown_flag = re.search(r"unrecognized arguments: ([^\s=]+)", message)
    if unknown := unknown_key or unknown_flag:
        name = unknown[1].removeprefix("--")
        dashes = "" if unknown_key else "--"
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {dashes}{near[0]}?" if near else "--help lists all"
        return f"unknown {'key' if unknown_key else 'option'} {unknown[1]}, {hint}"
    if wrong_value := re.search(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL):
        key, reason = wrong_value.groups()
        if value := re.search(r"Given value: (.*)", reason):
            optional = re.search(r"Subtypes: \[(?:<class ')?([\w\[\]]+)(?:'>)?, <class 'NoneType'>\]", reason)
            if optional and optional[1].startswith("list[") and "Given value type: <class 'list'>" not in reason:
                return _takes_a_list(key, value[1])
            if optional and optional[1] in _OPTIONAL:
                return f"{key} is {value[1]}, it must be {_OPTIONAL[optional[1]]}, or null"
            hint = " (in YAML a pair needs quotes: '1:2')" if key == "pairs" else ""
            return f"{key}: {value[1]} is not what it takes, see --help{hint}"
        if alone := re.search(r"Expected a <class 'list'>. Got value: (.*)", reason):
            return _takes_a_list(key, alone[1])
        if (plain := re.search(r"Expected a <class '(\w+)'>. Got value: (.*)", reason)) and plain[1] in _KINDS:
            return f"{key} is {'null' if plain[2] == 'None' else plain[2]}, it must be {_KINDS[plain[1]]}"
        return f"{key}: {' '.join(reason.split())}"
    if missing := re.search(r"arguments are required: (.*)|expected \"([\w.]+)\" to be one of {(.*)}", message):
        names, action, known = missing.groups()
        if action:
            return f"{action.rpartition('.')[0] or 'l2t-fast'} needs one of {', '.join(known.split(','))} behind it"
        return (
            f"what is missing: {', '.join(name.rpartition('.')[2].upper() for name in names.split(', '))}, see --help"
        )
    return " ".join(message.split())


def _takes_a_list(key: str, value: str) -> str:
    """What to type where one value stands, or the first of a list that the shell has cut at its spaces."""
    return f"{key} takes a list, --{key} '[{value.strip('[], ')}]'"


def _about_sources(message: str, keys: list[str]) -> str:
    """What is wrong below `sources`, whose entries have the keys of `source`."""
    if unknown := re.search(r"Option '([^']+)' is not accepted", message):
        near = difflib.get_close_matches(unknown[1], keys, n=1)
        hint = f"did you mean {near[0]}?" if near else f"a source has {', '.join(keys)}"
        return f"unknown key {unknown[1]} below sources, {hint}"
    if wrong_value := re.search(r'\n +Parser key "([^"]+)":.*?(?:Given|Got) value: ([^\n]*)', message, re.DOTALL):
        key, value = wrong_value.groups()
        return f"sources: {key} cannot be {value}, see --source.{key} in --help"
    return f"sources must be names, each with keys of a source below it: {', '.join(keys)}"
