"""Stage `calibrate`: on the user's volumes, an int8 backbone made and measured, or tokens without air judged."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from jaxtyping import Float32, Float64, Int8, Int64

from meddinov3_stroke import config
from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.backbone.int8 import quantize_graph, quantizer_settings, require_quantizer, save_graph
from meddinov3_stroke.backbone.loading import WeightsFile, cosines
from meddinov3_stroke.backbone.openvino_engine import OpenVINOEngine, build_graph
from meddinov3_stroke.backbone.records import LEAST_INT8_COSINE, Calibration, calibration_folder, write_calibration
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.ct.scope import judge, require_in_scope
from meddinov3_stroke.errors import CheckpointError, DatasetError, MissingInput, SplitError, UsageError
from meddinov3_stroke.features import FeatureExtractor, extract, pool_slices, select_slices
from meddinov3_stroke.heads import HeadCheckpoint, check_backbone, load_checkpoint, predict_logits
from meddinov3_stroke.metrics import Patients, auroc_report, compare
from meddinov3_stroke.options import ForceOption
from meddinov3_stroke.system.atomic import require_writable, write_json
from meddinov3_stroke.system.command import ConsoleOptions, Range, run_command
from meddinov3_stroke.system.progress import progress_bar
from meddinov3_stroke.system.provenance import ending, provenance
from meddinov3_stroke.types import LABELS, HeadData, SliceSelection, VolumeInput, VolumeSource, sigmoid
from meddinov3_stroke.views import View

LOGGER = logging.getLogger("meddinov3_stroke")

N_FOLDS = 5
LINEAR_HEAD = HeadConfig(hidden_dim=0, dropout=0.0, epochs=100, lr=1e-2, weight_decay=1e-1)
"""What judges `--tokens head`."""

Tokens = Float32[np.ndarray, "_ dim"]
InputPaths = Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-i"])]


@dataclass(frozen=True, kw_only=True)
class Args(ForceOption, ConsoleOptions):
    """Quantize the backbone to int8 on some of your volumes and measure its fidelity on others; or, with --tokens head,
    measure on your labelled volumes what heads lose without the patches of air."""

    tokens: Literal["all", "head"] = "all"
    """head: no int8; the AUROC of cross-validated linear heads on embeddings by --tokens head and by all tokens."""

    series_csv: Path | None = None
    """Series CSV whose volumes are used; patients are never on both sides."""
    exclude_ids: Path | None = None
    """Text file of IDs, one a line: patients of the series CSV named there by patient, study or series ID are not used
    (those of a test cohort, say)."""
    input: InputPaths = ()
    """Volumes (.nii, .nii.gz, DICOM folder or archive) instead of a series CSV; at least two."""
    backbone: str | None = None
    """Weights file (.pth, .safetensors) or a registered name such as demo (default: MEDDINOV3_CKPT_PATH)."""
    checkpoint: Path | None = None
    """Head whose AUROC in fp32 and int8 is compared on the held-out volumes of the series CSV."""
    resize: Annotated[int, Range(1)] = config.RESIZE
    """Side in pixels of the square the backbone sees; int8 then takes this size and no other."""
    batch: Annotated[int, Range(1)] = config.BATCH
    """Slices in a forward pass."""
    check_share: float = config.INT8_CHECK_SHARE
    """Share of volumes (of patients, where known) that calibration does not see and int8 is measured on."""
    calibration_slices: Annotated[int, Range(1)] = config.INT8_CALIBRATION_SLICES
    """At most this many slices to quantize on, evenly from the calibration volumes."""
    check_volumes: Annotated[int, Range(1)] = config.INT8_CHECK_VOLUMES
    """At most this many held-out volumes to measure on, every slice of each."""
    seed: Annotated[int, Range(0)] = config.SEED
    """Seed of the choice of volumes."""


def run(args: Args) -> Calibration | dict[str, Any]:
    """The record of the calibration, saved beside the int8 graph in the user's cache folder; with `tokens` head the
    document of the comparison, saved there too."""
    _check_flags(args)
    require_writable(config.engine_cache())
    return compare_tokens(args) if args.tokens == "head" else calibrate_int8(args)


def calibrate_int8(args: Args) -> Calibration:
    """Make the int8 graph, measure it, and save both."""
    inputs, groups, labels = _volumes(args)
    to_calibrate, to_check = hold_out(groups, args.check_share, args.seed)
    to_check = to_check[: args.check_volumes]
    require_quantizer()
    source = args.backbone or config.load_settings().meddinov3_ckpt_path
    fp32 = load_backbone(source, "openvino", "fp32", "cpu")
    head = None if args.checkpoint is None else load_checkpoint(args.checkpoint)
    for warning in () if head is None else check_backbone(head, fp32.identity, args.resize):
        LOGGER.warning("%s", warning)
    weights = WeightsFile.find(source).weights()
    pixels, calibrated = _calibration_slices(args, [inputs[k] for k in to_calibrate], fp32)
    LOGGER.info("quantizing on %d slices of %d volumes; this takes minutes", len(pixels), len(calibrated))
    graph = quantize_graph(build_graph(weights, args.resize, class_tokens_only=True), pixels)
    engine = OpenVINOEngine(lambda side: graph, "int8", lambda side: graph)
    int8 = Backbone(replace(fp32.identity, precision="int8"), "cpu", lambda: engine)
    checked, tokens = _measure(args, [inputs[k] for k in to_check], fp32, int8)
    if copies := {one.pixels_sha256 for one in calibrated} & {one.pixels_sha256 for one in checked}:
        raise SplitError(
            f"{len(copies)} volume(s) to measure on hold the same pixels as one calibrated on, under another name; "
            "remove the copies"
        )
    found = np.concatenate([cosines(*pair) for pair in zip(tokens["int8"], tokens["fp32"], strict=True)])
    folder = calibration_folder(config.engine_cache(), fp32.identity.weights_sha256)
    calibration = Calibration(
        weights_sha256=fp32.identity.weights_sha256,
        resize=args.resize,
        graph_sha256=save_graph(graph, folder),
        cls_cosine_min=float(found.min()),
        cls_cosine_mean=float(found.mean()),
        n_calibration_volumes=len(calibrated),
        n_calibration_slices=len(pixels),
        n_check_volumes=len(checked),
        n_check_slices=len(found),
        calibration_inputs_sha256=tuple(one.sha256 for one in calibrated),
        check_inputs_sha256=tuple(one.sha256 for one in checked),
        settings={**quantizer_settings(), "seed": str(args.seed)},
        auroc=None if head is None or labels is None else auroc_change(head, tokens, labels[to_check]),
    )
    write_calibration(folder, calibration)
    print("\n".join([*_summary(calibration), ending(f"int8 CLS cosine {calibration.cls_cosine_min:.6f}", folder)]))
    return calibration


def _check_flags(args: Args) -> None:
    if (args.series_csv is None) == (not args.input):
        raise UsageError("name the volumes by --series-csv or by --input, one of the two")
    if args.checkpoint is not None and args.series_csv is None:
        raise UsageError("--checkpoint: AUROC needs labels, which only --series-csv brings")
    if args.tokens == "head" and (args.series_csv is None or args.checkpoint is not None):
        raise UsageError("--tokens head: heads are fitted to the labels of --series-csv; pass it, and no --checkpoint")
    if args.exclude_ids is not None and args.series_csv is None:
        raise UsageError("--exclude-ids: IDs of patients belong to --series-csv")
    if not 0 < args.check_share < 1:
        raise UsageError(f"--check-share {args.check_share:g}: expected a share between 0 and 1")


def _volumes(args: Args) -> tuple[list[VolumeInput], list[str], Int8[np.ndarray, "n label"] | None]:
    """The volumes, what of each must not be on both sides (patient, study or file), and their labels if known."""
    if args.series_csv is None:
        return [VolumeInput(path) for path in args.input], [str(path.resolve()) for path in args.input], None
    from meddinov3_stroke.data import read_series_table

    settings = config.load_settings()
    table = read_series_table(args.series_csv, datasets_dir=settings.datasets_dir, exclude_ids=args.exclude_ids)
    for warning in table.exclusion.warnings if table.exclusion else ():
        LOGGER.warning("%s", warning)
    inputs = [named for named in table.inputs if named is not None]
    if len(inputs) < len(table.inputs):
        row = table.rows[list(table.inputs).index(None)]
        raise MissingInput(f"{table.name} row {row}: nifti_path is empty; fix the row")
    return inputs, list(table.groups), table.labels


def hold_out(groups: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions of the volumes (to calibrate on, to measure on), drawn by group in an order that `seed` decides."""
    names = sorted(set(groups))
    if len(names) < 2:
        raise DatasetError(
            f"int8 calibration needs volumes of at least 2 patients, found {len(names)}: some to calibrate on, others "
            "to measure on; name more volumes"
        )
    rank = {names[k]: place for place, k in enumerate(np.random.default_rng(seed).permutation(len(names)))}
    n_held_out = min(max(1, round(share * len(names))), len(names) - 1)
    shuffled = sorted(range(len(groups)), key=lambda k: rank[groups[k]])
    n_check = sum(rank[group] < n_held_out for group in groups)
    return shuffled[n_check:], shuffled[:n_check]


