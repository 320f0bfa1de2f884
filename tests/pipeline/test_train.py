"""Training from a labelled run to a checkpoint: it learns, it resumes exactly, it refuses what would do harm."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]
from transformers import AutoModelForDepthEstimation, pipeline

import manifests
from pipeline.train import TrainingInterruptedError, TrainingStoppedError, train
from pipeline.train_config import PRESETS, TrainConfig
from pipeline.train_loop import learning_rate_pace
from pipeline.training_state import LOCK, OutputMismatchError
from stages.demo_models import build_depth_anything, save_depth_anything
from stages.distillation.student import load_student
from tests.training_run import CONTEXT_PX, scene_disparity, write_run, write_student

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven contexts, which batches of four do not divide: a training goes on in the midst of an epoch. No photograph and no
    teacher is there."""
    return write_run(tmp_path_factory.mktemp("train") / "run", images=11)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student") / "checkpoint")


@pytest.fixture(scope="module")
def small(run: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Twelve steps; tests give it an output of their own."""
    return TrainConfig(
        run=run,
        output=tmp_path_factory.mktemp("unused"),
        student=str(student),
        steps=12,
        batch_size=4,
        lr_encoder=1e-3,
        lr_decoder=1e-3,
        warmup_steps=2,
        loader_workers=0,
        device="cpu",
        checkpoint_every=3,
    )


@pytest.fixture(scope="module")
def trained(small: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `small`, never interrupted."""
    output = tmp_path_factory.mktemp("trained") / "student"
    result = train(replace(small, output=output))
    assert (result.resumed_from, result.images) == (0, 11)
    return output


def metrics(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the machine's mood."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("images_per_s", "data_wait_share")} for line in lines]


def arguments(config: TrainConfig) -> list[str]:
    named = ("run", "output", "student", "steps", "batch_size", "lr_encoder", "lr_decoder", "warmup_steps", "loader_workers")
    flags = [
        word for name in (*named, "checkpoint_every") for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))
    ]
    return [sys.executable, "-m", "pipeline.train", "--device", "cpu", *flags]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_training_lowers_the_loss_and_brings_the_student_to_the_scene(small: TrainConfig, tmp_path: Path) -> None:
    seen: list[float] = []
    config = replace(small, output=tmp_path / "out", steps=60, lr_encoder=2e-3, lr_decoder=2e-3)
    train(config, on_step=lambda record: seen.append(record["shared_context"]))
    assert np.mean(seen[-10:]) < 0.75 * np.mean(seen[:5])
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


