"""Verb `evaluate`: a table of labels and scores -> figures with intervals by patient, curves, comparison, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddinov3_stroke import config
from meddinov3_stroke.errors import DatasetError, MedDINOError, UsageError
from meddinov3_stroke.head_eval import EvaluationOptions
from meddinov3_stroke.options import OutputDir
from meddinov3_stroke.system.command import log_warnings, run_command
from meddinov3_stroke.system.provenance import ending, provenance

if TYPE_CHECKING:
    from meddinov3_stroke.data.predictions import PredictionTable
    from meddinov3_stroke.metrics import Patients
    from meddinov3_stroke.types import Threshold

JSON_NAME, PNG_NAME, ERRORS_NAME = "evaluation.json", "evaluation.png", "errors.png"
NO_VALIDATION = "no --validation: the only operating point is the threshold 0.5, which was fixed on no data"
NO_BRIGHTNESS = "the table names no volumes (nifti_path or dicom_path), so the brightness rule is left out"


@dataclass(frozen=True, kw_only=True)
class Args(EvaluationOptions):
    """Evaluate the scores in a table: one row a series, or one row a slice (columns slice_index and n_slices)."""

    table: Path
    """CSV with labels (any, ...), their scores (p_any, ...) and patient_id. A table of slices needs no scores: without
    them only the rules that a model has to beat are evaluated."""
    labels: tuple[str, ...] = ()
    """Labels to evaluate, or NAME=COLUMN where the score is p_NAME and the label stands in COLUMN (default: every
    column that has scores)."""
    validation: Path | None = None
    """A table of the validation patients, on which operating points are fixed (Youden; sensitivity 95 % and 98 %)."""
    compare: Path | None = None
    """A table of the same rows with the scores of another model, for a paired comparison."""
    cases: Path | None = None
    """Output folder of predict, whose slice_probs.npy are the scores of the slices in the table."""
    checkpoint: Path | None = None
    """Head behind the scores: patients and pixels it was trained on are refused (default: none; nothing is checked)."""
    random_embeddings: Path | None = None
    """.npy, a row for each slice of the table: embeddings of a backbone with random weights, as a rule to beat."""
    brightness: bool = True
    """Of slices, read the volumes that the table names and evaluate the brightness rule too."""
    output_dir: OutputDir = config.EVALUATION_DIR
    """Folder for evaluation.json and evaluation.png."""


def run(args: Args) -> dict[str, Any]:
    """The document written as `evaluation.json`."""
    from meddinov3_stroke import metrics
    from meddinov3_stroke.data.predictions import read_predictions
    from meddinov3_stroke.report.errors import errors_png, replace_picture
    from meddinov3_stroke.report.evaluation import evaluation_png, evaluation_table, exposure_text
    from meddinov3_stroke.system.atomic import require_writable, write_bytes, write_json

    require_writable(args.output_dir)
    table = read_predictions(args.table, args.labels, args.cases)
    table = replace(table, datasets_dir=config.load_settings().datasets_dir)
    patients, warnings = metrics.patients_of(table.groups, len(table.labels), args.resamples, args.seed)
    document: dict[str, Any] = {**provenance(), **_about(args, table), **metrics.about_rows(patients)}
    found = [*table.warnings, *warnings]
    _require_scores(args, table)
    found += _exposed(args, table, document)
    if table.slice_indices is not None:
        document["slices"], more = _slices(args, table, patients)
        found += more
    drawn = None
    if table.probabilities is not None:
        held = _validation(args, table)
        thresholds, more = _thresholds(held, table)
        found += [*more, *_not_probabilities(table)]
        document |= metrics.evaluate(
            table.labels,
            table.probabilities,
            table.names,
            patients,
            thresholds,
            prevalence=args.prevalence,
            subgroups={column: table.column(column) for column in args.subgroups},
        )
        scored = table.labels, table.probabilities, table.names
        document["confident_errors"] = metrics.confident_errors(*scored, next(iter(thresholds.values())), args.errors)
        drawn, more = errors_png(document["confident_errors"], table)
        found += more
        document["calibrated"] = _calibrated(args, held, table, patients)
        if args.compare is not None:
            document["comparison"] = _comparison(args.compare, args, table, patients)
    document["warnings"] = found
    log_warnings(found)
    write_json(args.output_dir / JSON_NAME, document)
    write_bytes(args.output_dir / PNG_NAME, evaluation_png(document))
    written = [args.output_dir / JSON_NAME, args.output_dir / PNG_NAME]
    written += replace_picture(args.output_dir / ERRORS_NAME, drawn)
    files = [f"wrote {path}" for path in written]
    files = [exposure_text(document["exposure"]), *files] if "exposure" in document else files
    print("\n".join([evaluation_table(document), *files, ending(_headline(document), args.output_dir, len(found))]))
    return document


def _require_scores(args: Args, table: PredictionTable) -> None:
    # only the rules of slices need no scores of a model
    named = ("validation", "compare", "subgroups", "prevalence")
    needing = [f"--{name}" for name in named if getattr(args, name) not in (None, ())]
    if table.slice_indices is None:
        needing.append("a table without slice_index")
    if table.probabilities is None and needing:
        name = table.names[0]
        raise DatasetError(f"{args.table} has no scores, which {needing[0]} needs; expected p_{name} beside {name}")
    if table.slice_indices is None and args.random_embeddings is not None:
        raise UsageError("--random-embeddings is a rule for slices; expected a table with the column slice_index")


def _exposed(args: Args, table: PredictionTable, document: dict[str, Any]) -> list[str]:
    # records which head saw these rows; warnings
    import numpy as np

    from meddinov3_stroke.data.exposure import digests_of, record_exposure, require_unseen
    from meddinov3_stroke.heads import load_checkpoint
    from meddinov3_stroke.system.digest import sha256_of_document

    test, warnings = digests_of(table.groups, table.pixels), []
    heads = table.heads or (None,)
    if args.checkpoint is not None:
        checkpoint = load_checkpoint(args.checkpoint)
        if table.heads and table.heads != (checkpoint.sha256,):
            raise DatasetError(f"{args.cases} holds cases of another head than {args.checkpoint}; name theirs")
        heads, warnings = (checkpoint.sha256,), require_unseen(checkpoint, test, allow_seen=args.allow_seen)
    if table.probabilities is not None:
        one = heads[0] if len(heads) == 1 else sha256_of_document(heads)
        known = {kind: found for kind, found in test.items() if len(found)}
        whole = {"table": np.array([int(table.csv.sha256[:15], 16)])}
        document["exposure"] = record_exposure(args.exposure_record, known or whole, one, "evaluate")
    return warnings


def _not_probabilities(table: PredictionTable) -> list[str]:
    from meddinov3_stroke.metrics import without_probabilities

    assert table.probabilities is not None
    named = ", ".join(without_probabilities(table.probabilities, table.names))
    advice = "decision curves need probabilities, and calibration and log loss are left out"
    return [f"scores of {named} lie outside 0 to 1: {advice}"] if named else []


def _about(args: Args, table: PredictionTable) -> dict[str, Any]:
    from meddinov3_stroke.system.digest import sha256_of_file

    others = {"validation": args.validation, "compare": args.compare, "random_embeddings": args.random_embeddings}
    inputs = {"table": {"path": str(args.table), "sha256": table.csv.sha256}}
    for name, path in others.items():
        if path is not None and path.is_file():
            inputs[name] = {"path": str(path), "sha256": sha256_of_file(path)}
    return {"inputs": inputs, "cases": args.cases and str(args.cases)}


def _validation(args: Args, table: PredictionTable) -> PredictionTable | None:
    from meddinov3_stroke.data.predictions import read_predictions

    if args.validation is None:
        return None
    held = read_predictions(args.validation, args.labels, args.cases)
    if held.probabilities is None or held.names != table.names:
        raise DatasetError(f"{args.validation}: found scores of other labels; expected {', '.join(table.names)}")
    if shared := set(held.groups or ()) & set(table.groups or ()):
        raise DatasetError(
            f"{args.validation}: {len(shared)} patients are in {args.table} too (first {min(shared)}); fix thresholds "
            "on other patients than those they are tested on"
        )
    return held


def _thresholds(
    held: PredictionTable | None, table: PredictionTable
) -> tuple[Mapping[str, Mapping[str, Threshold]], list[str]]:
    from meddinov3_stroke import metrics
    from meddinov3_stroke.types import Threshold

    if held is None:
        half = Threshold(metrics.DEFAULT_THRESHOLD, "default 0.5: no validation data")
        return {"default": dict.fromkeys(table.names, half)}, [NO_VALIDATION]
    assert held.probabilities is not None
    return metrics.validation_thresholds(held.labels, held.probabilities, held.names), list(held.warnings)


def _calibrated(args: Args, held: PredictionTable | None, table: PredictionTable, patients: Patients) -> dict[str, Any]:
    # as predict calibrated (columns p_calibrated_...), else by a calibration fitted on --validation
    from meddinov3_stroke import metrics
    from meddinov3_stroke.types import Calibrator, logit

    assert table.probabilities is not None
    fitted: dict[str, tuple[Any, Mapping[str, Any]]] = {
        name: (column, {"method": "given"}) for name, column in table.calibrated().items()
    }
    outside = metrics.without_probabilities(table.probabilities, table.names)
    if held is not None and held.probabilities is not None:
        others, _ = metrics.patients_of(held.groups, len(held.labels), 1, args.seed)
        outside += metrics.without_probabilities(held.probabilities, held.names)
        for k, name in enumerate(held.names):
            if name not in (*fitted, *outside):
                logits = logit(held.probabilities[:, k])
                found, _, about = metrics.calibrate(logits, held.labels[:, k], others, n_refits=0)
                found = found or Calibrator("none")
                fitted[name] = found.apply(logit(table.probabilities[:, k])), {"method": found.kind, **about}
    scored = table.labels, table.probabilities, table.names
    return metrics.evaluate_calibrated(*scored, patients, fitted, {}, args.prevalence)


def _slices(args: Args, table: PredictionTable, patients: Patients) -> tuple[dict[str, Any], list[str]]:
    from meddinov3_stroke import metrics
    from meddinov3_stroke.data.predictions import has_volumes, slice_brightness
    from meddinov3_stroke.heads import embedding_matrix, read_array

    embeddings, brightness, warnings = None, None, []
    if args.random_embeddings is not None:
        embeddings = embedding_matrix(read_array(args.random_embeddings), str(args.random_embeddings))
        if len(embeddings) != len(table.labels):
            raise DatasetError(
                f"{args.random_embeddings} has {len(embeddings)} rows; expected {len(table.labels)}, those of the table"
            )
    if args.brightness and has_volumes(table):
        try:
            brightness = slice_brightness(table)
        except MedDINOError as error:
            advice = "fix the path, or leave the brightness rule out with --no-brightness"
            raise type(error)(f"{error}; {advice}") from error
    elif args.brightness:
        warnings.append(NO_BRIGHTNESS)
    found = metrics.evaluate_slices(
        table.labels,
        table.probabilities,
        table.names,
        patients,
        table.heights,
        brightness=brightness,
        random_embeddings=embeddings,
    )
    return found, warnings


def _comparison(path: Path, args: Args, table: PredictionTable, patients: Patients) -> dict[str, Any]:
    from meddinov3_stroke import metrics
    from meddinov3_stroke.data.predictions import read_predictions

    other = read_predictions(path, args.labels)
    if other.probabilities is None or table.probabilities is None:
        raise UsageError(f"--compare {path}: found no scores of {', '.join(table.names)}; expected p_ columns")
    table.require_same_rows(other)
    found = metrics.compare(table.labels, table.probabilities, other.probabilities, table.names, patients)
    return {"first": str(args.table), "second": str(path), "labels": found}


def _headline(document: Mapping[str, Any]) -> str:
    from meddinov3_stroke.report.evaluation import with_interval

    for name, scorers in document.get("slices", {}).get("labels", {}).items():
        if "reason" not in scorers:
            scorer = next(iter(scorers))
            figure = with_interval(scorers[scorer]["position_matched_auroc"])
            return f"{name}: position-matched AUROC {figure} of the {scorer.replace('_', ' ')}"
    return f"macro AUROC {with_interval(document['macro']['auroc'])}" if "macro" in document else "no slice AUROC"


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