def _calibration_slices(
    args: Args, inputs: Sequence[VolumeInput], backbone: Backbone
) -> tuple[Float32[np.ndarray, "n 1 row col"], list[VolumeSource]]:
    most = args.calibration_slices
    selection = SliceSelection(max_slices=math.ceil(most / min(most, len(inputs))))
    windows, sources = [], []
    for volume in map(read_volume, inputs[:most]):
        if not args.force:
            require_in_scope(judge(volume).document(), volume.source.path)
        windows.append(backbone.prepare(volume.hu_slices(select_slices(volume.n_slices, selection)), args.resize))
        sources.append(volume.source)
    return np.concatenate(windows)[:most], sources


def _measure(
    args: Args, inputs: Sequence[VolumeInput], fp32: Backbone, int8: Backbone
) -> tuple[list[VolumeSource], dict[str, list[Tokens]]]:
    plain, quantized = (FeatureExtractor(one, args.resize, args.batch) for one in (fp32, int8))
    sources: list[VolumeSource] = []
    tokens: dict[str, list[Tokens]] = {"fp32": [], "int8": []}
    with progress_bar("measuring", len(inputs), "volumes", args.show_progress) as advance:
        for found in extract(inputs, plain, keep_volume=True, force=args.force):
            if found.error is not None:
                raise found.error
            assert found.embeddings is not None
            assert found.volume is not None
            tokens["fp32"].append(found.embeddings.cls)
            tokens["int8"].append(quantized.embed(found.volume, found.embeddings.scope).cls)
            sources.append(found.volume.source)
            advance()
    return sources, tokens


