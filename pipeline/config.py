"""Command lines: presets, a TOML file and flags become one frozen dataclass, or one list of all problems.

Later wins: the preset named by `--preset`, or else in the file, then the file named by `--config`, then the flags. A
configuration class has the fields `preset` and `config`, defaults for everything a user need not say, and a method `problems()`
that returns every value it cannot accept, in words. A URL is refused wherever a path is expected: as a path, `s3://bucket/x` is
a folder `s3:` below the working directory.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol, TypeVar, cast

import tyro

import manifests
from manifests.bucket_store import package
from manifests.errors import RefusedError
from manifests.location import Location, Url, location_of
from manifests.version import software_version
from pipeline.exits import REFUSED
from pipeline.help import HelpPage, answer_help, program_name

_URL = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: a Path has swallowed the second
_MAY_BE_URLS = ("address", "licence", "sources")


AnyLocation = Annotated[
    Location,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH|URL",
        instance_from_str=lambda texts: location_of(texts[0]),
        is_instance=lambda value: isinstance(value, Path | Url),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""A field that takes a path, or a URL of a bucket."""


class CommandConfig(Protocol):
    """What `parse_command` needs of a configuration class."""

    __dataclass_fields__: typing.ClassVar[dict[str, Any]]

    @property
    def preset(self) -> str: ...

    @property
    def config(self) -> Path | None: ...

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words; empty when all is well."""
        ...


ConfigT = TypeVar("ConfigT", bound=CommandConfig)


def parse_command(
    config_type: type[ConfigT],
    presets: Mapping[str, Mapping[str, Any]],
    *,
    program: str,
    description: str | HelpPage,
    argv: Sequence[str] | None = None,
    complete: Callable[[dict[str, Any], Sequence[str]], None] | None = None,
) -> ConfigT:
    """The resolved configuration of a command line.

    description: what `--help` says: a page with examples, or its first lines alone. presets: for each name, the field
    values that differ from the class's defaults. complete: changes the values of preset and file in place, with the command
    line in view, before they become the defaults of its flags. Prints all problems and exits with status 2 where there are
    any. Misspelt flags are answered by tyro, which suggests the right ones, and `--version`, `--help` and `--help-all`
    here.
    """
    page = HelpPage(description=description) if isinstance(description, str) else description
    arguments = with_new_names(config_type, sys.argv[1:] if argv is None else argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    default_preset = next(f.default for f in dataclasses.fields(config_type) if f.name == "preset")
    early.add_argument("--preset")
    early.add_argument("--config", type=Path)
    answer_version(arguments)
    known, _ = early.parse_known_args(arguments)
    from_file: dict[str, Any] = {}
    if known.config is not None:
        if problem := _url_problem("--config", str(known.config)):
            _refuse(program, [problem])
        from_file, problems = _read_toml(config_type, known.config)
        if problems:
            _refuse(program, problems)
    preset = from_file.pop("preset", default_preset) if known.preset is None else known.preset
    if preset not in presets:
        where = f"{known.config}: preset" if known.preset is None else "--preset"
        _refuse(program, [_unknown(where, preset, list(presets))])
    values = {**presets[preset], "preset": preset}
    values |= {key: values.get(key, {}) | value if isinstance(value, dict) else value for key, value in from_file.items()}
    if complete:
        complete(values, arguments)
    answer_help(config_type, page, arguments, program=program, default_of=lambda kind: _with_missing(kind, values))
    if problems := _choice_problems(config_type, arguments):
        _refuse(program, problems)
    default = _with_missing(config_type, values)
    program = program_name(program, arguments)
    config = tyro.cli(config_type, prog=program, description=page.description, args=arguments, default=default)
    if problems := url_problems(config) or config.problems():
        _refuse(program, problems)
    return config


def with_new_names(config_type: type[Any], arguments: Sequence[str]) -> list[str]:
    """The command line with the names that options have now in place of those in the class's `RENAMED`; says so."""
    renamed = {f"--{old}".replace("_", "-"): f"--{new}".replace("_", "-") for old, new in _renamed(config_type).items()}
    new_arguments = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if new := renamed.get(name.replace("_", "-")):
            print(f"{name} is called {new} now", file=sys.stderr)
        new_arguments.append(f"{new or name}{equals}{value}")
    return new_arguments