def test_a_training_killed_at_a_step_and_run_again_ends_with_the_same_weights(
    small: TrainConfig, trained: Path, tmp_path: Path
) -> None:
    config = replace(small, output=tmp_path / "out")
    killer = """
import os, signal, pipeline.train as command
train = command.train
command.train = lambda config: train(config, lambda r: r["step"] == 7 and os.kill(os.getpid(), signal.SIGKILL))
if __name__ == "__main__":
    raise SystemExit(command.main())
"""
    command = arguments(replace(config, loader_workers=1))
    (tmp_path / "killed.py").write_text(killer)  # worker processes import the main module again, which must be a file
    command[1:3] = [str(tmp_path / "killed.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # the pipe of stderr closes when the last process has ended: no worker outlives the training
    killed = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (config.output / "model.safetensors").exists()
    assert len(metrics(config.output)) == 8
    result = train(config)
    assert result.resumed_from == 6
    assert (config.output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert metrics(config.output) == metrics(trained)


def test_a_finished_training_is_left_untouched(small: TrainConfig, trained: Path) -> None:
    before = snapshot(trained)
    result = train(replace(small, output=trained, loader_workers=1))
    assert (result.images, result.resumed_from) == (None, 12)
    assert snapshot(trained) == before


def test_the_command_says_that_it_is_done(small: TrainConfig, trained: Path) -> None:
    again = subprocess.run(arguments(replace(small, output=trained)), cwd=ROOT, capture_output=True, text=True)
    assert (again.returncode, "already trained" in again.stdout) == (0, True), again.stderr


def test_an_output_begun_with_other_settings_is_refused_naming_each_field(
    small: TrainConfig, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputMismatchError, match=r"(?s)seed: begun with 0, now 5.*steps: begun with 12, now 20"):
        train(replace(small, output=trained, seed=5, steps=20))
    config = replace(small, output=tmp_path / "out")

    def stop_at_four(record: Any) -> None:
        if record["step"] == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, stop_at_four)
    with pytest.raises(OutputMismatchError, match="batch_size: begun with 4, now 2"):
        train(replace(config, batch_size=2))
    other = write_run(tmp_path / "other", images=9)
    with pytest.raises(OutputMismatchError, match=r"(?s)labels are not those.*scenes\.00001"):
        train(replace(config, run=other))
    assert train(config).resumed_from == 3


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


def with_weights(student: Path, folder: Path, change: Any) -> Path:
    """A copy of the student's checkpoint with changed weights."""
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text((student / name).read_text())
    weights = load_file(student / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_teachers_of_different_depth_spaces_never_reach_the_student(small: TrainConfig, tmp_path: Path) -> None:
    spaces = {"primary": "disparity_affine_invariant", "assistant": "depth_metric"}
    mixed = write_run(tmp_path / "mixed", spaces=spaces)
    with pytest.raises(ValueError, match=r"disparity_affine_invariant.*depth_metric"):
        train(replace(small, run=mixed, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_student_whose_patches_do_not_tile_the_context_is_refused(student: Path) -> None:
    with pytest.raises(ValueError, match=r"patches of 12 px do not tile a context of 50 px.*such as 48"):
        load_student(str(student), 50)


def test_the_student_trains_in_float32_and_keeps_its_head_so_under_bf16(student: Path) -> None:
    loaded = load_student(str(student), CONTEXT_PX)
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}
    images = torch.randint(0, 256, (1, 3, CONTEXT_PX, CONTEXT_PX), dtype=torch.uint8)
    exact, fast = loaded.disparity(images), loaded.disparity(images, bf16=True)
    assert fast.dtype == torch.float32
    assert not torch.equal(exact, fast)
    assert not torch.equal(fast, fast.bfloat16().float())  # not rounded to eight bits


def test_a_head_without_shape_stops_the_training_too(small: TrainConfig, student: Path, tmp_path: Path) -> None:
    flat = with_weights(student, tmp_path / "flat", lambda weights: weights["head.conv3.weight"].fill_(0))
    with pytest.raises(TrainingStoppedError, match="at every pixel: a map without a shape"):
        train(replace(small, student=str(flat), output=tmp_path / "out"))


def test_sigterm_saves_the_step_and_the_same_command_goes_on(small: TrainConfig, trained: Path, tmp_path: Path) -> None:
    config = replace(small, output=tmp_path / "out", checkpoint_every=100)

    def terminate(line: Any) -> None:
        if line["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterruptedError, match="after 6 steps"):  # the signal came after step 4 had been decided on
        train(config, terminate)
    assert [path.name for path in (config.output / "states").iterdir()] == ["step-000000006.pt"]
    assert train(config).resumed_from == 6
    assert (config.output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def cut_short(content: bytes) -> bytes:
    return content[:1000]


def one_bit_flipped(content: bytes) -> bytes:
    """In the midst of the file, which is the midst of a tensor."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [cut_short, one_bit_flipped])
def test_the_latest_states_are_kept_and_a_damaged_one_is_passed_over(
    small: TrainConfig, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    config = replace(small, output=tmp_path / "out", checkpoint_every=2, keep_checkpoints=3)

    def stop_at_nine(line: Any) -> None:
        if line["step"] == 9:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, stop_at_nine)

    def stop_at_seven(line: Any) -> None:
        if line["step"] == 7:
            raise InterruptedError

    states = sorted(path.name for path in (config.output / "states").iterdir())
    assert states == ["step-000000004.pt", "step-000000006.pt", "step-000000008.pt"]
    newest = config.output / "states" / states[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(InterruptedError):
        train(replace(config, keep_checkpoints=1, checkpoint_every=1), stop_at_seven)
    assert not newest.exists()  # it would be taken for the latest
    assert train(config).resumed_from == 7
    assert "step-000000008.pt: cannot be read" in capsys.readouterr().err
    assert (config.output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_an_unfinished_output_is_refused_where_resuming_is_forbidden(small: TrainConfig, tmp_path: Path) -> None:
    config = replace(small, output=tmp_path / "out", resume=False)

    def stop_at_four(line: Any) -> None:
        if line["step"] == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, stop_at_four)
    with pytest.raises(ValueError, match="holds a training of 3 steps"):
        train(config)


def test_micro_batches_add_up_to_the_batch(small: TrainConfig, tmp_path: Path) -> None:
    whole, cut = (replace(small, output=tmp_path / str(n), accumulation=n, steps=5) for n in (1, 3))
    train(whole)
    train(cut)
    for one, other in zip(metrics(whole.output), metrics(cut.output), strict=True):
        for term in ("total", "shared_context", "local_global", "feature", "gradient", "gradient_norm"):
            assert other[term] == pytest.approx(one[term], rel=5e-2 if one["step"] else 1e-4, abs=1e-5)


def test_every_option_of_the_training_resumes_to_the_bit(small: TrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    wider = build_depth_anything(hidden=48, layers=4, heads=2, patch_px=12, fusion=16, image_px=CONTEXT_PX)
    save_depth_anything(wider, tmp_path / "wider", torch.float32, CONTEXT_PX)
    options = {
        "anchor_weight": 0.1,
        "ema_decay": 0.9,
        "color_jitter": 0.4,
        "trim_fraction": 0.1,
        "strategy": "average",
        "feature_encoder": str(tmp_path / "wider"),
        "feature_margin": 1.0,
        "bf16": True,
        "accumulation": 2,
        "activation_checkpointing": True,
        "fresh_head": True,
        "steps": 8,
    }
    config = replace(small, **options)
    train(replace(config, output=tmp_path / "whole"))

    def stop_at_five(line: Any) -> None:
        if line["step"] == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(replace(config, output=tmp_path / "torn"), stop_at_five)
    assert train(replace(config, output=tmp_path / "torn")).resumed_from == 3
    whole, torn = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "torn"))
    assert all(torch.equal(whole[name], torn[name]) for name in whole)
    assert {line["teacher"] for line in metrics(tmp_path / "whole")} == {"average"}
    assert all(line["anchor"] >= 0 < line["feature"] for line in metrics(tmp_path / "whole"))
    train(replace(config, ema_decay=0.0, output=tmp_path / "last"))
    last = load_file(tmp_path / "last" / "model.safetensors")
    assert any(not torch.equal(whole[name], last[name]) for name in whole)  # what is exported is the average


def test_a_finished_output_is_not_taken_for_that_of_other_labels_or_weights(
    small: TrainConfig, trained: Path, student: Path, tmp_path: Path
) -> None:
    finished = replace(small, output=trained)
    other = write_run(tmp_path / "other", images=12)
    with pytest.raises(OutputMismatchError, match="dataset_sha256"):
        train(replace(finished, run=other))
    assert train(replace(finished, run=tmp_path / "gone")).images is None
    before = (student / "model.safetensors").read_bytes()
    (student / "model.safetensors").write_bytes(one_bit_flipped(before))
    with pytest.raises(OutputMismatchError, match="student_sha256"):
        train(finished)
    (student / "model.safetensors").write_bytes(before)


def test_a_training_goes_on_with_the_labels_it_began_with_though_there_are_more(small: TrainConfig, tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", images=11)
    partial = write_run(tmp_path / "partial", images=11, without=[("assistant", 1)])
    config = replace(small, run=partial, output=tmp_path / "out")

    def stop_at_four(line: Any) -> None:
        if line["step"] == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, stop_at_four)
    result = train(replace(config, run=whole))
    assert (result.resumed_from, result.images) == (3, 6)


def test_another_major_version_of_a_library_does_not_go_on(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small, output=tmp_path / "out")

    def stop_at_four(line: Any) -> None:
        if line["step"] == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, stop_at_four)
    monkeypatch.setattr("pipeline.training_state.version", lambda name: "99.1")
    with pytest.raises(OutputMismatchError, match=r"torch_major: begun with '2', now '99'"):
        train(config)


def test_two_trainings_never_share_an_output(small: TrainConfig, tmp_path: Path) -> None:
    config = replace(small, output=tmp_path / "out")

    def begin_another(line: Any) -> None:
        if line["step"] == 1:
            with pytest.raises(manifests.RunInUseError, match="in use by another training"):
                train(config)

    train(config, begin_another)
    assert len(metrics(config.output)) == 12


def test_a_signal_to_the_whole_group_saves_the_step_too(small: TrainConfig, tmp_path: Path) -> None:
    config = replace(small, output=tmp_path / "out", loader_workers=1, steps=4000, checkpoint_every=5000)
    process = subprocess.Popen(arguments(config), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (config.output / "metrics.jsonl").exists() or len(metrics(config.output)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    (state,) = (config.output / "states").iterdir()
    assert state.name == f"step-{len(metrics(config.output)):09d}.pt"


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
        train(replace(small, run=run, context="whole", output=tmp_path / "out"))


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


def test_one_teacher_alone_can_train_and_the_baseline_reads_no_patches(small: TrainConfig, tmp_path: Path) -> None:
    baseline = replace(small, **PRESETS["baseline"], teachers=("assistant",), steps=3, output=tmp_path / "out")
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
