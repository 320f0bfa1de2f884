"""What an installed copy needs is declared: the packages it imports, its own packages, and the files that are no modules."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED, WORKSHOP = ("pipeline", "stages", "manifests"), ("tests", "benchmarks")
EXTRAS = ["bucket", "export", "onnx"]
"""Whose packages are imported where they are used, and nowhere else."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _imported(folders: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Top-level names of other people's packages, with the file that imports them."""
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in (name.split(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name not in (*SHIPPED, *WORKSHOP):
                    yield name, path.relative_to(ROOT)


def _distribution(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


@pytest.mark.parametrize(("folders", "extras"), [(SHIPPED, EXTRAS), (WORKSHOP, ["dev"])])
def test_every_package_that_is_imported_is_declared(
    project: dict[str, Any], folders: tuple[str, ...], extras: list[str]
) -> None:
    requirements = list(project["project"]["dependencies"])
    for extra in extras:
        requirements += project["project"]["optional-dependencies"][extra]
    declared = {_distribution(requirement) for requirement in requirements}
    providers = packages_distributions()
    undeclared = {
        f"{name} in {path}"
        for name, path in _imported(folders)
        if declared.isdisjoint(_distribution(provider) for provider in providers.get(name, [name]))
    }
    assert undeclared == set()


def test_packages_of_extras_are_imported_in_functions_alone(project: dict[str, Any]) -> None:
    extras = {_distribution(name) for extra in EXTRAS for name in project["project"]["optional-dependencies"][extra]}
    for path in (path for folder in SHIPPED for path in (ROOT / folder).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert extras.isdisjoint(_distribution(name) for name in names), path


def test_every_package_of_ours_and_every_file_in_one_that_is_no_module_is_installed(project: dict[str, Any]) -> None:
    folders = {path.parent.relative_to(ROOT) for top in SHIPPED for path in (ROOT / top).rglob("*.py")}
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert [folder for folder in folders if not any(fnmatch(".".join(folder.parts), pattern) for pattern in include)] == []
    files = {path for top in SHIPPED for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    for package, globs in project["tool"]["setuptools"]["package-data"].items():
        files -= {path for glob in globs for path in ROOT.joinpath(*package.split(".")).glob(glob)}
    assert {path for path in files if path.suffix != ".py"} == set()
