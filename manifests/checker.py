"""Holds decoded JSON against a dataclass's annotations: the value as that dataclass, or everything wrong with it.

Annotations may be str, int, float, bool, None, Any, `Literal`, `tuple[X, ...]`, `Mapping[str, X]`, `X | None`, `Scalar`, other
dataclasses, and `Annotated[X, Rule(...)]`. A dataclass may have a method `inconsistencies()` for what its fields say
together. Numbers are finite; no key is added, and none left out but those of fields with a default: what a field that is
newer than the file is read as. What is said of a value holds no control characters, whatever the value holds.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import types
import typing
import unicodedata
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

Scalar = str | int | float | bool | None
MAX_PROBLEMS = 1000
"""Of one record; with more of them it is something else altogether."""


class TooManyProblemsError(Exception):
    """More than MAX_PROBLEMS; those found so far are in the list."""


class ValidationProblem(NamedTuple):
    """One thing wrong with a record. `path` is where in it (`images[3].status`), `kind` is for machines:
    not_json, too_large, wrong_checksum, wrong_version, missing_key, unknown_key, wrong_type, wrong_value, unsafe_path,
    outside_zarr, not_sorted, wrong_place.
    """

    path: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.path + ': ' if self.path else ''}{self.message} [{self.kind}]"


class Rule(NamedTuple):
    """What a value of the right type must satisfy beyond its type."""

    holds: Callable[[Any], bool]
    expected: str
    kind: str = "wrong_value"


_PLAIN = {str: "a string", int: "an integer", float: "a finite number", bool: "true or false", types.NoneType: "null"}


def read_value(value: Any, hint: Any, problems: list[ValidationProblem]) -> Any:
    """`value`, decoded JSON, as the annotation `hint` has it; appends everything that is wrong with it to `problems`."""
    try:
        return _reader(hint)(value)
    except (_NotValidError, TooManyProblemsError):
        return _read_value(value, hint, "", problems)


class _NotValidError(Exception):
    """Something is wrong with a value; what, and where, is for the slow way to say."""


@functools.cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """Reads a value as `_read_value` does, in a tenth of the time: it has no words for what it refuses by _NotValidError."""
    origin, arguments = _taken_apart(hint)
    if dataclasses.is_dataclass(hint):
        return _object_reader(hint)
    if origin is Annotated:
        read, rule = _reader(arguments[0]), arguments[1]
        return lambda value: _valid(read(value), rule.holds)
    if origin is Literal:
        return lambda value: _valid(value, arguments.__contains__)
    if origin is tuple:
        read_item = _reader(arguments[0])
        return lambda value: tuple(map(read_item, value)) if type(value) is list else _not_valid()
    if origin is Mapping:
        read_item = _reader(arguments[1])
        return lambda value: {k: read_item(v) for k, v in value.items()} if type(value) is dict else _not_valid()
    if hint in (str, int, bool):
        return lambda value: value if type(value) is hint else _not_valid()
    if hint == Scalar:
        return lambda value: value if type(value) in (str, int, bool, types.NoneType) else _read_or_refuse(value, hint)
    if origin in (typing.Union, types.UnionType) and arguments[1:] == (types.NoneType,):
        read_present = _reader(arguments[0])
        return lambda value: None if value is None else read_present(value)
    return functools.partial(_read_or_refuse, hint=hint)


def _object_reader(record_type: Any) -> Callable[[Any], Any]:
    readers = {name: _reader(hint) for name, hint in _field_hints(record_type).items()}
    required = _required_fields(record_type)
    inconsistencies = getattr(record_type, "inconsistencies", lambda _: ())

    def read(value: Any) -> Any:
        if not isinstance(value, dict) or not required <= value.keys() <= readers.keys():
            raise _NotValidError
        record = record_type(**{key: readers[key](item) for key, item in value.items()})
        return record if next(iter(inconsistencies(record)), None) is None else _not_valid()

    return read


def _valid(value: Any, holds: Callable[[Any], bool]) -> Any:
    return value if holds(value) else _not_valid()


def _not_valid() -> Any:
    raise _NotValidError


def _read_or_refuse(value: Any, hint: Any) -> Any:
    problems: list[ValidationProblem] = []
    result = _read_value(value, hint, "", problems)
    return _not_valid() if problems else result


def _read_value(value: Any, hint: Any, path: str, problems: list[ValidationProblem]) -> Any:
    if hint in _PLAIN:
        if not _is_plain(value, hint):
            return _refuse(value, _PLAIN[hint], path, problems)
        return float(value) if hint is float else value
    if dataclasses.is_dataclass(hint):
        return _read_object(value, hint, path, problems)
    if hint is Any:
        hint = Mapping[str, Any] if isinstance(value, dict) else tuple[Any, ...] if isinstance(value, list) else Scalar
    origin, arguments = _taken_apart(hint)
    if origin is Annotated:
        known = len(problems)
        result, rule = _read_value(value, arguments[0], path, problems), arguments[1]
        if len(problems) == known and not rule.holds(result):
            return _refuse(value, rule.expected, path, problems, rule.kind)
        return result
    if origin is Literal:
        return value if value in arguments else _refuse(value, " or ".join(map(repr, arguments)), path, problems, "wrong_value")
    if origin is tuple:
        if not isinstance(value, list):
            return _refuse(value, "a list", path, problems)
        return tuple(_read_value(item, arguments[0], f"{path}[{i}]", problems) for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            return _refuse(value, "an object", path, problems)
        return {key: _read_value(item, arguments[1], f"{path}.{_shown_key(key)}", problems) for key, item in value.items()}
    if hint == Scalar:
        return value if any(_is_plain(value, plain) for plain in _PLAIN) else _refuse(value, "a scalar", path, problems)
    return None if value is None else _read_value(value, arguments[0], path, problems)  # what is left is `X | None`


def _read_object(value: Any, record_type: Any, path: str, problems: list[ValidationProblem]) -> Any:
    if not isinstance(value, dict):
        return _refuse(value, "an object", path, problems)
    known, hints, prefix = len(problems), _field_hints(record_type), f"{path}." if path else ""
    for key in value.keys() - hints.keys():
        expected = f"is unknown, expected {', '.join(hints)}"
        _add(ValidationProblem(f"{prefix}{_shown_key(key)}", "unknown_key", expected), problems)
    for key in _required_fields(record_type) - value.keys():
        _add(ValidationProblem(f"{prefix}{key}", "missing_key", "is missing"), problems)
    fields = {key: _read_value(value[key], hint, prefix + key, problems) for key, hint in hints.items() if key in value}
    if len(problems) > known:
        return None
    record = record_type(**fields)
    if hasattr(record, "inconsistencies"):
        for problem in record.inconsistencies():
            _add(problem._replace(path=prefix + problem.path), problems)
    return record


def _is_plain(value: Any, hint: type) -> bool:
    if hint is float:  # the comparison refuses NaN, infinities, and integers too large for a float
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is hint


def _refuse(value: Any, expected: str, path: str, problems: list[ValidationProblem], kind: str = "wrong_type") -> None:
    _add(ValidationProblem(path, kind, f"found {shown(value)}, expected {expected}"), problems)


def _add(problem: ValidationProblem, problems: list[ValidationProblem]) -> None:
    if len(problems) == MAX_PROBLEMS:
        raise TooManyProblemsError
    problems.append(problem)


def shown(value: Any) -> str:
    """The value as JSON, cut where it is long; ASCII throughout."""
    return _cut(json.dumps(value, default=repr))


def _shown_key(key: str) -> str:
    return printable(_cut(key))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: str) -> str:
    r"""The text with an escape (`\x1b`, `\n`, `\u202e`) for what moves a cursor, turns the order of letters or shows nothing.

    For one line: what comes from a run may hold anything, and must not write lines of its own.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in text)


@functools.cache
def _field_hints(record_type: type) -> dict[str, Any]:
    hints = typing.get_type_hints(record_type, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(record_type)}


@functools.cache
def _required_fields(record_type: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(record_type) if field.default is dataclasses.MISSING)


@functools.cache
def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    origin = typing.get_origin(hint)
    return origin, (hint.__origin__, *hint.__metadata__) if origin is Annotated else typing.get_args(hint)
