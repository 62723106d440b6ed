"""Seconds until something happens: the command's help, the import, the backbone loaded, a volume predicted.

This module imports no torch at its top: its child measures what that costs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bars import Bar, judged
from benchmarks.children import ROOT, told_by
from benchmarks.rounds import Seconds, median, seconds_of, take_turns
from benchmarks.table import Table

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

FIRST, AGAIN = "load_backbone, first time", "load_backbone, graph kept"

PREDICT = "predict one volume"

PREDICT_SLICES = 30
"""Of the volume that is predicted."""


def measure(quick: bool) -> Table:
    """Median wall seconds of each start, and those above a bare interpreter."""
    rounds, loads = (2, 1) if quick else (7, 3)
    seconds = take_turns({name: started(arguments) for name, arguments in COMMANDS.items()}, rounds)
    seconds |= load_seconds(quick, loads)
    seconds |= take_turns({PREDICT: predicting(quick)}, loads)
    rows = [row(name, seconds) for name in seconds]
    notes = [
        *judged(quick, verdicts(seconds)),
        f"starts: median of {rounds} rounds that take turns, files in the system's cache; loads: median of {loads}, "
        "load_backbone and one slice in a fresh process, imports of torch and OpenVINO within; the first time tries "
        "bf16 against fp32 and converts the graph, which is then kept",
        f"predict: the whole command on {PREDICT_SLICES} slices of 512 x 512 with a made-up head, graph kept",
    ]
    return Table("cold_start", "Cold start", rows, notes)


def verdicts(seconds: Seconds) -> list[str]:
    """What the bars come to."""
    importing = median(seconds, "import meddinov3_stroke") - median(seconds, BARE)
    return [
        HELP_S.verdict("--help", median(seconds, "--help")),
        HELP_S.verdict("predict --help", median(seconds, "predict --help")),
        IMPORT_S.verdict("import, above a bare interpreter", importing),
    ]


def started(arguments: tuple[str, ...], settings: Mapping[str, str] | None = None) -> Callable[[], Any]:
    """Runs a fresh interpreter to its end."""
    environment = {**os.environ, **(settings or {})}
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


def load_seconds(quick: bool, loads: int) -> dict[str, list[float]]:
    """Seconds of first and later loads, each in a process of its own."""
    from benchmarks.workspace import workspace

    place = workspace(quick)
    seconds: dict[str, list[float]] = {FIRST: [], AGAIN: []}
    for k in range(loads):
        models_dir = place.folder / f"cold_start_{k}"
        for name in seconds:
            seconds[name].append(told_by("benchmarks.cold_start", place.weights, models_dir)["seconds"])
        shutil.rmtree(models_dir)
    return seconds


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
    return started(arguments, {"MODELS_DIR": str(place.models_dir)})


def made_up_head(identity: BackboneIdentity, folder: Path) -> Path:
    """The checkpoint of a head that learned nothing, for embeddings of this backbone."""
    from benchmarks.head_training import made_up
    from benchmarks.workspace import RESIZE
    from meddinov3_stroke.config import HeadConfig
    from meddinov3_stroke.head_train import train_head
    from meddinov3_stroke.types import LABELS, HeadContext, HeadData

    sides = [made_up(200, seed) for seed in (1, 2)]
    train, val = (HeadData(side.embeddings[:, : identity.embed_dim], side.labels) for side in sides)
    context = HeadContext("mean", RESIZE, asdict(identity), LABELS)
    train_head(train, val, HeadConfig(epochs=1), context, folder, progress=False)
    return folder / "best.pt"


def row(name: str, seconds: Seconds) -> dict[str, Any]:
    """A row of the table."""
    found = median(seconds, name)
    in_process = name in (FIRST, AGAIN)  # measured within the process, so without the interpreter's own start
    return {
        "start": name,
        "seconds": found,
        "above_bare_python_s": found - (0 if in_process else median(seconds, BARE)),
    }


def load_once(weights: Path, models_dir: Path) -> dict[str, float]:
    """Seconds from the first import to the first class token."""

    def load() -> None:
        import numpy as np

        from meddinov3_stroke.backbone import load_backbone

        backbone = load_backbone(weights, device="cpu", models_dir=models_dir)
        backbone.class_tokens(np.zeros((1, 1, 224, 224), np.float32))

    return {"seconds": seconds_of(load)}


if __name__ == "__main__":
    print(json.dumps(load_once(Path(sys.argv[1]), Path(sys.argv[2]))))
