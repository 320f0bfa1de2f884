"""Teachers with known errors as columns of a real run: what is in its place, what is refused, what the gate says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.study.designs import KNOWN_TEACHERS, known_design
from pipeline.study.judge import PremiseGate, premise_gate
from pipeline.study.labels import Workshop
from pipeline.study.scales import FIRST_PREMISE, SCALES
from pipeline.study.teachers import LOADER, KnownScenes, load, write_teacher
from pipeline.study.work import Premise
from stages.label_store import open_run
from stages.models import ModelSpec, load_model
from stages.scenes import scene_depth
from stages.views import ViewPlan

_FAMILY = known_design(context_px=48, photo_px=96, min_square_px=56).family
_TEACHERS = ("exact", "primary", "map-sharp-right", "map-alike-wrong", "map-soft-wrong")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A run of eight photographs, labelled by these teachers through the command's own function."""
    made = Workshop(folder=tmp_path_factory.mktemp("study"), scale=SCALES["tiny"], workers=0)
    made.label_premise(_FAMILY, 2, _TEACHERS)
    return made


def test_the_exact_teachers_labels_are_the_scenes_depth_in_place(workshop: Workshop) -> None:
    column = open_run(workshop.premise_run(_FAMILY, 2))["exact"]
    for number in range(2):
        labels = column[str(FIRST_PREMISE + number)]
        fine = 1 / scene_depth(FIRST_PREMISE + number, height_px=96, width_px=96)
        exact = fine.reshape(48, 2, 48, 2).mean((1, 3))
        spread = exact.max() - exact.min()
        assert np.abs(labels.context.values - exact).max() < 0.01 * spread
        for patch in labels.patches:
            top, left, height, width = patch.box
            place = exact[top : top + height, left : left + width]
            assert np.abs(patch.values - place).mean() < 0.02 * spread  # cut at another size, and averaged onto the grid
            shifted = exact[top : top + height, max(left - 1, 0) : max(left - 1, 0) + width]
            assert left == 0 or np.abs(patch.values - place).mean() < np.abs(patch.values - shifted).mean()


def _gate(workshop: Workshop, teacher: str) -> PremiseGate:
    record = Premise(workshop=workshop, family=_FAMILY, teacher=teacher, patches_per_side=2).measure()
    gate = premise_gate(teacher, 2, record)
    assert gate is not None
    return gate


@pytest.mark.parametrize("teacher", ["primary", "map-sharp-right"])
def test_the_premise_holds_where_close_ups_were_made_better(workshop: Workshop, teacher: str) -> None:
    gate = _gate(workshop, teacher)
    assert gate.holds
    assert gate.abs_rel.mean < 0 < gate.edge_f1.mean


@pytest.mark.parametrize("teacher", ["map-soft-wrong", "map-alike-wrong"])
def test_the_premise_fails_where_close_ups_were_made_worse(workshop: Workshop, teacher: str) -> None:
    gate = _gate(workshop, teacher)
    assert not gate.holds
    assert gate.abs_rel.mean > 0


def test_every_cell_of_the_map_differs_from_the_others_in_its_close_ups_alone() -> None:
    cells = [KNOWN_TEACHERS[name] for name in KNOWN_TEACHERS if name.startswith("map-")]
    assert len({cell.whole for cell in cells}) == 1
    assert len({cell.close_up for cell in cells}) == len(cells) == 9


def test_pictures_of_another_run_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "teacher.json"
    plan = ViewPlan(context="whole", context_px=48, patch_px=48, patches_per_side=2)
    write_teacher(path, KnownScenes(first=5, count=2, photo_px=96, plan=plan), KNOWN_TEACHERS["primary"])
    model = load_model(ModelSpec(loader=LOADER, checkpoint=str(path)))
    with pytest.raises(ValueError, match="expected a view of the scenes 5 to 6"):
        model.predict(np.zeros((1, 48, 48, 3), np.uint8), [12345])


def test_other_errors_are_another_teacher(tmp_path: Path) -> None:
    scenes = KnownScenes(first=0, count=1, photo_px=96, plan=ViewPlan())
    digests = set()
    for name in ("primary", "assistant"):
        write_teacher(tmp_path / name, scenes, KNOWN_TEACHERS[name])
        digests.add(load(str(tmp_path / name), "cpu").weights_sha256)
    assert len(digests) == 2
    (tmp_path / "primary").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="not a file of write_teacher"):
        load(str(tmp_path / "primary"), "cpu")
