"""`--help` in two lengths: what one needs on the first day, with examples; and every option, with `--help-all`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import tyro

_WIDTH = 80  # of the description; tyro fits its boxes to the terminal
_SHORT, _ALL = frozenset({"-h", "--help"}), "--help-all"


@dataclass(frozen=True, kw_only=True)
class HelpPage:
    """What a command says of itself."""

    description: str
    """What it does, at the top."""
    first: tuple[str, ...] = ()
    """Fields of the configuration that one needs on the first day; the others are left to `--help-all`. None: all are shown."""
    examples: tuple[tuple[str, str], ...] = ()
    """Command lines as the documentation has them, each with what it is for, at the end."""


def program_name(program: str, arguments: Sequence[str]) -> str:
    """What the command calls itself. A shell completes a single word: for its completion, `python -m pipeline.label` is
    `distill-label` (docs/command-line.md)."""
    completing = any(argument.replace("_", "-").startswith("--tyro-") for argument in arguments[:1])
    return program.replace("python -m pipeline.", "distill-") if completing else program


def answer_help(
    config_type: type[Any],
    page: HelpPage,
    arguments: Sequence[str],
    *,
    program: str,
    default_of: Callable[[type[Any]], Any] | None = None,
) -> None:
    """Where `--help` or `--help-all` is asked for, prints it and raises SystemExit.

    default_of: makes an instance of the given class, which has the fields of config_type, from what presets and files
    say; without it the defaults are the class's own.
    """
    if _ALL not in arguments and _SHORT.isdisjoint(arguments):
        return
    short = bool(page.first) and _ALL not in arguments
    shown = _as_shown(config_type, page.first if short else ())
    try:
        described = textwrap.fill(page.description, _WIDTH)
        start = {"default": default_of(shown)} if default_of else {}
        tyro.cli(shown, prog=program, description=described, args=["--help"], **start)
    except SystemExit as ended:
        if ended.code:
            raise
    lines = [line for command, what in page.examples for line in (f"  {what}:", f"    {command}")]
    print(*(["Examples:", *lines] if lines else []), sep="\n", end="\n" * bool(lines))
    if short:
        print(f"\nAll {len(dataclasses.fields(config_type))} options: {_ALL}. The same keys work in a TOML file (--config).")
    raise SystemExit(0)


def _as_shown(config_type: type[Any], first: Sequence[str]) -> type[Any]:
    """The configuration's class with plain defaults, and all fields but `first` hidden; none are where it is empty."""
    hints = typing.get_type_hints(config_type, include_extras=True)
    fields = []
    for item in dataclasses.fields(config_type):
        if first and item.name not in first:
            hint = tyro.conf.Suppress[hints[item.name]]
        else:
            shown = tyro.conf.arg(help=_docstring(config_type, item.name), help_behavior_hint=_plain_default)
            hint = Annotated[hints[item.name], shown]
        fields.append((item.name, hint, item))
    return dataclasses.make_dataclass(config_type.__name__, fields, bases=(config_type,), frozen=True, kw_only=True)


def _plain_default(default: str) -> str:
    """Nothing where there is no default: what happens then stands in the option's own words."""
    words = {"": "", "None": "", "False": "(default: no)", "True": "(default: yes)"}
    return words.get(default, f"(default: {default})")


@cache
def _docstring(config_type: type[Any], field: str) -> str:
    """The text below a field of the class, or of one that it is made of, on one line."""
    for kind in config_type.__mro__:
        if field in vars(kind).get("__annotations__", {}):
            body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
            for statement, below in itertools.pairwise(body):
                match statement, below:
                    case ast.AnnAssign(target=ast.Name(id=id)), ast.Expr(ast.Constant(value=str(text))) if id == field:
                        return " ".join(text.split())
    return ""
