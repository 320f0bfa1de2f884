"""A run in a bucket: labelled, inspected, repaired and trained on with the commands for a run on a disk, and equal to it."""

from __future__ import annotations

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import load_file

import manifests
from manifests.__main__ import main as inspect
from manifests.bucket_store import TIMEOUT_VARIABLE, get, put
from manifests.facts import part_digest
from manifests.location import Url
from manifests.part_cache import FetchedDamagedError, PartCache, SmallFiles
from manifests.place import place_of
from pipeline.label.command import label
from pipeline.label.command import main as label_main
from pipeline.label.queue import RunNotSharedError
from pipeline.label.run import describe_run, enter_run, units_left
from pipeline.label.sources import read_sources
from pipeline.label.worker import require_run
from pipeline.train.command import train
from pipeline.train.config import TrainConfig
from stages.label_store import open_run
from tests.buckets.conftest import upload
from tests.buckets.proxy import FaultProxy, Request, Trouble
from tests.conftest import label_config
from tests.training_run import write_run, write_student


@pytest.fixture
def labelled(bucket: Url, proxy: FaultProxy, labelled_run: Path, scenes_tar: Path, checkpoints: Path) -> Url:
    """The same run as `labelled_run`, from a tar in the bucket into the bucket."""
    put(bucket / "scenes.tar", scenes_tar.read_bytes())
    config = replace(label_config(Path("unused"), (f"{bucket}/scenes.tar",), checkpoints), run=bucket / "run")
    report = label(config)
    assert (report.failures, report.parts_done) == ((), report.parts_total)
    return bucket / "run"


