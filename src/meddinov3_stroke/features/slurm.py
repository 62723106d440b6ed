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

LOGGER = logging.getLogger("meddinov3_stroke")

FOLDER_NAME = "slurm"  # in the output folder: scripts and logs of the jobs
POLL_S = 2.0
DEFAULTS = {"shards": "16", "time": "08:00:00", "wait": "yes", "cluster": "slurm"}


def submit(words: Sequence[str], folder: Path, settings: str, inputs: Sequence[str]) -> bool:
    """Whether the shards have ended; False if they were only submitted (`wait=no`).

    `words` are KEY=VALUE: those of `DEFAULTS`, and options of sbatch. A shard whose inputs all have a result in the
    ledgers of `folder` is not submitted again. Raises UsageError, or MachineError without submitit or Slurm.
    """
    options = DEFAULTS | dict(map(_key_and_value, words))
    of, wait, cluster = options.pop("shards"), options.pop("wait"), options.pop("cluster")
    if not (of.isdecimal() and int(of) and wait in ("yes", "no") and cluster in ("slurm", "local")):
        raise UsageError("--slurm: expected shards=N of at least 1, wait=yes or no, cluster=slurm or local")
    _require_slurm(cluster)
    shards = Ledger(folder).open_shards(settings, inputs, int(of))
    if not shards:
        LOGGER.info("every shard has ended; nothing was submitted")
        return True
    jobs = _submitted(shards, folder / FOLDER_NAME, cluster, options)
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


def _submitted(shards: Sequence[Shard], folder: Path, cluster: str, options: dict[str, str]) -> list[Any]:
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError
    from submitit.helpers import CommandFunction

    program, *words = words_of_this_command("--slurm")
    start = [program] if program.endswith(".py") else ["-m", "meddinov3_stroke"]
    executor = AutoExecutor(folder, cluster=cluster)
    minutes = {"timeout_min": 60 * 24 * 365} if cluster == "local" else {}  # Slurm is told by `time`
    executor.update_parameters(name="meddinov3", slurm_additional_parameters=options, **minutes)
    try:
        with executor.batch():
            commands = [[sys.executable, *start, *words, "--shard", str(shard)] for shard in shards]
            return [executor.submit(CommandFunction(command)) for command in commands]
    except FailedJobError as error:
        raise MachineError(f"sbatch refused the job: {error}; check the options of --slurm") from error


def _wait(jobs: Sequence[Any], number: str, cluster: str) -> None:
    try:
        while not all(map(_has_result, jobs)) and (_is_queued(number) if cluster == "slurm" else not _all_done(jobs)):
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        LOGGER.warning("the jobs go on; scancel %s ends them, the same command without --slurm collects them", number)
        raise


def _has_result(job: Any) -> bool:
    return bool(job.paths.result_pickle.exists())


def _all_done(jobs: Sequence[Any]) -> bool:
    return all(job.done() for job in jobs)


def _is_queued(number: str) -> bool:
    # submitit asks sacct, which clusters without accounting lack
    found = subprocess.run(["squeue", "-h", "-j", number], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip()) if found.returncode == 0 else "Invalid job id" not in found.stderr


def _warn_of_failure(shard: Shard, job: Any) -> None:
    told = str(job.exception() or "") if _has_result(job) else "it ended without a result"
    if told:
        reasons = re.findall(r"E-[A-Z-]+: .*", told) or told.splitlines()[:1]
        LOGGER.warning("shard %s failed: %s (log: %s)", shard, reasons[-1], job.paths.stderr)
