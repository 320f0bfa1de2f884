"""A training whose output is in a bucket ends with the weights of one in a folder, and goes on anywhere, however it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manifests import RunInUseError
from manifests.bucket_store import get, put
from manifests.location import Url
from manifests.place import place_of
from pipeline.train.command import train
from pipeline.train.config import TrainConfig
from pipeline.train.state import OutputMismatchError
from tests.buckets.proxy import FaultProxy
from tests.pipeline.train.trainings import ROOT, arguments, interrupt_at, small_training
from tests.training_run import write_run, write_student

_KILLED = """
import os, signal, sys
from pipeline.train.bucket_output import BucketOutput
from pipeline.train.command import main

put_curves, times = BucketOutput._put_curves, []

def curves_and_an_end(self):
    put_curves(self)
    times.append(1)
    if len(times) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

BucketOutput._put_curves = curves_and_an_end
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("train")
    run, student = write_run(folder / "run", images=11), write_student(folder / "student")
    return small_training(run, student, folder / "trained", steps=8, checkpoint_every=2)


@pytest.fixture(scope="module")
def trained(config: TrainConfig) -> Path:
    """The output in a folder, never interrupted."""
    train(config)
    return config.output


@pytest.fixture
def there(config: TrainConfig, bucket: Url) -> TrainConfig:
    return replace(config, output=bucket / "students" / "a")  # type: ignore[arg-type]


def _names(folder: str, url: Any) -> list[str]:
    return [entry.name for entry in place_of(url).entries(folder)]


def _without_speed(lines: bytes) -> list[dict[str, Any]]:
    found = map(json.loads, lines.splitlines())
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "data_wait_share")} for line in found]


def _assert_is(url: Any, trained: Path) -> None:
    """The output in the bucket is the one in the folder, but for the speed and its own name."""
    files = sorted(path.name for path in trained.iterdir() if not path.name.startswith("."))
    assert [name for name in _names("", url) if name != ".holders"] == files
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "dataset.lock.json"):
        assert get(url / name)[1] == (trained / name).read_bytes(), name
    assert _without_speed(get(url / "metrics.jsonl")[1]) == _without_speed((trained / "metrics.jsonl").read_bytes())
    record = json.loads(get(url / "training.json")[1])
    assert record["configuration"]["output"] == str(url)
    assert record["settings"] == json.loads((trained / "training.json").read_text())["settings"]


def test_a_training_into_a_bucket_is_the_one_into_a_folder_and_done_once(
    there: TrainConfig, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert train(there).checkpoint == there.output
    _assert_is(there.output, trained)
    result = train(there)
    assert (result.images, result.resumed_from) == (None, 8)
    with pytest.raises(OutputMismatchError, match=rf"^{there.output}: belongs to.*\n.*seed: begun with 0, now 5"):
        train(replace(there, seed=5))
    assert list(tmp_path.iterdir()) == []


def test_a_training_killed_between_two_objects_goes_on_on_another_machine(
    there: TrainConfig, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The curves of six steps are there, and the state before the fifth."""
    killer, lost = tmp_path / "killer.py", tmp_path / "lost"
    killer.write_text(_KILLED)
    lost.mkdir()
    python, _, _, *flags = arguments(there)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(lost), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([python, str(killer), *flags], env=environment, stderr=subprocess.PIPE, text=True, timeout=240)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    url: Any = there.output
    assert _names("states", url) == ["step-000000002.pt", "step-000000004.pt"]
    with pytest.raises(RunInUseError, match=rf"^{url}: in use by another training; .* if it was killed, 300 s after it"):
        train(there)
    place_of(url).remove(".holders")  # as if five minutes had passed
    assert train(there).resumed_from == 4
    _assert_is(url, trained)
    assert f"{url}: fetched what to resume from" in capsys.readouterr().err


def test_a_damaged_state_in_a_bucket_is_passed_over(
    there: TrainConfig, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at(6, there)
    url: Any = there.output
    newest = url / "states" / _names("states", url)[-1]
    put(newest, get(newest)[1][:1000])
    assert train(there).resumed_from == 4
    assert "step-000000006.pt: cannot be read" in capsys.readouterr().err
    _assert_is(url, trained)


def test_two_trainings_never_share_an_output_in_a_bucket(there: TrainConfig, proxy: FaultProxy) -> None:
    def begin_another(line: Any) -> None:
        if line["step"] == 1:
            with pytest.raises(RunInUseError, match="in use by another training"):
                train(there)

    train(replace(there, steps=3), begin_another)
    assert _names(".holders", there.output) == []