def auroc_change(
    head: HeadCheckpoint, tokens: Mapping[str, Sequence[Tokens]], labels: Int8[np.ndarray, "n label"]
) -> dict[str, Any]:
    """Macro and per-class AUROC of the head on fp32 and on int8 tokens of the same volumes, and their difference."""
    reports = {name: auroc_report(labels, _probabilities(head, tokens[name]), head.labels) for name in ("fp32", "int8")}
    macros = [report.macro for report in reports.values()]
    return {
        **{name: {"macro": report.macro, "per_class": report.per_class} for name, report in reports.items()},
        "macro_change": None if None in macros else macros[1] - macros[0],  # type: ignore[operator]
        "n_volumes": len(labels),
        "head_sha256": head.sha256,
    }


def _probabilities(head: HeadCheckpoint, tokens: Sequence[Tokens]) -> Float64[np.ndarray, "volume label"]:
    mode = head.pool_mode
    if mode == "slice":  # the label of a series is the maximum over its slices
        return np.stack([predict_logits(head, cls).probabilities.max(axis=0) for cls in tokens])
    if mode not in ("mean", "max", "mean_max"):
        raise CheckpointError(f"the head states pool mode {mode!r}; expected slice, mean, max or mean_max; retrain it")
    return predict_logits(head, np.stack([pool_slices(cls, mode) for cls in tokens])).probabilities