def _renamed(config_type: type[Any]) -> Mapping[str, str]:
    return getattr(config_type, "RENAMED", {})


def _choice_problems(config_type: type[Any], arguments: Sequence[str]) -> list[str]:
    """What is none of an option's names, with the one that was probably meant."""
    found = []
    for item, hint in typing.get_type_hints(config_type, include_extras=True).items():
        choices, flag = _names_of(hint), _flag(item, hint, "")
        if choices and flag in arguments:
            given = itertools.takewhile(lambda word: not word.startswith("-"), arguments[arguments.index(flag) + 1 :])
            found += [_unknown(flag, word, choices) for word in given if word not in choices]
    return found


def _names_of(hint: Any) -> list[str]:
    """The names that an option takes, of which it may take several; empty for one that takes anything else."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated or origin is tuple:
        return _names_of(parameters[0])
    return [*parameters] if origin is typing.Literal and all(isinstance(name, str) for name in parameters) else []


def answer_version(arguments: Sequence[str]) -> None:
    """Where `--version` is asked for, prints it and raises SystemExit."""
    if "--version" in arguments:
        print(software_version())
        raise SystemExit(0)


def settings_named(
    config_type: type[Any], presets: Mapping[str, Mapping[str, Any]], flag: str, names: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The values that presets and TOML files give a configuration's fields, later ones before earlier ones; and what is wrong
    with them, in words. names: of presets, or of files that end in .toml."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name in names:
        if not name.endswith(".toml") and name not in presets:
            problems.append(_unknown(flag, name, [*presets, "FILE.toml"]))
            continue
        given, wrong = (dict(presets[name]), []) if name in presets else _read_toml(config_type, Path(name), flag)
        if (preset := given.pop("preset", None)) is not None:
            wrong += [] if preset in presets else [_unknown(f"{name}: preset", preset, list(presets))]
            given = {**presets.get(preset, {}), **given}
        values |= given
        problems += wrong
    return values, problems


def url_problems(config: Any, prefix: str = "") -> list[str]:
    """Every URL in a configuration that stands where a path is expected, in words; also in the configurations within it.

    All texts may be paths (checkpoints, sources) but those named in `_MAY_BE_URLS`.
    """
    found: list[str] = []
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            found += url_problems(value, f"{prefix}{name}.")
        elif isinstance(value, dict):
            found += [problem for key, one in value.items() for problem in url_problems(one, f"{prefix}{key}.")]
        elif name not in _MAY_BE_URLS:
            values = value if isinstance(value, tuple) else (value,)
            flag = _flag(name, hint, prefix)
            found += [problem for one in values if isinstance(one, str | Path) and (problem := _url_problem(flag, str(one)))]
    return found


def _flag(name: str, hint: Any, prefix: str) -> str:
    """What a field is called on the command line."""
    extras = getattr(hint, "__metadata__", ())
    given = [extra for extra in extras if getattr(extra, "name", None) or getattr(extra, "metavar", None)]
    if tyro.conf.Positional in extras:
        return next((extra.metavar for extra in given), name.upper())
    named = next((extra.name for extra in given if getattr(extra, "name", None)), name.replace("_", "-"))
    return f"--{prefix}{named}"


def _url_problem(flag: str, value: str) -> str | None:
    if not _URL.match(value):
        return None
    hint = "copy or mount what is there" + (f"; /{value[5:].lstrip('/')} is a path" if value.startswith("file:") else "")
    return f"{flag} {value}: a URL, expected a path on this machine; {hint}"


def at_least(config: Any, bounds: Mapping[str, float]) -> list[str]:
    """Which of these fields are less than they may be, in words. What is no number (None, or a name) is as it should be."""
    values = {name: getattr(config, name) for name in bounds}
    return [
        f"--{name.replace('_', '-')} is {value}, expected at least {bounds[name]}"
        for name, value in values.items()
        if isinstance(value, int | float) and not value >= bounds[name]
    ]


def cuda_is_here() -> bool:
    """Whether torch sees a CUDA device; imports torch, which takes seconds."""
    import torch

    return torch.cuda.is_available()


def folder_problems(flag: str, folder: Location) -> list[str]:
    """Why a folder to write into cannot be one: a file is in its place, or in that of a folder above it; or why a URL names no
    bucket that can be written to."""
    if isinstance(folder, Url):
        try:
            manifests.place_of(folder)
            package()
        except RefusedError as error:
            return [f"{flag} {error}"]
        return []
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if nearest.is_dir():
        return []
    return [f"{flag} {folder}: {'' if nearest == folder else f'{nearest} is '}a file; expected a folder, or a new name for one"]


def resolved(config: CommandConfig) -> dict[str, Any]:
    """The configuration as plain JSON and TOML values; what `run.json` and checkpoints record."""
    return {key: _plain(value) for key, value in dataclasses.asdict(cast(Any, config)).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path | Url):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _refuse(program: str, problems: list[str]) -> NoReturn:
    lines = "\n".join(f"  - {problem}" for problem in problems)
    print(f"{program}: {len(problems)} problem{'s' * (len(problems) != 1)} in the configuration\n{lines}", file=sys.stderr)
    raise SystemExit(REFUSED)


def _unknown(what: str, found: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(found, choices, 1)
    return f"{what}: unknown {found!r}" + (f", did you mean {near[0]!r}?" if near else "") + f" (known: {', '.join(choices)})"


def _with_missing(config_type: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """An instance from defaults and `values`; what neither gives stays required on the command line."""
    complete = dict(values)
    for item in dataclasses.fields(config_type):
        has_default = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
        if item.name not in complete and not has_default:
            complete[item.name] = tyro.MISSING
    return config_type(**complete)


def _read_toml(config_type: type[Any], path: Path, flag: str = "--config") -> tuple[dict[str, Any], list[str]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return {}, [f"{flag} {path}: cannot be read: {error}"]
    hints = typing.get_type_hints(config_type)
    names = [f.name for f in dataclasses.fields(config_type) if f.name != "config"]
    values, problems = {}, []
    for raw_key, raw in content.items():
        key = raw_key.replace("-", "_")
        key = _renamed(config_type).get(key, key)
        if key not in names:
            problems.append(_unknown(f"{path}: key", raw_key, names))
            continue
        try:
            values[key] = _convert(raw, hints[key])
        except TypeError as error:
            problems.append(f"{path}: {raw_key}: {error}")
    return values, problems


def _convert_table(raw: dict[str, Any], hint: Any) -> Any:
    hints = typing.get_type_hints(hint)
    keys = {key.replace("-", "_"): key for key in raw}
    if unknown := [key for key in keys if key not in hints]:
        raise TypeError("; ".join(_unknown("key", keys[key], list(hints)) for key in unknown))
    try:
        return hint(**{key: _convert(raw[name], hints[key]) for key, name in keys.items()})
    except TypeError as error:
        raise TypeError(f"in this table: {error}") from error


def _convert(raw: Any, hint: Any) -> Any:
    """A TOML value as the field's type; TypeError says what was found and what was expected."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _convert(raw, parameters[0])
    if origin is typing.Literal:
        if raw in parameters:
            return raw
        raise TypeError(f"found {raw!r}, expected one of {', '.join(map(repr, parameters))}")
    if Url in parameters and isinstance(raw, str):
        try:
            return location_of(raw)
        except ValueError as error:
            raise TypeError(str(error)) from error
    if origin in (types.UnionType, typing.Union):
        for option in parameters:
            try:
                return _convert(raw, option)
            except TypeError:
                continue
        raise TypeError(f"found {raw!r}, expected {hint}")
    if origin is tuple and isinstance(raw, list):
        return tuple(_convert(item, parameters[0]) for item in raw)
    if origin is dict and isinstance(raw, dict):
        return {key: _convert(item, parameters[1]) for key, item in raw.items()}
    if dataclasses.is_dataclass(hint) and isinstance(raw, dict):
        return _convert_table(raw, hint)
    if hint is Path and isinstance(raw, str):
        return Path(raw)
    if hint is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    if isinstance(hint, type) and isinstance(raw, hint) and not (hint is int and isinstance(raw, bool)):
        return raw
    raise TypeError(f"found {raw!r}, expected {getattr(hint, '__name__', hint)}")
