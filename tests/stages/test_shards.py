"""`--shard` and `--workers`: parts of a table computed apart equal one run, and what is missing is named."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from meddinov3_stroke.cli import main
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.features.compacted import single_files
from meddinov3_stroke.features.shards import Shard, shard_ranks
from meddinov3_stroke.system.command import run_command
from meddinov3_stroke.types import LABELS

CPU = ["--engine", "torch", "--precision", "fp32", "--device", "cpu", "--quiet"]
N = 10


@pytest.fixture
def table(head_nifti: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words of `extract` for ten volumes, one of them named twice and one empty."""
    monkeypatch.chdir(tmp_path)
    paths = [head_nifti(f"heads/{k}.nii.gz", seed=k) for k in range(N)]
    (tmp_path / "heads" / "empty.nii").touch()
    paths.insert(3, tmp_path / "heads" / "empty.nii")
    rows = [",".join(["nifti_path", "study_uid", *LABELS])]
    rows += [f"{path},1.{k},0,0,0,0,0,0" for k, path in enumerate(paths)]
    Path("table.csv").write_text("\n".join(rows))
    return ["extract", "--series-csv", "table.csv", "--skip-invalid-nifti", "--max-invalid", "0.5"]


@pytest.fixture
def words(table: list[str], random_weights: Callable[..., Path]) -> list[str]:
    return [*table, "--backbone", str(random_weights()), *CPU]


def files_of(cache: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in single_files(Path(cache))}


def arrays_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.npy")}


