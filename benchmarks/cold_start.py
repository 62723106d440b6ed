"""Seconds of whole processes: the command's help, the import, a volume embedded and predicted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bars import Bar, judged
from benchmarks.children import ROOT
from benchmarks.rounds import Seconds, median, take_turns, times_as_fast
from benchmarks.table import Table
from meddinov3_stroke.system.devices import bf16_flag

if TYPE_CHECKING:
    from meddinov3_stroke.types import BackboneIdentity

HELP_S, IMPORT_S = Bar(0.5, " s", "less than"), Bar(0.2, " s", "less than")

BARE = "python -c pass"

COMMANDS: Mapping[str, tuple[str, ...]] = {
    BARE: ("-c", "pass"),
    "--help": ("-m", "meddinov3_stroke", "--help"),
    "predict --help": ("-m", "meddinov3_stroke", "predict", "--help"),
    "import meddinov3_stroke": ("-c", "import meddinov3_stroke"),
}
"""What is started in a fresh interpreter."""

PLAIN, FIRST, AGAIN = "plain script", "embed, new weights", "embed, known weights"
"""A whole process each, on the same volume and weights; the plain script is `benchmarks/plain_embed.py`."""

EMBED_SLICES = 28

AGAIN_OVER_PLAIN, FIRST_OVER_PLAIN = Bar(2.2 if bf16_flag() else 1.6, "x"), Bar(1.3 if bf16_flag() else 1.0, "x")

PREDICT = "predict one volume"

PREDICT_SLICES = 30
"""Of the volume that is predicted."""


def measure(quick: bool) -> Table:
    """Median wall seconds of each start, and those above a bare interpreter."""
    rounds, loads = (2, 1) if quick else (7, 3)
    seconds = take_turns({name: started(arguments) for name, arguments in COMMANDS.items()}, rounds)
    seconds |= embed_seconds(quick, loads)
    seconds |= take_turns({PREDICT: predicting(quick)}, loads)
    rows = [row(name, seconds) for name in seconds]
    notes = [
        *judged(quick, [] if quick else verdicts(seconds)),
        f"starts: median of {rounds} rounds that take turns, files in the system's cache; embed: whole processes on "
        f"{EMBED_SLICES} slices of 512 x 512, median of {loads} rounds that take turns; new weights have no record yet",
        f"predict: the whole command on {PREDICT_SLICES} slices of 512 x 512 with a made-up head",
    ]
    return Table("cold_start", "Cold start", rows, notes)


def verdicts(seconds: Seconds) -> list[str]:
    """What the bars come to."""
    importing = median(seconds, "import meddinov3_stroke") - median(seconds, BARE)
    return [
        HELP_S.verdict("--help", median(seconds, "--help")),
        HELP_S.verdict("predict --help", median(seconds, "predict --help")),
        IMPORT_S.verdict("import, above a bare interpreter", importing),
        AGAIN_OVER_PLAIN.verdict(f"{AGAIN}, over the {PLAIN}", times_as_fast(seconds, AGAIN, PLAIN)),
        FIRST_OVER_PLAIN.verdict(f"{FIRST}, over the {PLAIN}", times_as_fast(seconds, FIRST, PLAIN)),
    ]


def started(arguments: tuple[str, ...], settings: Mapping[str, str] | None = None) -> Callable[[], Any]:
    """Runs a fresh interpreter to its end."""
    environment = {**os.environ, **(settings or {})}
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


def embed_seconds(quick: bool, rounds: int) -> dict[str, list[float]]:
    """Seconds of `embed` on one volume, beside the plain script, in rounds that take turns."""
    from benchmarks.heads import write_volume
    from benchmarks.workspace import workspace

    place = workspace(quick)
    volume = write_volume(place.folder / "embed.nii.gz", 4 if quick else EMBED_SLICES, 512, seed=6)
    flags = ("--input", volume, "--backbone", place.weights, "--output-dir", place.folder / "embedded", "--quiet")
    embed = ("-m", "meddinov3_stroke", "embed", *map(str, flags))
    new = count()

    def first() -> None:
        started(embed, {"XDG_CACHE_HOME": str(place.folder / f"new_{next(new)}")})()

    ways = {FIRST: first, AGAIN: started(embed, {"XDG_CACHE_HOME": str(place.cache_dir)})}
    if not quick:  # the quick transformer is not a ViT-B/16
        script = ROOT / "benchmarks" / "plain_embed.py"
        ways[PLAIN] = started((str(script), str(place.weights), str(volume), str(place.folder / "plain.npy")))
    return take_turns(ways, rounds)


def predicting(quick: bool) -> Callable[[], Any]:
    """Runs the command `predict` on one volume, end to end."""
    from benchmarks.heads import write_volume
    from benchmarks.workspace import workspace

    place = workspace(quick)
    volume = write_volume(place.folder / "predict.nii.gz", PREDICT_SLICES, 512, seed=5)
    checkpoint = made_up_head(place.load().identity, place.folder / "head")
    flags = {"--input": volume, "--checkpoint": checkpoint, "--backbone": place.weights}
    flags |= {"--output-dir": place.folder / "predicted"}
    arguments = ("-m", "meddinov3_stroke", "predict", *(str(part) for flag in flags.items() for part in flag))
    return started(arguments, {"XDG_CACHE_HOME": str(place.cache_dir)})


def made_up_head(identity: BackboneIdentity, folder: Path) -> Path:
    """The checkpoint of a head that learned nothing, for embeddings of this backbone."""
    from benchmarks.head_training import made_up
    from benchmarks.workspace import RESIZE
    from meddinov3_stroke.config import HeadConfig
    from meddinov3_stroke.head_train import train_head
    from meddinov3_stroke.heads import HeadContext
    from meddinov3_stroke.types import LABELS, HeadData

    sides = [made_up(200, seed) for seed in (1, 2)]
    train, val = (HeadData(side.embeddings[:, : identity.embed_dim], side.labels) for side in sides)
    context = HeadContext("mean", RESIZE, asdict(identity), LABELS)
    train_head(train, val, HeadConfig(epochs=1), context, folder, progress=False)
    return folder / "best.pt"


def row(name: str, seconds: Seconds) -> dict[str, Any]:
    """A row of the table."""
    found = median(seconds, name)
    return {"start": name, "seconds": found, "above_bare_python_s": found - median(seconds, BARE)}
