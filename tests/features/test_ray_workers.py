"""Workers on a real Ray cluster of several nodes on this machine: every input gets one result, whatever dies."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crew import squares
from meddinov3_stroke.cli import main
from meddinov3_stroke.errors import MachineError, WorkerLost
from meddinov3_stroke.features.compacted import single_files
from meddinov3_stroke.features.ray_workers import RayWorker, RayWorkers
from meddinov3_stroke.types import LABELS

pytestmark = pytest.mark.scope  # workers have the rules in any case
N_CASES = 400
TESTS = str(Path(__file__).resolve().parents[1])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Any]]:
    """Starts a cluster of so many nodes of one core each."""
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", TESTS)  # for the work of `crew`
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    running: list[Any] = []

    def start(n: int) -> Any:
        found = Cluster()
        running.append(found)
        for _ in range(n):
            found.add_node(num_cpus=1, object_store_memory=100 << 20, include_dashboard=False)
        return found

    yield start
    for one in running:
        one.shutdown()


def begun(folder: Path) -> list[list[str]]:
    path = folder / "begun"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def workers(cluster: Any, silence_s: float = 60.0) -> RayWorkers:
    return RayWorkers.on(cluster.address, silence_s, None, 1.0, None)


@pytest.mark.slow
def test_every_input_is_computed_once_by_one_of_the_actors(cluster, tmp_path) -> None:
    crew = workers(cluster(2))
    assert crew.devices == ("cpu", "cpu")
    n = 1500  # enough for the actor that starts last
    found = list(crew.map(list(range(n)), partial(squares, str(tmp_path))))
    assert sorted(found) == [(k, k**2) for k in range(n)]
    assert set(Counter(one for one, *_ in begun(tmp_path)).values()) == {1}
    assert len({pid for _, pid, *_ in begun(tmp_path)}) == 2


@pytest.mark.slow
def test_an_input_that_ends_or_hangs_its_actor_is_given_up_and_stops_no_other(cluster, tmp_path) -> None:
    inputs = [0, "die", 1, 2, "hang", 3, "slow", 4]
    found = dict(workers(cluster(2), silence_s=4.0).map(inputs, partial(squares, str(tmp_path))))
    assert sorted(found) == list(range(len(inputs)))
    assert [k for k, one in found.items() if isinstance(one, WorkerLost)] == [1, 4]
    assert "gave no sign for 4 s" in str(found[4])
    assert [found[k] for k in (0, 2, 3, 5, 6, 7)] == [0, 1, 4, 9, "slow", 16]


@pytest.mark.slow
def test_an_error_before_the_work_is_raised_with_its_reason(cluster, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("meddinov3_stroke.features.ray_workers.version", lambda package: "0.0.0+other")
    with pytest.raises(MachineError, match=r"has version .* of meddinov3-stroke, not 0\.0\.0\+other"):
        list(workers(cluster(1)).map([1], partial(squares, str(tmp_path))))


@pytest.mark.slow
def test_a_third_of_the_actors_killed_costs_one_input_each(cluster, tmp_path) -> None:
    def kill() -> None:
        killed: set[int] = set()
        while len(killed) < 2:
            time.sleep(0.2)
            for _, pid, *_ in begun(tmp_path)[-1:]:
                if len(begun(tmp_path)) > 40 * (1 + len(killed)) and int(pid) not in killed:
                    os.kill(int(pid), signal.SIGKILL)
                    killed.add(int(pid))

    killer = threading.Thread(target=kill)
    killer.start()
    found = dict(workers(cluster(6)).map(list(range(N_CASES)), partial(squares, str(tmp_path))))
    killer.join()
    assert found == {k: k**2 for k in range(N_CASES)}
    assert len(begun(tmp_path)) - N_CASES <= 0.01 * N_CASES


@pytest.fixture
def words(head_nifti: Callable[..., Path], random_weights: Callable[..., Path], tmp_path, monkeypatch) -> list[str]:
    """Words of `extract` for many small volumes."""
    monkeypatch.chdir(tmp_path)
    content = head_nifti("one.nii", seed=1).read_bytes()
    rows = [",".join(["nifti_path", "study_uid", *LABELS])]
    for k in range(N_CASES):
        changed = bytearray(content)
        changed[-4:] = (1000 + k).to_bytes(4, sys.byteorder)  # two voxels
        Path(f"{k}.nii").write_bytes(changed)
        rows.append(f"{tmp_path / f'{k}.nii'},1.{k},0,0,0,0,0,0")
    Path("table.csv").write_text("\n".join(rows))
    fixed = ["--engine", "openvino", "--precision", "fp32", "--device", "cpu", "--quiet", "--max-slices", "4"]
    return ["extract", "--series-csv", "table.csv", "--backbone", str(random_weights()), *fixed]


def stored(cache: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in single_files(Path(cache))}


@pytest.mark.slow
def test_one_two_and_four_nodes_fill_the_same_store_even_if_one_is_killed(cluster, words, capfd) -> None:
    assert main([*words, "--cache-dir", "plain", "-o", "a"]) == 0
    plain = stored("plain")
    assert len(plain) == N_CASES
    for n in (1, 2, 4):
        nodes = cluster(n)
        assert main([*words, "--cache-dir", f"on{n}", "-o", f"b{n}", "--ray", nodes.address]) == 0
        assert stored(f"on{n}") == plain
    killer = threading.Thread(target=lambda: remove_after(nodes, Path("killed"), 40))
    killer.start()
    capfd.readouterr()
    assert main([*words, "--cache-dir", "killed", "-o", "c", "--ray", nodes.address]) == 0
    killer.join()
    assert "and is replaced; inputs it held" in capfd.readouterr().err
    assert stored("killed") == plain
    assert Path("c/cohort_embeddings.npy").read_bytes() == Path("a/cohort_embeddings.npy").read_bytes()


def remove_after(nodes: Any, cache: Path, n_entries: int) -> None:
    while not cache.exists() or len(single_files(cache)) < n_entries:
        time.sleep(0.1)
    nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)


@pytest.mark.slow
def test_a_stranger_at_the_port_stops_nothing(cluster, tmp_path, monkeypatch) -> None:
    strangers: list[socket.socket] = []
    really = RayWorker.start

    def start(self: RayWorker) -> None:
        really(self)
        assert self.server is not None
        strangers.append(socket.create_connection(self.server.getsockname()))
        strangers[-1].sendall(b"\0")

    monkeypatch.setattr(RayWorker, "start", start)
    found = dict(workers(cluster(1)).map([1, 2], partial(squares, str(tmp_path))))
    assert found == {0: 1, 1: 4}
    (stranger,) = strangers
    stranger.close()


@pytest.mark.slow
def test_a_caller_that_is_connected_stays_so(cluster, tmp_path) -> None:
    import ray

    crew = workers(cluster(1))
    ray.init(address="auto", ignore_reinit_error=True, logging_level="ERROR")
    guest = workers(cluster(1))
    assert (crew.is_guest, guest.is_guest) == (False, True)
    assert dict(guest.map([3], partial(squares, str(tmp_path)))) == {0: 9}
    assert ray.is_initialized()
    ray.shutdown()


def test_without_ray_its_extra_is_named(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    Path("t.csv").write_text(",".join(["nifti_path", "study_uid", *LABELS]) + "\nx.nii,1,0,0,0,0,0,0\n")
    assert main(["extract", "--series-csv", "t.csv", "--backbone", "demo", "--ray", "local"]) == 7
    assert "pip install 'meddinov3-stroke[ray]'" in capsys.readouterr().err


def test_gpus_are_chosen_by_ray(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(",".join(["nifti_path", "study_uid", *LABELS]) + "\nx.nii,1,0,0,0,0,0,0\n")
    assert main(["extract", "--series-csv", "t.csv", "--backbone", "demo", "--ray", "local", "--gpus", "0"]) == 2
    assert "--ray-gpus" in capsys.readouterr().err
