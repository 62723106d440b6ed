"""`meddinov3-stroke <verb>`: finds the stage of a verb and runs it. Stages are imported only when asked for."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from meddinov3_stroke import __version__
from meddinov3_stroke.system.provenance import DISCLAIMER

PROG = "meddinov3-stroke"

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("commands.demo", "make a phantom cohort and run the whole pipeline on it, with no weights and no network"),
    "predict": ("ich_infer", "haemorrhage probabilities, suspicious slices and similarity maps of head CTs"),
    "embed": ("meddinov3_infer", "slice embeddings and patch-similarity maps of head CTs"),
    "inspect": ("commands.inspect", "studies and series of a DICOM folder or archive, each with a verdict and reason"),
    "convert": ("commands.convert", "DICOM or NIfTI -> NIfTI, optionally reoriented and resampled"),
    "prepare-rsna": ("commands.prepare_rsna", "the Kaggle RSNA folder -> header index, series CSV and slice labels"),
    "prepare-cohort": ("commands.prepare_cohort", "CQ500, PhysioNet CT-ICH or BHSD -> the same series table"),
    "extract": ("commands.extract", "series CSV -> one row of features each, unsplit, for test-head"),
    "train-rsna": ("rsna_train", "series CSV -> split, cached features, trained and tested head"),
    "sweep": ("commands.sweep", "views and kinds of head compared by cross-validation; the best one is kept"),
    "status": ("commands.status", "how every input of a run has ended so far"),
    "store": ("commands.store", "compact a cache of embeddings into Parquet shards, verify it, or collect its garbage"),
    "split": ("rsna_split", "series CSV -> train, validation and test by patient"),
    "train-head": ("head_train", "train a head on embeddings and labels in .npy files"),
    "test-head": ("head_eval", "evaluate a head on embeddings and labels in .npy files"),
    "evaluate": ("commands.evaluate", "evaluate a table of labels and scores, with intervals by patient"),
    "phantom": ("commands.phantom", "synthetic head CT with haemorrhages, masks and a series CSV"),
    "doctor": ("commands.doctor", "check that this machine has what the commands need, and name each fix"),
    "download": ("commands.download", "fetch the MedDINOv3 weights, or ask their size"),
    "calibrate": ("commands.calibrate", "make an int8 backbone on your volumes and measure whether it may be used"),
    "convert-weights": (
        "commands.convert_weights",
        "convert pickled weights to safetensors without running their code",
    ),
}
"""Verb -> (module of the stage, what it does in one line)."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the verb named first in `argv` (by default the command line)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"{PROG} {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        near = difflib.get_close_matches(verb.replace("_", "-"), VERBS)
        advice = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(VERBS)}"
        print(f"E-USAGE: no verb {verb!r}; {advice}", file=sys.stderr)
        return 2
    stage = importlib.import_module(f"meddinov3_stroke.{VERBS[verb][0]}")
    return int(stage.main(rest, prog=f"{PROG} {verb}"))


def overview() -> str:
    """What `--help` prints: every verb with a line of its own."""
    width = max(map(len, VERBS))
    lines = [
        f"usage: {PROG} <verb> [flags]     ({PROG} <verb> --help lists the flags of a verb)\n",
        "Intracranial haemorrhage on non-contrast head CT by a frozen MedDINOv3 and a light head.",
        f"{DISCLAIMER.capitalize()}.\n",
        *(f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()),
    ]
    return "\n".join(lines)