def test_a_run_in_a_bucket_is_the_run_on_a_disk(
    labelled: Url, labelled_run: Path, proxy: FaultProxy, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = 9
    assert proxy.requests.total() <= 25 * parts + 60  # 11 or 19 files up, 11 pictures' files down; 60 are the run's
    assert inspect(["compare", str(labelled_run), str(labelled)]) == 0
    for command in (
        ["verify", "--workers", "1"],
        ["verify", "--deep", "--workers", "1"],
        ["clean"],
        ["repair", "--workers", "1"],
    ):
        assert inspect([*command, str(labelled)]) == 0, capsys.readouterr()
    assert inspect(["summary", f"{labelled}/run.json", "--json"]) == 1  # an image is rejected, more than the run allows
    assert inspect(["list", str(labelled)]) == 0
    key = next(iter(open_run(labelled_run)["primary"]))
    ours, theirs = (open_run(run)["primary"][key].context for run in (str(labelled), labelled_run))
    assert (ours.values == theirs.values).all()
    report = label(replace(label_config(Path("unused"), (), checkpoints), run=labelled))
    assert (report.committed, report.parts_done) == (0, parts)
    assert [entry.name for entry in place_of(labelled).entries(".holders")] == []


def test_damage_in_a_bucket_is_found_dropped_and_made_again(
    labelled: Url, labelled_run: Path, checkpoints: Path, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    part = min(manifests.committed_parts(labelled, "primary"))
    zarr = manifests.load_part(labelled, "primary", part).zarr
    name = f"columns/primary/{zarr}/context/c/0/0"
    content = get(labelled / name)[1]
    put(labelled / name, content[:40] + bytes([content[40] ^ 1]) + content[41:])
    assert inspect(["verify", "--deep", "--workers", "1", str(labelled)]) == 1
    assert f"{name}: found sha256" in capsys.readouterr().out
    assert inspect(["repair", "--workers", "1", str(labelled)]) == 0
    assert not place_of(labelled).exists(f"columns/primary/{part}.json")
    label(replace(label_config(Path("unused"), (), checkpoints), run=labelled))
    assert inspect(["compare", str(labelled_run), str(labelled)]) == 0


def test_what_came_damaged_over_the_network_once_is_not_dropped(labelled: Url, proxy: FaultProxy) -> None:
    part = min(manifests.committed_parts(labelled, "primary"))
    flipped: list[str] = []

    def flips_once(request: Request) -> Trouble | None:
        if request.method == "GET" and request.path.endswith("primary/" + part + ".json") and not flipped:
            flipped.append(request.path)
            return "flip"
        return None

    proxy.forget()
    proxy.trouble = flips_once
    report = manifests.repair(labelled)
    assert (flipped != [], report.dropped, report.left) == (True, (), ())


def test_an_index_that_is_stale_changes_no_answer(bucket: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manifests.facts.WORTH_AN_INDEX", 1)
    run = upload(write_run(tmp_path / "run"), bucket / "run")
    before = manifests.summarize(run)
    assert [entry.name for entry in place_of(run).entries("index")] != []
    name = "columns/primary/scenes.00001.json"
    kept = get(run / name)[1]
    place_of(run).remove(name)
    assert next(column for column in manifests.summarize(run).columns if column.name == "primary").parts_done == 2
    put(run / name, kept)
    assert manifests.summarize(run) == before


def test_training_from_a_bucket_ends_with_the_same_weights_and_fetches_each_part_once(
    bucket: Url, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manifests.part_cache.small_files", SmallFiles())
    local = write_run(tmp_path / "run", images=20, part_size=5)
    run, student = upload(local, bucket / "run"), write_student(tmp_path / "checkpoint")
    config = TrainConfig(
        run=(local,), output=tmp_path / "a", student=str(student), steps=12, batch_size=4, loader_workers=0, device="cpu"
    )
    train(config)
    proxy.forget()
    seen: list[str] = []
    proxy.trouble = lambda request: seen.append(request.path) if "/c/" in request.path else None
    train(replace(config, run=(run,), output=tmp_path / "b", cache=tmp_path / "cache"))
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("a", "b")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert len(seen) == len(set(seen)) > 0
    proxy.forget()
    train(replace(config, run=(run,), output=tmp_path / "c", cache=tmp_path / "cache", seed=1))
    assert not any("/c/" in path for path in proxy.paths())
    train(replace(config, run=(run,), output=tmp_path / "d", cache=tmp_path / "tiny", cache_gb=1e-5))
    weights.append(load_file(tmp_path / "d" / "model.safetensors"))
    assert all((weights[0][name] == weights[2][name]).all() for name in weights[0])


def test_a_sample_costs_half_a_request_where_parts_have_64_images(
    bucket: Url, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manifests.part_cache.small_files", SmallFiles())
    images, extent = 6 * 64, ((24, 24),)
    run = upload(write_run(tmp_path / "run", images=images, part_size=64, extents=extent, rejected={"primary": [70]}), bucket)
    cache, columns = PartCache(tmp_path / "cache", 1 << 30), ("images", "primary", "assistant")
    digests = {
        (column, part): part_digest(manifests.load_part(run, column, part))
        for column in columns
        for part in manifests.committed_parts(run, column)
    }
    proxy.forget()
    for (column, part), digest in digests.items():
        cache.hold(run, column, part, digest)
    assert proxy.requests.total() <= images / 2


def test_a_part_that_comes_damaged_is_fetched_again_and_named_where_it_stays_so(
    bucket: Url, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = upload(write_run(tmp_path / "run"), bucket / "run")
    monkeypatch.setattr("manifests.part_cache.small_files", SmallFiles())
    manifest = manifests.load_part(run, "primary", "scenes.00000")
    digest = part_digest(manifest)
    proxy.trouble = lambda request: "flip" if request.path.endswith("context/c/0/0") and request.number == 0 else None
    assert PartCache(tmp_path / "cache", 1 << 30).hold(run, "primary", "scenes.00000", digest).is_dir()
    monkeypatch.setattr("manifests.part_cache.small_files", SmallFiles())
    proxy.forget()
    proxy.trouble = lambda request: "flip" if request.path.endswith("context/c/0/0") else None
    with pytest.raises(FetchedDamagedError, match=r"context/c/0/0: found .*, twice, expected"):
        PartCache(tmp_path / "other", 1 << 30).hold(run, "primary", "scenes.00000", digest)
    assert [path.name for path in (tmp_path / "other").iterdir() if not path.name.startswith(".lock")] == []


def test_commands_say_what_they_cannot_do_with_a_url(
    bucket: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        label_main(["--run", "https://host/run", "--sources", "photos", "--preset", "demo"])
    assert "--run https://host/run: a URL that nothing is written to" in capsys.readouterr().err
    from pipeline.train.command import main as train_main

    with pytest.raises(SystemExit):
        train_main(["--run", str(bucket / "run"), "--output", "https://host/student", "--preset", "demo"])
    assert "--output https://host/student: a URL that nothing is written to" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_main(["--run", "run", "--output", str(bucket / "out"), "--preset", "demo", "--num-workers", "2"])
    assert f"output: found {bucket}/out with num_workers 2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        train_main(["--run", str(bucket / "run"), "--output", "student", "--preset", "demo"])
    assert f"cache: none given, but {bucket}/run is read through a folder" in capsys.readouterr().err


class _Elsewhere(BaseHTTPRequestHandler):
    """A store that has nothing."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_machine_whose_environment_leads_to_another_store_does_not_label(
    bucket: Url, monkeypatch: pytest.MonkeyPatch, checkpoints: Path, scenes_tar: Path
) -> None:
    config = replace(label_config(Path("unused"), (str(scenes_tar),), checkpoints), run=bucket / "run")
    unit = units_left(enter_run(describe_run(config, found := read_sources(config.sources)), found))[0]
    with ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{other.server_address[1]}")
        monkeypatch.setenv(TIMEOUT_VARIABLE, "19")  # the store is opened anew, as in another process
        with pytest.raises(RunNotSharedError, match=r"run\.json on .* it is not there, expected .*; all .* under this URL: "):
            require_run(unit)
        other.shutdown()