def status_of(folder: str, capsys) -> dict:
    capsys.readouterr()
    assert main(["status", folder, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_shards_in_any_order_and_put_together_equal_one_run(words, capsys) -> None:
    assert main([*words, "--cache-dir", "whole", "-o", "one"]) == 0
    parts = ["--cache-dir", "parts", "-o", "all"]
    for rank in (2, 0, 3):
        assert main([*words, *parts, "--shard", f"{rank}/4"]) == 0
    found = status_of("all", capsys)
    assert found["totals"]["total"] == N + 1
    missing = [one for one in found["inputs"] if one["status"] == "pending"]
    assert {one["shard"] for one in missing} == {"1/4"}
    assert found["totals"]["pending"] == len(missing) > 0
    assert main([*words, *parts]) == 8
    told = capsys.readouterr().err
    assert f"shard 1/4 has no result for {len(missing)} of {len(missing)} inputs" in told
    advised = told.split("run meddinov3-stroke ")[1].split(";")[0]
    assert not Path("all", "cohort_embeddings.npy").exists()
    assert main(shlex.split(advised)) == 0  # the command that the message names
    assert main([*words, *parts]) == 0
    assert arrays_of("all") == arrays_of("one")
    assert files_of("parts") == files_of("whole")
    summary = json.loads(Path("all", "extraction_summary.json").read_text())["extraction"]
    assert (summary["n_computed"], summary["done"], summary["rejected"]) == (0, N, 1)
    assert status_of("all", capsys)["totals"] == {**found["totals"], "pending": 0, "done": N, "rejected": 1}


def test_a_shard_writes_no_arrays_and_says_how_its_inputs_ended(words, capsys) -> None:
    assert main([*words, "--cache-dir", "c", "-o", "out", "--shard", "0/3"]) == 0
    assert arrays_of("out") == {}
    assert "shard 0/3: " in capsys.readouterr().out


def test_another_number_of_shards_is_refused_until_the_division_is_deleted(words, capsys) -> None:
    parts = [*words, "--cache-dir", "c", "-o", "out"]
    assert main([*parts, "--shard", "2/4"]) == 0
    assert main([*parts, "--shard", "0/1"]) == 2  # as --array=2 with --shard auto gives
    assert "holds 4 shards of this run; pass --shard I/4" in capsys.readouterr().err
    assert status_of("out", capsys)["totals"]["done"] > 0
    Path("out", "shards.json").unlink()
    assert main([*parts, "--shard", "0/1"]) == 0


def test_a_shard_without_rows_needs_no_worker(words) -> None:
    parts = [*words, "--cache-dir", "c", "-o", "out", "--workers", "2"]
    assert main([*parts, "--shard", f"{N + 3}/{N + 4}"]) == 0


@pytest.mark.scope  # workers have the rules in any case
def test_workers_give_what_one_process_gives(words) -> None:
    assert main([*words, "--cache-dir", "one", "-o", "a"]) == 0
    assert main([*words, "--cache-dir", "two", "-o", "b", "--workers", "2"]) == 0
    assert arrays_of("a") == arrays_of("b")
    assert files_of("one") == files_of("two")


def test_workers_stop_at_the_first_unusable_volume(words, capsys) -> None:
    strict = [word for word in words if word not in ("--skip-invalid-nifti", "--max-invalid", "0.5")]
    assert main([*strict, "--cache-dir", "c", "-o", "out", "--workers", "2"]) == 3
    assert "table.csv row 5: " in capsys.readouterr().err


def test_ctrl_c_with_workers_keeps_finished_work(words) -> None:
    command = [sys.executable, "-m", "meddinov3_stroke", *words, "--cache-dir", "c", "-o", "out", "--workers", "2"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not single_files(Path("c")):
        time.sleep(0.02)
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode in (0, 130)
    assert main([*words, "--cache-dir", "c", "-o", "out"]) == 0
    assert len(single_files(Path("c"))) == N
    assert "Traceback" not in told


@pytest.mark.scope  # workers have the rules in any case
@pytest.mark.parametrize("n_killed", [1, 3])
def test_workers_killed_at_any_moment_lose_nothing(words, n_killed) -> None:
    assert main([*words, "--cache-dir", "one", "-o", "a"]) == 0

    def kill() -> None:
        children = f"/proc/self/task/{os.getpid()}/children"
        for _ in range(n_killed):
            time.sleep(1.5)
            pids = [int(pid) for pid in Path(children).read_text().split()]
            workers = [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            for pid in workers[:1]:
                os.kill(pid, signal.SIGKILL)

    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("the kernel lists no children")
    killer = threading.Thread(target=kill)
    killer.start()
    assert main([*words, "--cache-dir", "two", "-o", "b", "--workers", "2"]) == 0
    killer.join()
    assert arrays_of("a") == arrays_of("b")
    assert files_of("one") == files_of("two")


def test_keys_decide_the_shard_whatever_their_order() -> None:
    keys = [f"volume {k}" for k in range(101)] + ["volume 3", "volume 3"]
    for of in (1, 2, 4, 7):
        ranks = shard_ranks(keys, of)
        shuffled = np.random.default_rng(of).permutation(len(keys))
        again = dict(zip([keys[k] for k in shuffled], shard_ranks([keys[k] for k in shuffled], of), strict=True))
        assert [again[key] for key in keys] == ranks
        sizes = np.bincount(shard_ranks(sorted(set(keys)), of), minlength=of)
        assert sizes.max() - sizes.min() <= 1


SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_MAX": "8"}
SLURM["SLURM_ARRAY_TASK_COUNT"] = "4"
SRUN = {"SLURM_PROCID": "1", "SLURM_NTASKS": "3", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("1/4", {}, (1, 4)),
        ("auto", SLURM, (2, 4)),
        (
            "auto",
            {**SLURM, "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_STEP": "2"},
            (3, 4),
        ),
        ("auto", {"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ("auto", SRUN, (1, 3)),
        ("auto", {**SLURM, **SRUN}, (7, 12)),
        ("auto", {**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (2, 4)),  # the batch script of an element
    ],
)
def test_a_shard_is_named_or_taken_from_the_environment(text, environ, expected) -> None:
    shard = Shard.parse(text, environ)
    assert (shard.rank, shard.of) == expected


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        ("4/4", {}, "from 0 to N-1"),
        ("1", {}, "expected I/N"),
        ("0/0", {}, "expected I/N"),
        ("auto", {}, "found none of SLURM_ARRAY_TASK_ID"),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_COUNT": "3"}, "have gaps"),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_MIN": ""}, "expected a number"),
        ("auto", {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "put srun in front"),
    ],
)
def test_a_wrong_shard_is_a_usage_error(text, environ, words) -> None:
    with pytest.raises(UsageError, match=words):
        Shard.parse(text, environ)


def test_the_origin_of_the_shard_is_told(words, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    loud = [word for word in words if word != "--quiet"]
    assert main([*loud, "--cache-dir", "c", "-o", "out", "--shard", "auto"]) == 0
    assert "shard 0/2, from RANK=0 of WORLD_SIZE=2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--workers", "0"], 2, "--workers 0: expected at least 1"),
        (["--gpus", "0", "--workers", "2"], 2, "omit --workers"),
        (["--worker-timeout", "0"], 2, "expected at least 1"),
        (["--shard", "2/2"], 2, "from 0 to N-1"),
    ],
)
def test_wrong_flags_are_usage_errors(table, capsys, flags, code, words) -> None:
    assert main([*table, "--backbone", "demo", "--cache-dir", "c", "-o", "out", *flags]) == code
    assert words in capsys.readouterr().err


def test_gpus_that_are_not_there_are_named(table, capsys, monkeypatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*table, "--backbone", "demo", "--cache-dir", "c", "-o", "out", "--gpus", "all"]) == 7
    assert "sees no GPU" in capsys.readouterr().err


def test_each_gpu_has_a_worker(table, monkeypatch) -> None:
    import torch

    from meddinov3_stroke.commands.extract import Args

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    seen: list[tuple[str, ...]] = []

    def note(args: Args) -> None:
        seen.append(args.crew(args.device).devices)

    for gpus in (["all"], ["2", "cuda:0", "2"]):
        assert run_command(Args, note, ["--series-csv", "table.csv", "--gpus", *gpus]) == 0
    assert seen == [("cuda:0", "cuda:1", "cuda:2"), ("cuda:2", "cuda:0")]
