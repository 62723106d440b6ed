"""`predict` and `embed` on many cases in worker processes, in shards and on Ray: the results of one process."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meddinov3_stroke import load_backbone
from meddinov3_stroke.ich_infer import main as predict
from meddinov3_stroke.meddinov3_infer import main as embed
from meddinov3_stroke.phantom import draw_spec, make_phantom
from meddinov3_stroke.predictor import ICHPredictor
from meddinov3_stroke.system.nifti_bytes import nifti_bytes
from meddinov3_stroke.types import VolumeInput

pytestmark = pytest.mark.scope  # workers have the rules in any case
NAME = "MusterErika"


@pytest.fixture
def words(random_weights: Callable[..., Path], random_head: Callable[..., Path], tmp_path, monkeypatch) -> list[str]:
    """Flags for three heads, one volume that is no head, and one damaged file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = Path("cohort")
    folder.mkdir()
    for k in range(3):
        phantom = make_phantom(draw_spec(k))
        (folder / f"{NAME}{k}.nii.gz").write_bytes(nifti_bytes(phantom.hu, phantom.affine))
    (folder / f"air_{NAME}.nii.gz").write_bytes(nifti_bytes(np.full((8, 64, 64), -1000.0), np.diag([3.0, 3, 5, 1])))
    (folder / f"cut_{NAME}.nii.gz").write_bytes((folder / f"{NAME}0.nii.gz").read_bytes()[:900])
    weights = random_weights()
    head = random_head(load_backbone(weights, engine="torch", precision="fp32", device="cpu"))
    pairs = {"--input": folder, "--backbone": weights, "--engine": "torch", "--precision": "fp32", "--device": "cpu"}
    return ["--quiet", "--checkpoint", str(head), *(str(word) for pair in pairs.items() for word in pair)]


def without_head(words: list[str]) -> list[str]:
    return words[:1] + words[3:]


def found(folder: str) -> tuple[list[dict[str, str]], dict[str, bytes]]:
    """Rows of results.csv without times, and the content of every array."""
    with Path(folder, "results.csv").open(newline="", encoding="utf-8") as handle:
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(handle)]
    arrays = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*.npy"))}
    return rows, arrays


@pytest.mark.parametrize("verb", [predict, embed])
def test_workers_and_copies_find_what_one_process_finds(words, verb) -> None:
    words = words if verb is predict else without_head(words)
    assert verb([*words, "-o", "one"]) == 8
    for folder, flags in (("two", ["--workers", "2"]), ("three", ["--stage", "scratch"])):
        assert verb([*words, "-o", folder, *flags]) == 8
        assert found(folder) == found("one")
    assert list(Path("scratch").iterdir()) == []
    states = [row["status"] for row in found("one")[0]]
    assert sorted(states) == sorted(["done"] * 3 + ["rejected", "refused" if verb is predict else "done"])


def test_a_second_run_with_workers_computes_only_what_has_no_result(words) -> None:
    assert predict([*words, "-o", "out", "--workers", "2"]) == 8
    times = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/summary.json")}
    assert predict([*words, "-o", "out", "--workers", "2"]) == 8
    assert {path: path.stat().st_mtime_ns for path in Path("out").glob("*/summary.json")} == times
    assert len(times) == 3


def test_shards_in_any_order_put_together_are_one_run(words, capsys) -> None:
    assert predict([*words, "-o", "one"]) == 8
    assert predict([*words, "-o", "out", "--shard", "1/2"]) in (0, 8)
    assert not Path("out/results.csv").exists()
    assert predict([*words, "-o", "out"]) == 8
    assert "shard 0/2 has no result" in capsys.readouterr().err
    assert predict([*words, "-o", "out", "--shard", "0/2"]) in (0, 8)
    times = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/summary.json")}
    assert predict([*words, "-o", "out"]) == 8
    assert found("out") == found("one")
    assert {path: path.stat().st_mtime_ns for path in Path("out").glob("*/summary.json")} == times


def test_a_case_that_every_worker_was_lost_over_is_not_tried_again_here(words, monkeypatch) -> None:
    for shard in ("0/2", "1/2"):
        assert predict([*words, "-o", "out", "--shard", shard]) in (0, 8)
    for path in Path("out").glob("ledger.*-of-2.jsonl"):  # as if the damaged file had ended its workers
        path.write_text(path.read_text().replace("E-INPUT-CORRUPT", "E-WORKER").replace("rejected", "failed"))
    tried: list[Path] = []
    really = ICHPredictor.map

    def noted(self: ICHPredictor, todo: Iterable[VolumeInput], *more: Any, **flags: Any) -> Iterator[Any]:
        return really(self, tried_of(todo, tried), *more, **flags)

    monkeypatch.setattr(ICHPredictor, "map", noted)
    assert predict([*words, "-o", "out"]) == 8
    assert [path.name for path in tried] == [f"air_{NAME}.nii.gz"]
    (row,) = [row for row in found("out")[0] if "cut_" in row["input"]]
    assert (row["status"], row["code"]) == ("failed", "E-WORKER")


def tried_of(todo: Iterable[VolumeInput], tried: list[Path]) -> Iterator[VolumeInput]:
    for source in todo:
        tried.append(source.path)
        yield source


def test_workers_name_no_input(words, capfd) -> None:
    assert predict([*words[1:], "-o", "out", "--workers", "2", "--hide-names"]) == 8
    written = b"".join(path.read_bytes() for path in Path("out").rglob("*") if path.is_file())
    assert NAME.encode() not in written
    assert NAME not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "flag", [["--workers", "2"], ["--shard", "0/2"], ["--ray", "local"], ["--gpus", "0"], ["--stage", "x"]]
)
def test_a_single_input_is_not_shared(words, flag, capsys) -> None:
    one = ["cohort/" + f"{NAME}0.nii.gz" if word == "cohort" else word for word in words]
    assert predict([*one, *flag]) == 2
    assert f"{flag[0]} with a single input" in capsys.readouterr().err


@pytest.mark.slow
def test_a_ray_cluster_finds_what_one_process_finds(words) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    assert predict([*words, "-o", "one"]) == 8
    assert predict([*words, "-o", "two", "--ray", "local", "--ray-cpus", "1"]) == 8
    assert found("two") == found("one")
    assert "RAY_USAGE_STATS_ENABLED" in os.environ
    assert json.loads(next(Path("two").glob("*/summary.json")).read_text())["disclaimer"]
