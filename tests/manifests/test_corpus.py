"""Valid and invalid records as files, with every problem that each of them has: for whoever else reads or writes our format.

corpus/expected.json names for each file its problems as [path, kind], sorted; a file's name begins with the kind of its record.
What is valid here stays valid: from version 2 on, a later version gets files of its own, and none is written anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import manifests
from tests.manifests.test_schema import PARSE

CORPUS = Path(__file__).parent / "corpus"
EXPECTED: dict[str, list[list[str]]] = json.loads((CORPUS / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_each_record_has_exactly_the_problems_that_it_is_known_for(name: str) -> None:
    path = CORPUS / name
    kind = path.stem.split("_")[0]
    try:
        PARSE[kind](path.read_bytes(), name)
        problems = []
    except manifests.InvalidRecordError as error:
        problems = sorted([problem.path, problem.kind] for problem in error.problems)
    assert problems == EXPECTED[name]
    assert (problems == []) == (path.parent.name == "valid")


def test_every_file_of_the_corpus_is_expected() -> None:
    assert {str(path.relative_to(CORPUS)) for path in CORPUS.glob("*/*")} == set(EXPECTED)


def test_the_corpus_has_every_kind_of_problem_that_a_record_alone_can_have() -> None:
    kinds = {kind for problems in EXPECTED.values() for _, kind in problems}
    documented = (manifests.ValidationProblem.__doc__ or "").partition("for machines:")[2].rstrip(". \n").split(",")
    assert kinds == {kind.strip() for kind in documented} - {"wrong_place", "too_large"}
