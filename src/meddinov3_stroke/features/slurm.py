"""Shards as a Slurm array, submitted with submitit: the command that runs, once for each shard."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from meddinov3_stroke.errors import MachineError, UsageError
from meddinov3_stroke.features.ledger import Ledger
from meddinov3_stroke.features.shards import Shard
from meddinov3_stroke.system.command import words_of_this_command
from meddinov3_stroke.system.digest import sha256_of_document

LOGGER = logging.getLogger("meddinov3_stroke")

FOLDER_NAME = "slurm"  # in the output folder: scripts and logs of the jobs
POLL_S = 2.0
NAME_DIGITS = 12  # of the digest of a run in the name of its jobs
DEFAULTS = {"shards": "16", "time": "08:00:00", "wait": "yes", "cluster": "slurm"}


def submit(words: Sequence[str], folder: Path, settings: str, inputs: Sequence[str]) -> bool:
    """Whether the shards have ended; False if they were only submitted (`wait=no`).

    `words` are KEY=VALUE: those of `DEFAULTS`, and options of sbatch. A shard whose inputs all have a result in the
    ledgers of `folder` is not submitted again, and none is while jobs of the same run are queued or running. Raises
    UsageError, or MachineError without submitit or Slurm.
    """
    options = DEFAULTS | dict(map(_key_and_value, words))
    of, wait, cluster = options.pop("shards"), options.pop("wait"), options.pop("cluster")
    if not (of.isdecimal() and int(of) and wait in ("yes", "no") and cluster in ("slurm", "local")):
        raise UsageError("--slurm: expected shards=N of at least 1, wait=yes or no, cluster=slurm or local")
    _require_slurm(cluster)
    digest = sha256_of_document([settings, str(folder.absolute()), list(inputs)])
    name = f"meddinov3-{digest[:NAME_DIGITS]}"
    if cluster == "slurm" and (running := [one for one in _queued("--name", name) if one]):
        LOGGER.info("job %s of this run has not ended; nothing more is submitted", ", ".join(running))
        if wait == "no":
            return False
        while _queued("--name", name):
            time.sleep(POLL_S)
    shards = Ledger(folder).open_shards(settings, inputs, int(of))
    if not shards:
        LOGGER.info("every shard has ended; nothing was submitted")
        return True
    jobs = _submitted(shards, folder / FOLDER_NAME, cluster, name, options)
    number = str(jobs[0].job_id).partition("_")[0]
    LOGGER.info("submitted %d of %s shards as job %s; logs in %s", len(shards), of, number, folder / FOLDER_NAME)
    if wait == "yes":
        _wait(jobs, number, cluster)
        for shard, job in zip(shards, jobs, strict=True):
            _warn_of_failure(shard, job)
    return wait == "yes"


def _key_and_value(word: str) -> tuple[str, str]:
    key, _, value = word.removeprefix("--").partition("=")
    if not key or not value:
        raise UsageError(f"--slurm {word}: expected KEY=VALUE, such as shards=16 partition=gpu time=08:00:00")
    return key.replace("_", "-"), value


def _require_slurm(cluster: str) -> None:
    if find_spec("submitit") is None:
        raise MachineError("submitit is not installed; --slurm needs it: pip install 'meddinov3-stroke[slurm]'")
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise MachineError(
            "sbatch is not on this machine; run --slurm where jobs are submitted, or try it with cluster=local"
        )


def _submitted(shards: Sequence[Shard], folder: Path, cluster: str, name: str, options: dict[str, str]) -> list[Any]:
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError
    from submitit.helpers import CommandFunction

    program, *words = words_of_this_command("--slurm")
    start = [program] if program.endswith(".py") else ["-m", "meddinov3_stroke"]
    executor = AutoExecutor(folder, cluster=cluster)
    minutes = {"timeout_min": 60 * 24 * 365} if cluster == "local" else {}  # Slurm is told by `time`
    executor.update_parameters(name=name, slurm_additional_parameters=options, **minutes)
    try:
        with executor.batch():
            commands = [[sys.executable, *start, *words, "--shard", str(shard)] for shard in shards]
            return [executor.submit(CommandFunction(command)) for command in commands]
    except FailedJobError as error:
        raise MachineError(f"sbatch refused the job: {error}; check the options of --slurm") from error


def _wait(jobs: Sequence[Any], number: str, cluster: str) -> None:
    try:
        while not all(map(_has_result, jobs)) and _is_running(jobs, number, cluster):
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        LOGGER.warning("the jobs go on; scancel %s ends them, the same command without --slurm collects them", number)
        raise


def _is_running(jobs: Sequence[Any], number: str, cluster: str) -> bool:
    return bool(_queued("-j", number)) if cluster == "slurm" else not all(job.done() for job in jobs)


def _has_result(job: Any) -> bool:
    return bool(job.paths.result_pickle.exists())


def _queued(*which: str) -> list[str]:
    # submitit asks sacct, which clusters without accounting lack
    words = ["squeue", "-h", "--me", "-o", "%F", *which]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    if found.returncode != 0 and "Invalid job id" not in found.stderr:
        return [""]  # Slurm does not answer now, which says nothing about the jobs
    return sorted(set(found.stdout.split()))


def _warn_of_failure(shard: Shard, job: Any) -> None:
    told = str(job.exception() or "") if _has_result(job) else "it ended without a result"
    if told:
        reasons = re.findall(r"E-[A-Z-]+: .*", told) or told.splitlines()[:1]
        LOGGER.warning("shard %s failed: %s (log: %s)", shard, reasons[-1], job.paths.stderr)
