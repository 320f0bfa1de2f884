"""Of several licences the one that binds most is found, and what is not known is never taken lightly."""

from __future__ import annotations

import pytest

from manifests.licences import licence_class, most_restrictive

EXAMPLES = {
    "unknown": ["unknown", "unresolved; research only", "other", "", "my own licence", "not mit", "CC-BY-ND-4.0"],
    "non-commercial": ["CC-BY-NC-4.0", "cc-by-nc-sa-4.0", "research only", "non-commercial", "Research use only", "apple-amlr"],
    "restricted in use or copyleft": [
        "OpenRAIL++",
        "openrail++",
        "creativeml-openrail-m",
        "AGPL-3.0",
        "GPL-3.0-only",
        "cc-by-sa-4.0",
    ],
    "permissive": ["Apache-2.0", "apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-4.0", "cc0-1.0"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in EXAMPLES.items() for name in names])
def test_each_name_is_in_its_class(kind: str, name: str) -> None:
    assert licence_class(name) == kind


def test_each_class_gives_way_to_the_one_before_it() -> None:
    firsts = [names[0] for names in EXAMPLES.values()]
    for i, name in enumerate(firsts):
        assert most_restrictive(set(firsts[i:])) == (name,)


def test_licences_of_one_class_are_all_named_and_of_none_nothing_is() -> None:
    assert most_restrictive(["MIT", "research only", "CC-BY-NC-4.0", "CC-BY-NC-4.0"]) == ("CC-BY-NC-4.0", "research only")
    assert most_restrictive([]) == ()
