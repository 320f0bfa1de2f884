"""Training from a labelled run to a checkpoint: it learns, and it refuses what would do harm."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]
from transformers import AutoModelForDepthEstimation, pipeline

from pipeline.train.command import TrainingStoppedError, train
from pipeline.train.config import PRESETS, TrainConfig
from pipeline.train.loop import learning_rate_pace
from pipeline.train.state import LOCK
from stages.distillation.student import load_student
from tests.pipeline.train.trainings import metrics, with_weights
from tests.training_run import CONTEXT_PX, scene_disparity, write_run


def test_training_lowers_the_loss_and_brings_the_student_to_the_scene(small: TrainConfig, tmp_path: Path) -> None:
    seen: list[float] = []
    config = replace(small, output=tmp_path / "out", steps=40, lr_encoder=2e-3, lr_decoder=2e-3)
    train(config, on_step=lambda record: seen.append(record["shared_context"]))
    assert np.mean(seen[-10:]) < 0.8 * np.mean(seen[:5])  # 0.60 to 0.65 for three seeds on two sets of instructions
    assert [record["shared_context"] for record in metrics(tmp_path / "out")] == seen


def test_the_checkpoint_is_loaded_by_the_transformers_pipeline(trained: Path, student: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "training.json", "README.md"),
        *("metrics.jsonl", "tensorboard", LOCK, ".training.lock"),
    }
    levels = (scene_disparity(0, 60, 72) * 255).astype(np.uint8)
    picture = Image.fromarray(np.stack([levels, 255 - levels, levels // 2], 2))
    found = pipeline("depth-estimation", model=str(trained))(picture)
    assert found["predicted_depth"].shape == (60, 72)  # type: ignore[index, call-overload]
    assert (trained / "preprocessor_config.json").read_text() == (student / "preprocessor_config.json").read_text()
    begun = AutoModelForDepthEstimation.from_pretrained(student, dtype=torch.float32).state_dict()
    ended = load_file(trained / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in ended.values())
    for part in ("backbone", "neck", "head"):
        assert any(not torch.equal(ended[name], begun[name]) for name in ended if name.startswith(part))


def test_every_step_leaves_a_line_with_its_loss_terms_and_the_raw_output(trained: Path) -> None:
    lines = metrics(trained)
    assert [line["step"] for line in lines] == list(range(12))
    assert {line["teacher"] for line in lines} == {"primary", "assistant"}
    for line in lines:
        parts = line["shared_context"] + 0.5 * line["local_global"] + line["feature"] + 2 * line["gradient"]
        assert line["total"] == pytest.approx(parts, rel=1e-5)
        assert line["local_global"] > 0
        assert line["output_spread"] > 0
        assert line["output_zero_share"] < 1


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_images(
    small: TrainConfig, student: Path, tmp_path: Path
) -> None:
    broken = with_weights(student, tmp_path / "broken", lambda weights: weights["head.conv3.weight"].fill_(math.nan))
    config = replace(small, student=str(broken), output=tmp_path / "out")
    with pytest.raises(TrainingStoppedError, match=r"step 0, labels of '\w+', images scenes\.0000\d/scene-\d+, .*loss is nan"):
        train(config)
    assert not metrics(tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_dead_head_stops_the_training_with_an_explanation(small: TrainConfig, student: Path, tmp_path: Path) -> None:
    dead = with_weights(student, tmp_path / "dead", lambda weights: weights["head.conv3.bias"].fill_(-1e4))
    with pytest.raises(TrainingStoppedError, match="output is 0 at every pixel"):
        train(replace(small, student=str(dead), output=tmp_path / "out"))


def test_teachers_of_different_depth_spaces_never_reach_the_student(small: TrainConfig, tmp_path: Path) -> None:
    spaces = {"primary": "disparity_affine_invariant", "assistant": "depth_metric"}
    mixed = write_run(tmp_path / "mixed", spaces=spaces)
    with pytest.raises(ValueError, match=r"disparity_affine_invariant.*depth_metric"):
        train(replace(small, run=(mixed,), output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_student_whose_patches_do_not_tile_the_context_is_refused(student: Path) -> None:
    with pytest.raises(ValueError, match=r"patches of 12 px do not tile a context of 50 px.*such as 48"):
        load_student(str(student), 50)


def test_the_student_trains_in_float32_and_keeps_its_head_so_under_bf16(student: Path) -> None:
    loaded = load_student(str(student), CONTEXT_PX)
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}
    images = torch.randint(0, 256, (1, 3, CONTEXT_PX, CONTEXT_PX), dtype=torch.uint8)
    exact, fast = loaded.forward(images).disparity, loaded.forward(images, bf16=True).disparity
    assert fast.dtype == torch.float32
    assert not torch.equal(exact, fast)
    assert not torch.equal(fast, fast.bfloat16().float())  # not rounded to eight bits


def test_a_head_without_shape_stops_the_training_too(small: TrainConfig, student: Path, tmp_path: Path) -> None:
    flat = with_weights(student, tmp_path / "flat", lambda weights: weights["head.conv3.weight"].fill_(0))
    with pytest.raises(TrainingStoppedError, match="at every pixel: a map without a shape"):
        train(replace(small, student=str(flat), output=tmp_path / "out"))


def test_a_step_in_micro_batches_is_that_of_the_batch(small: TrainConfig, tmp_path: Path) -> None:
    """Up to float32, so the first step only: what rounding does to the weights grows with each further one. That gradients
    add up exactly is shown in float64, in tests/stages/distillation/test_step.py."""
    whole, cut = (replace(small, output=tmp_path / str(n), accumulation=n, steps=1) for n in (1, 3))
    train(whole)
    train(cut)
    (one,), (other,) = metrics(whole.output), metrics(cut.output)
    for term in ("total", "shared_context", "local_global", "gradient", "gradient_norm"):
        assert one[term] == pytest.approx(other[term], rel=1e-4), term
        assert one[term] > 0, term


def test_encoder_and_decoder_learn_at_their_own_rates(small: TrainConfig, student: Path, tmp_path: Path) -> None:
    config = replace(small, output=tmp_path / "out", steps=1, warmup_steps=0, lr_encoder=1e-5, lr_decoder=1e-2, weight_decay=0)
    train(config)
    begun, ended = (
        AutoModelForDepthEstimation.from_pretrained(f, dtype=torch.float32).state_dict() for f in (student, config.output)
    )
    moved = {name: (ended[name] - begun[name]).abs().max().item() for name in ended}
    assert max(moved[name] for name in moved if name.startswith("backbone.")) == pytest.approx(1e-5, rel=0.05)
    assert max(moved[name] for name in moved if not name.startswith("backbone.")) == pytest.approx(1e-2, rel=0.05)


def test_a_fresh_head_and_a_start_from_scratch_learn(small: TrainConfig, tmp_path: Path) -> None:
    assert replace(small, from_scratch=True).problems()[0].startswith("from_scratch: the student's own encoder")
    rates = {"lr_encoder": 2e-3, "lr_decoder": 2e-3}
    for start, feature_weight in (("fresh_head", 1.0), ("from_scratch", 0.0)):
        config = replace(small, output=tmp_path / start, steps=25, feature_weight=feature_weight, **rates, **{start: True})
        assert not config.problems()
        train(config)
        seen = [line["shared_context"] for line in metrics(config.output)]
        assert np.mean(seen[-5:]) < 0.9 * np.mean(seen[:5])


def test_a_run_with_other_contexts_than_asked_for_is_refused(small: TrainConfig, tmp_path: Path) -> None:
    run = write_run(tmp_path / "square", images=4, context="square")
    with pytest.raises(ValueError, match=r"contexts are 'square', expected 'whole'.*--plan.context whole"):
        train(replace(small, run=(run,), context="whole", output=tmp_path / "out"))


def test_tensorboard_shows_the_numbers_of_the_jsonl_and_pictures(trained: Path) -> None:
    (events,) = (trained / "tensorboard").iterdir()
    values, pictures = read_events(events)
    first, last = metrics(trained)[0], metrics(trained)[-1]
    assert values["train/total", 0] == pytest.approx(first["total"])
    assert values["train/gradient", 11] == pytest.approx(last["gradient"])
    assert {step for _, step in pictures} == {0, 11}
    picture = Image.open(io.BytesIO(pictures["samples", 11]))
    assert picture.size == (4 * CONTEXT_PX + 3 * 4, 4 * CONTEXT_PX + 3 * 4)  # input, label, student, patches; four samples


def read_events(path: Path) -> tuple[dict[tuple[str, int], float], dict[tuple[str, int], bytes]]:
    """Scalars and encoded pictures of a TensorBoard file, by tag and step."""
    content, place = path.read_bytes(), 0
    values, pictures = {}, {}
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)  # length, checksum, event, checksum
        event = Event.FromString(content[place + 12 : place + 12 + length])
        place += 12 + length + 4
        for value in event.summary.value:
            if value.HasField("image"):
                pictures[value.tag, event.step] = value.image.encoded_image_string
            else:
                values[value.tag, event.step] = value.simple_value
    return values, pictures


@pytest.mark.parametrize(("ratios", "teacher"), [((0.0, 2.0), "assistant"), ((1.0, 0.0), "primary")])
def test_the_share_of_each_teacher_is_the_one_asked_for(
    small: TrainConfig, tmp_path: Path, ratios: tuple[float, ...], teacher: str
) -> None:
    train(replace(small, ratios=ratios, steps=4, output=tmp_path / "out"))
    assert {line["teacher"] for line in metrics(tmp_path / "out")} == {teacher}


def test_one_teacher_alone_can_train_and_the_baseline_reads_no_patches(small: TrainConfig, tmp_path: Path) -> None:
    baseline = replace(small, **PRESETS["baseline"], columns=("assistant",), steps=3, output=tmp_path / "out")
    train(baseline)
    lines = metrics(tmp_path / "out")
    assert {line["teacher"] for line in lines} == {"assistant"}
    assert all(line["local_global"] == 0 for line in lines)


def test_the_learning_rate_warms_up_and_falls_but_never_to_zero() -> None:
    for decay in ("poly", "cosine"):
        pace = [learning_rate_pace(step, 100, 10, decay) for step in range(100)]
        assert pace[:10] == sorted(pace[:10])
        assert pace[10] == max(pace) == pytest.approx(1)
        assert pace[10:] == sorted(pace[10:], reverse=True)
        assert 0 < pace[-1] < 0.05
    assert learning_rate_pace(0, 1, 0, "poly") == 1
