"""The rules of the protocols: the published figures, one by one."""

from __future__ import annotations

import dataclasses
import json

import pytest

from stages.depth_space import DEPTH_SPACES
from stages.evaluation.protocols import BENCHMARKS, PROTOCOLS, REGIONS, refuse_space, rules


@pytest.mark.parametrize(
    ("benchmark", "images", "valid", "clip", "region", "crop", "input_px", "fit_px"),
    [
        ("nyuv2", 654, (1e-3, 10), (1e-3, 10), "eigen", None, None, None),
        ("kitti", 652, (1e-5, 80), (1e-5, 80), "kitti-eigen", (352, 1216), None, None),
        ("scannet", 800, (1e-3, 10), (1e-3, 10), "all", None, None, None),
        ("eth3d", 454, (1e-5, None), (1e-5, None), "all", None, 756, 1024),
        ("diode", 771, (None, None), (0.6, 350), "all", None, 640, None),
    ],
)
def test_the_rules_are_the_published_figures(benchmark, images, valid, clip, region, crop, input_px, fit_px):
    own = rules(benchmark, "marigold-disparity")
    assert (own.benchmark, own.expected_images, own.region, own.benchmark_crop) == (benchmark, images, region, crop)
    assert ((own.valid_min_m, own.valid_max_m), (own.clip_min_m, own.clip_max_m)) == (valid, clip)
    assert (own.input_long_side_px, own.fit_long_side_px, own.disparity_floor) == (input_px, fit_px, 1e-3)


def test_the_regions_are_those_of_the_reference_formulas():
    """Eigen's and Garg's crops are shares of the height and width; on 352 x 1216 they come to these pixels."""
    eigen, garg = REGIONS["kitti-eigen"], REGIONS["garg"]
    assert eigen is not None
    assert garg is not None
    assert eigen.rows == (int(0.3324324 * 352), int(0.91351351 * 352)) == (117, 321)
    assert garg.rows == (int(0.40810811 * 352), int(0.99189189 * 352)) == (143, 349)
    assert eigen.columns == garg.columns == (int(0.0359477 * 1216), int(0.96405229 * 1216)) == (43, 1172)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_other_protocols_change_only_what_they_say(benchmark):
    base = rules(benchmark, "marigold-disparity")
    depth = dataclasses.replace(base, protocol="marigold-depth", align_in="depth", disparity_floor=None)
    assert rules(benchmark, "marigold-depth") == depth
    garg = dataclasses.replace(base, protocol="dav2", region="garg" if benchmark == "kitti" else base.region)
    assert rules(benchmark, "dav2") == garg


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_predictor_is_scored_only_in_its_own_kind_of_space(protocol):
    own = rules("nyuv2", protocol)
    for space in DEPTH_SPACES:
        if space.startswith(own.align_in):
            refuse_space(own, space)
        else:
            with pytest.raises(
                ValueError, match=f"{protocol} fits .* in {own.align_in}, but the predictor's numbers are {space}"
            ):
                refuse_space(own, space)


def test_the_description_is_one_line_that_changes_with_every_option():
    own = rules("kitti", "marigold-disparity")
    changes = {
        "benchmark": "nyuv2",
        "protocol": "dav2",
        "align_in": "depth",
        "valid_min_m": 1.0,
        "valid_max_m": 70.0,
        "clip_min_m": 1.0,
        "clip_max_m": None,
        "region": "garg",
        "benchmark_crop": None,
        "input_long_side_px": 500,
        "fit_long_side_px": 500,
        "disparity_floor": 0.1,
    }
    assert set(changes) == {field.name for field in dataclasses.fields(own)} - {"expected_images"}  # which moves no number
    described = {own.describe(), *(dataclasses.replace(own, **{key: value}).describe() for key, value in changes.items())}
    assert len(described) == len(changes) + 1
    assert not any("\n" in line for line in described)
    assert json.loads(json.dumps(dataclasses.asdict(own)))["benchmark_crop"] == [352, 1216]
