"""Shards: the part of a table that one of several machines computes, and where its number is taken from."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meddinov3_stroke.errors import UsageError

LOGGER = logging.getLogger("meddinov3_stroke")

EXPECTED = "expected I/N with I from 0 to N-1 (such as 0/4), or auto"


@dataclass(frozen=True)
class Shard:
    """One of `of` parts of a run, counted from 0."""

    rank: int
    of: int

    def __post_init__(self) -> None:
        """Raise UsageError for a rank outside the number of shards."""
        if not 0 <= self.rank < self.of:
            raise UsageError(f"--shard {self}: {EXPECTED}")

    def __str__(self) -> str:
        return f"{self.rank}/{self.of}"

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str] = os.environ) -> Shard:
        """The shard of `I/N`, or for `auto` that of a Slurm or torchrun task, which is logged with its origin."""
        if text == "auto":
            return _of_environment(environ)
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise UsageError(f"--shard {text}: {EXPECTED}")
        return cls(int(found[1]), int(found[2]))


def shard_ranks(keys: Sequence[str], of: int) -> list[int]:
    """The shard of each key: equal keys share one, sizes differ by at most one key, the order of keys is irrelevant."""
    places = {key: place for place, key in enumerate(sorted(set(keys)))}
    return [places[key] % of for key in keys]


def _of_environment(environ: Mapping[str, str]) -> Shard:
    found = [one for one in (_of_array(environ), _of_task(environ)) if one is not None]
    if not found:
        raise UsageError(
            "--shard auto: found none of SLURM_ARRAY_TASK_ID, SLURM_PROCID (of srun) and RANK in the environment; "
            "start an array job, srun or torchrun, or pass --shard I/N"
        )
    rank, of = 0, 1
    for (inner, count), _ in found:  # each element of an array may be a job of several tasks
        rank, of = rank * count + inner, of * count
    shard = Shard(rank, of)
    LOGGER.info("shard %s, from %s", shard, " and ".join(origin for _, origin in found))
    return shard


def _of_array(environ: Mapping[str, str]) -> tuple[tuple[int, int], str] | None:
    # ((rank, number), origin) of an element of a Slurm array
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return None
    names = ("ID", "MIN", "MAX", "COUNT")
    task, low, high, count = (_number(environ, f"SLURM_ARRAY_TASK_{name}") for name in names)
    step = _number(environ, "SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in environ else 1
    if step < 1 or (high - low) // step + 1 != count or (task - low) % step:
        raise UsageError(
            f"--shard auto: the Slurm array has {count} tasks from {low} to {high} in steps of {step}, so its numbers "
            'have gaps; submit a range such as --array=0-3, or pass --shard "$SLURM_ARRAY_TASK_ID/N"'
        )
    return ((task - low) // step, count), f"SLURM_ARRAY_TASK_ID={task} of {count} from {low}"


def _of_task(environ: Mapping[str, str]) -> tuple[tuple[int, int], str] | None:
    # ((rank, number), origin) of a task of torchrun, or of srun
    if "RANK" in environ and "WORLD_SIZE" in environ:
        rank, of = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
        return (rank, of), f"RANK={rank} of WORLD_SIZE={of}"
    if "SLURM_PROCID" not in environ:
        return None
    rank, of = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_NTASKS")
    if "SLURM_STEP_ID" not in environ:  # the batch script itself, which runs once whatever the number of tasks
        if of == 1:
            return None
        raise UsageError(
            f"--shard auto: SLURM_NTASKS is {of}, but srun did not start this process; put srun in front of the "
            "command, or pass --shard I/N"
        )
    return (rank, of), f"SLURM_PROCID={rank} of SLURM_NTASKS={of}"


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not text.isdecimal():
        raise UsageError(f"--shard auto: {name} is {text!r}; expected a number of 0 or more; pass --shard I/N")
    return int(text)
