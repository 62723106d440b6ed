"""Shards on Slurm: the example of docs/scale.md on a real single node, and `--slurm`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import meddinov3_stroke
from meddinov3_stroke.cli import main
from meddinov3_stroke.features.compacted import single_files
from meddinov3_stroke.types import LABELS
from slurm_node import slurm_node

pytestmark = pytest.mark.scope  # jobs have the rules in any case
N = 6
DEMO = Path(meddinov3_stroke.__file__).parent / "backbone" / "weights" / "demo.safetensors"
DOCUMENT = Path(__file__).parents[2] / "docs" / "scale.md"
WORDS = ["extract", "--series-csv", "table.csv", "--skip-invalid-nifti", "--quiet"]


@pytest.fixture
def table(head_nifti: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which `extract` runs: a table of small heads, and the environment of the examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDDINOV3_CKPT_PATH", str(DEMO))
    rows = [",".join(["nifti_path", "study_uid", *LABELS])]
    rows += [f"{head_nifti(f'heads/{k}.nii.gz', seed=k)},1.{k},0,0,0,0,0,0" for k in range(N)]
    Path("table.csv").write_text("\n".join(rows))
    Path(".venv").symlink_to(sys.prefix)
    return tmp_path


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with slurm_node(tmp_path_factory.mktemp("slurm") / "node") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield


def files_of(folder: str) -> dict[str, bytes]:
    found = [*Path(folder, "out").glob("*.npy"), *single_files(Path(folder, "cache"))]
    return {path.name: path.read_bytes() for path in found}


def places(folder: str) -> list[str]:
    return ["--cache-dir", f"{folder}/cache", "-o", f"{folder}/out"]


def sbatch(*words: str) -> str:
    return subprocess.run(["sbatch", *words], capture_output=True, text=True, check=True).stdout.split()[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_sbatch_example_runs_and_its_failed_element_is_submitted_again(table: Path, node: None, capsys) -> None:
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    Path("job.sh").write_text(script.replace("/shared/", f"{table}/shared/"))
    job = sbatch("--hold", "job.sh")
    subprocess.run(["scancel", f"{job}_3"], check=True)
    subprocess.run(["scontrol", "release", job], check=True)
    while subprocess.run(["squeue", "-h", "-j", job], capture_output=True, check=False).stdout.strip():
        time.sleep(1)
    assert main([*WORDS, *places("shared")]) == 8
    assert "shard 3/16 has no result" in capsys.readouterr().err
    sbatch("--wait", "--array=3", "job.sh")
    assert main([*WORDS, *places("shared")]) == 0
    assert main([*WORDS, *places("one")]) == 0
    assert files_of("shared") == files_of("one")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_slurm_submits_waits_resumes_and_puts_together(table: Path, node: None, capsys) -> None:
    parts = [*WORDS[:-1], *places("parts"), "--slurm", "shards=3", "partition=main", "mem=2G", "time=00:10:00"]
    assert main([*parts, "wait=no"]) == 0
    assert "submitted 3 of 3 shards as job 1" in capsys.readouterr().err
    while subprocess.run(["squeue", "-h"], capture_output=True, check=False).stdout.strip():
        time.sleep(1)
    Path("parts/out/ledger.1-of-3.jsonl").unlink()  # as if that job had been lost
    assert main(parts) == 0
    assert "submitted 1 of 3 shards" in capsys.readouterr().err
    assert main([*WORDS, *places("one")]) == 0
    assert files_of("parts") == files_of("one")
    assert main([*parts, "no-such-option=1"]) == 0  # nothing is left to submit
    assert "nothing was submitted" in capsys.readouterr().err
    later = [*WORDS[:-1], *places("later"), "--slurm", "shards=1", "wait=no", "mem=2G"]
    assert main([*later, "begin=now+1hour"]) == 0
    assert main(later) == 0  # its job waits, so nothing more is submitted
    assert "has not ended; nothing more is submitted" in capsys.readouterr().err
    queued = subprocess.run(["squeue", "-h", "-r", "-o", "%A"], capture_output=True, text=True, check=False).stdout
    assert len(queued.split()) == 1
    subprocess.run(["scancel", queued.strip()], check=True)
    assert main([*parts, "shards=2"]) == 2
    assert main([*WORDS, *places("other"), "--slurm", "no-such-option=1"]) == 7
    assert "sbatch refused the job" in capsys.readouterr().err


def test_slurm_with_local_processes_submits_what_has_not_ended_and_equals_one_run(table: Path, capsys) -> None:
    loud = [word for word in WORDS if word != "--quiet"]
    assert main([*loud, *places("parts"), "--shard", "0/2"]) == 0
    assert main([*loud, *places("parts"), "--slurm", "shards=2", "cluster=local"]) == 0
    assert "submitted 1 of 2 shards" in capsys.readouterr().err
    assert main([*WORDS, *places("one")]) == 0
    assert files_of("parts") == files_of("one")


def test_a_failed_shard_is_named_with_its_error(table: Path, capsys) -> None:
    Path("heads/4.nii.gz").unlink()
    strict = [word for word in WORDS if word != "--skip-invalid-nifti"]
    assert main([*strict, *places("parts"), "--slurm", "shards=2", "cluster=local"]) == 3
    told = capsys.readouterr().err
    assert re.search(r"shard [01]/2 failed: E-INPUT-MISSING: table.csv row 6: .*heads/4.nii.gz", told)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["shards"], 2, "expected KEY=VALUE"),
        (["shards=0"], 2, "shards=N of at least 1"),
        (["wait=maybe"], 2, "wait=yes or no"),
        (["shards=2", "--shard", "0/2"], 2, "omit one of them"),
        (["partition=gpu"], 7, "cluster=local"),
    ],
)
def test_wrong_words_of_slurm_are_told(table: Path, capsys, monkeypatch, words, code, told) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    assert main([*WORDS, *places("out"), "--slurm", *words]) == code
    assert told in capsys.readouterr().err


def test_slurm_without_submitit_names_the_install_command(table: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("meddinov3_stroke.features.slurm.find_spec", lambda name: None)
    assert main([*WORDS, *places("out"), "--slurm", "shards=2"]) == 7
    assert "pip install 'meddinov3-stroke[slurm]'" in capsys.readouterr().err
