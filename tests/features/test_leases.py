"""Runs over the same inputs and one store share the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke.features import embedding_key, extract
from meddinov3_stroke.features.leases import Leases

WORKER = Path(__file__).with_name("lease_worker.py")
KEY = "ab" * 32


def started(store: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[1])}
    command = [sys.executable, str(WORKER), str(store), str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return json.loads(printed.splitlines()[-1])


def cohort(folder: Path, n: int) -> Path:
    folder.mkdir()
    for k in range(n):
        (folder / f"{k:02}.nii").write_text(f"{2 + k % 7} {k}")
    return folder


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.rglob("*.emb")}


@pytest.mark.parametrize(
    ("n_processes", "n_volumes"), [(4, 16), pytest.param(16, 64, marks=pytest.mark.slow)], ids=["4 runs", "16 runs"]
)
def test_runs_at_the_same_time_compute_each_volume_once(n_processes: int, n_volumes: int, tmp_path: Path) -> None:
    folder = cohort(tmp_path / "cohort", n_volumes)
    alone = result(started(tmp_path / "alone", folder))
    runs = [started(tmp_path / "shared", folder) for _ in range(n_processes)]
    found = [result(run) for run in runs]
    assert sorted(name for one in found for name in one["decoded"]) == sorted(path.name for path in folder.iterdir())
    assert all(one["tokens"] == alone["tokens"] for one in found)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_a_volume_whose_run_is_killed_is_computed_by_the_run_that_waits(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "cohort", 4)
    killed = started(tmp_path / "store", folder, "01.nii")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "blocked\n"
    waiting = started(tmp_path / "store", folder)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=6)
    killed.kill()
    found = result(waiting)
    killed.communicate()
    assert found["n"] == len(found["tokens"]) == 4
    assert found["decoded"][-1] == "01.nii"


def test_a_run_that_waits_for_a_volume_gives_signs_of_life(extractor, reader, store, scan) -> None:
    held = scan("a.nii", "3 0")
    key = embedding_key(reader(held).digest, extractor.backbone.identity, extractor.resize, extractor.selection)
    hold = "import sys, time; from pathlib import Path; from meddinov3_stroke.features.leases import Leases\n"
    hold += "leases = Leases(Path(sys.argv[1])); print(leases.take(sys.argv[2]), flush=True); time.sleep(1.5)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(store.folder), key], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    signs: list[tuple[int, int]] = []
    [found] = extract([held], extractor, store, on_slices=lambda *counts: signs.append(counts))
    other.communicate()
    assert found.embeddings is not None
    assert signs.count((0, 0)) > 2


def test_a_volume_that_cannot_be_read_is_not_waited_for(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "cohort", 3)
    (folder / "01.nii").write_text("corrupt")
    runs = [started(tmp_path / "store", folder) for _ in range(2)]
    assert [(one["n"], len(one["tokens"])) for one in map(result, runs)] == [(3, 2), (3, 2)]


def test_a_lease_is_of_one_process_and_of_one_key(tmp_path: Path) -> None:
    ours = Leases(tmp_path)
    assert ours.take(KEY)
    ask = "import sys; from meddinov3_stroke.features.leases import Leases; from pathlib import Path\n"
    ask += "leases = Leases(Path(sys.argv[1])); print([leases.take(key) for key in sys.argv[2:]])"

    def of_another_process() -> str:
        command = [sys.executable, "-c", ask, str(tmp_path), KEY, "cd" * 32]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert of_another_process() == "[False, True]"
    ours.release(KEY)
    assert of_another_process() == "[True, True]"


def test_a_folder_without_room_for_leases_grants_them_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    leases = Leases(tmp_path / "file" / "store")
    assert leases.take(KEY)
    leases.release(KEY)
    leases.close()