def compare_tokens(args: Args) -> dict[str, Any]:
    """AUROC of linear heads on mean-pooled class tokens, those of the head against those of all patches.

    The heads are fitted by cross-validation that keeps patients together, on the same folds; the interval of the
    difference resamples patients.
    """
    inputs, groups, labels = _volumes(args)
    assert labels is not None  # they come with the series CSV
    source = args.backbone or config.load_settings().meddinov3_ckpt_path
    views = (View(), View(head_only=True))
    extractor = FeatureExtractor(load_backbone(source), args.resize, args.batch, views=views)
    rows: dict[str, list[Tokens]] = {view.name: [] for view in views}
    with progress_bar("measuring", len(inputs), "volumes", args.show_progress) as advance:
        for found in extract(inputs, extractor, keep_views=True, force=args.force):
            if found.error is not None:
                raise found.error
            for name, entry in found.entries.items():
                rows[name].append(pool_slices(entry.arrays["cls"], "mean"))
            advance()
    folds = _folds(groups, args.seed)
    usable = [k for k in range(labels.shape[1]) if _has_both(labels[:, k], folds)]
    if not usable:
        raise DatasetError(
            f"--tokens head needs, for a label, positive and negative volumes in every fold of patients; none of "
            f"{len(labels)} volumes of {len(set(groups))} patients has them; name more volumes"
        )
    of_all, of_head = (_held_out_scores(np.stack(one), labels[:, usable], folds, args.seed) for one in rows.values())
    names = [LABELS[k] for k in usable]
    patients = Patients.of(groups, len(labels), seed=args.seed)
    document = {
        **provenance(),
        "backbone": asdict(extractor.backbone.identity),
        "resize": args.resize,
        "n_volumes": len(labels),
        "n_patients": patients.n,
        "head": f"linear, on the mean of class tokens, {int(folds.max()) + 1} folds of patients, seed {args.seed}",
        "first": "head tokens",
        "second": "all tokens",
        "labels": compare(labels[:, usable], of_head, of_all, names, patients),
        "not_judged": [label for label in LABELS if label not in names],
    }
    folder = calibration_folder(config.engine_cache(), extractor.backbone.identity.weights_sha256)
    write_json(folder / f"tokens_{args.resize}.json", document)
    lines = [_difference(name, found["auroc"]) for name, found in document["labels"].items()]
    if document["not_judged"]:
        lines.append(f"not judged, for too few positive or negative patients: {', '.join(document['not_judged'])}")
    print("\n".join([*lines, ending(f"head tokens against all tokens on {len(labels)} volumes", folder)]))
    return document


def _folds(groups: Sequence[str], seed: int) -> Int64[np.ndarray, " volume"]:
    """The fold of each volume, by patient."""
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(names))[index] % min(N_FOLDS, len(names)))


def _has_both(truth: Int8[np.ndarray, " volume"], folds: Int64[np.ndarray, " volume"]) -> bool:
    """Whether every fold leaves positives and negatives to fit on."""
    return all(0 < truth[folds != fold].sum() < (folds != fold).sum() for fold in np.unique(folds))


def _held_out_scores(
    rows: Tokens, labels: Int8[np.ndarray, "volume label"], folds: Int64[np.ndarray, " volume"], seed: int
) -> Float64[np.ndarray, "volume label"]:
    from meddinov3_stroke.heads.training import positive_weights, train_epochs

    setting = replace(LINEAR_HEAD, seed=seed)
    scores = np.empty(labels.shape)
    for fold in np.unique(folds):
        held = folds == fold
        mean, spread = rows[~held].mean(axis=0), rows[~held].std(axis=0) + 1e-6
        train, val = (HeadData((rows[some] - mean) / spread, labels[some]) for some in (~held, held))
        *_, last = train_epochs(train, val, setting, positive_weights(train.labels, config.POS_WEIGHT_CAP))
        assert last.val_logits is not None
        scores[held] = sigmoid(last.val_logits)
    return scores


def _difference(label: str, found: Mapping[str, Any]) -> str:
    interval = found["interval"]
    text = f"{label}: AUROC {found['first']:.4f} of head tokens, {found['second']:.4f} of all; difference "
    if interval["low"] is None:
        return f"{text}{found['difference']:+.4f}, without an interval: {interval['reason']}"
    low, high = interval["low"], interval["high"]
    verdict = "head tokens are worse" if high < 0 else "head tokens are better" if low > 0 else "none shown"
    return f"{text}{found['difference']:+.4f} [{low:+.4f}, {high:+.4f}]: {verdict}"


def _summary(found: Calibration) -> list[str]:
    lines = [
        f"int8 on {found.n_check_slices} slices of {found.n_check_volumes} held-out volumes: CLS cosine to fp32 at "
        f"least {found.cls_cosine_min:.6f}, mean {found.cls_cosine_mean:.6f}",
        f"quantized on {found.n_calibration_slices} slices of {found.n_calibration_volumes} other volumes, at "
        f"{found.resize} x {found.resize}",
    ]
    auroc: Any = found.auroc
    if auroc is not None and auroc["macro_change"] is None:
        lines.append(f"macro AUROC is undefined on these {auroc['n_volumes']} volumes: no label has both classes")
    elif auroc is not None:
        macros = f"{auroc['fp32']['macro']:.4f} in fp32, {auroc['int8']['macro']:.4f} in int8"
        lines.append(f"macro AUROC {macros} ({auroc['macro_change']:+.4f})")
    if found.is_faithful:
        return [*lines, "int8 may be used with --precision int8"]
    return [*lines, f"below {LEAST_INT8_COSINE}: --precision int8 is refused unless --accept-int8 is given"]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
