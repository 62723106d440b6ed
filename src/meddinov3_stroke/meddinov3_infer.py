"""Stage `embed`: one head CT -> slice embeddings, their mean, and a patch-similarity map."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddinov3_stroke import config
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.options import BackboneOptions, OptionalOutputDir, OptionalPath, case_name, input_or_first
from meddinov3_stroke.system.command import run_command
from meddinov3_stroke.system.provenance import DISCLAIMER, provenance
from meddinov3_stroke.types import SliceEmbeddings, SliceSelection, Volume

if TYPE_CHECKING:
    from meddinov3_stroke.backbone import Backbone
    from meddinov3_stroke.feature_extractor import FeatureExtractor
    from meddinov3_stroke.report import SliceMap

LOGGER = logging.getLogger("meddinov3_stroke")

MIDDLE = -1
"""--sim-slice for the slice at n_slices // 2."""


@dataclass(frozen=True, kw_only=True)
class Args(BackboneOptions):
    """Embed the slices of one head CT with the frozen backbone and draw a patch-similarity map."""

    input: OptionalPath = None
    """Volume: .nii, .nii.gz, or DICOM as a folder, .zip, .txt list of files or file (default: the first NIfTI in
    input/)."""
    series: str | None = None
    """SeriesInstanceUID to read where a DICOM input holds several (default: by the rule that inspect prints)."""
    output_dir: OptionalOutputDir = None
    """Folder for embeddings, similarity map and summary.json (default: outputs/meddinov3_<case>)."""
    resize: int = config.RESIZE
    """Side in pixels of the square the backbone sees; a multiple of 16."""
    stride: int = config.STRIDE
    """Embed every stride-th slice."""
    max_slices: int = config.MAX_SLICES
    """At most this many slices, evenly spaced; 0 is no limit."""
    sim_slice: int = config.SIM_SLICE
    """Slice of the similarity map, 0-based, inferior to superior; -1 is the middle one."""
    sim_patch: str = config.SIM_PATCH
    """Reference patch of the map: center, or row,column in the patch grid, 0-based."""


def run(args: Args) -> dict[str, Any]:
    """The document written as `summary.json`.

    Raises:
        UsageError: a flag out of range.
        InputError: the volume is missing, corrupt or unsupported.
        OutOfScope: readable, but outside what the model is meant for.
        WeightsError: no weights, or weights that give NaN.
    """
    from meddinov3_stroke.ct import read_volume
    from meddinov3_stroke.feature_extractor import naming
    from meddinov3_stroke.system.statistics import Stopwatch

    watch = Stopwatch()
    path = input_or_first(args.input)
    folder = args.output_dir or Path(f"{config.EMBED_OUTPUT_PREFIX}{case_name(path, args.series)}")
    volume = read_volume(path, series=args.series)
    slice_index = sim_slice_index(args.sim_slice, volume.n_slices)
    extractor = _extractor(args)
    with naming(path):
        similar = _map_slice(args, volume, extractor, slice_index)
        embeddings, embed_s = _embed(args, volume, extractor)
    summary = _summary(embeddings, extractor.backbone, similar, embed_s, watch.elapsed_s)
    _tell(summary, _save(folder, embeddings, similar, summary))
    return summary


def sim_slice_index(sim_slice: int, n_slices: int) -> int:
    """The slice `--sim-slice` names in a volume of `n_slices`.

    Raises:
        UsageError: there is no such slice.
    """
    if sim_slice == MIDDLE:
        return n_slices // 2
    if not 0 <= sim_slice < n_slices:
        raise UsageError(
            f"--sim-slice {sim_slice}: no such slice; expected 0 to {n_slices - 1}, or {MIDDLE} for the middle one"
        )
    return sim_slice


def _extractor(args: Args) -> FeatureExtractor:
    from meddinov3_stroke.feature_extractor import FeatureExtractor

    selection = SliceSelection(stride=args.stride, max_slices=args.max_slices)
    return FeatureExtractor(args.open_backbone(), resize=args.resize, batch=args.batch, selection=selection)


def _map_slice(args: Args, volume: Volume, extractor: FeatureExtractor, slice_index: int) -> SliceMap:
    """The slice of the map and the similarity of its patches; comes first, so that a wrong flag costs no volume."""
    from meddinov3_stroke.explain import parse_patch, patch_similarity
    from meddinov3_stroke.report import SliceMap

    tokens = extractor.tokens(volume, [slice_index])
    assert tokens.patches is not None  # asked for
    patch = parse_patch(args.sim_patch, tokens.grid)
    x, y, z = (float(value) for value in volume.slice_positions_mm[slice_index])
    return SliceMap(
        hu=volume.hu_slices([slice_index])[0],
        spacing_mm=volume.spacing_mm,
        similarity=patch_similarity(tokens.patches[0], tokens.grid, patch),
        patch=patch,
        slice_index=slice_index,
        n_slices=volume.n_slices,
        position_mm=(x, y, z),
    )


def _embed(args: Args, volume: Volume, extractor: FeatureExtractor) -> tuple[SliceEmbeddings, float]:
    """The embeddings and the seconds they took."""
    from meddinov3_stroke.feature_extractor import select_slices
    from meddinov3_stroke.system.progress import progress_bar
    from meddinov3_stroke.system.statistics import Stopwatch

    n_chosen = len(select_slices(volume.n_slices, extractor.selection))
    LOGGER.info("embedding %d of %d slices", n_chosen, volume.n_slices)
    watch = Stopwatch()
    with progress_bar("embedding", n_chosen, "slices", args.show_progress) as advance:
        return extractor.embed(volume, advance), watch.elapsed_s


def _save(folder: Path, embeddings: SliceEmbeddings, similar: SliceMap, summary: dict[str, Any]) -> list[Path]:
    """Paths of the files written, `summary.json` last."""
    from meddinov3_stroke.explain import is_demo
    from meddinov3_stroke.feature_extractor import pool_slices
    from meddinov3_stroke.report import slice_picture
    from meddinov3_stroke.system.atomic import write_bytes, write_json, write_npy

    arrays = {
        "meddinov3_slice_embeddings.npy": embeddings.cls,
        "slice_indices.npy": embeddings.slice_indices,
        "embedding_mean.npy": pool_slices(embeddings.cls, "mean"),
        "similarity_map.npy": similar.similarity,
    }
    for name, array in arrays.items():
        write_npy(folder / name, array)
    write_bytes(folder / "similarity_map.png", slice_picture(similar, is_demo(embeddings.backbone)))
    write_json(folder / "summary.json", summary)
    return [folder / name for name in (*arrays, "similarity_map.png", "summary.json")]


def _summary(
    embeddings: SliceEmbeddings, backbone: Backbone, similar: SliceMap, embed_s: float, elapsed_s: float
) -> dict[str, Any]:
    from meddinov3_stroke.explain import demo_warnings
    from meddinov3_stroke.report import origin_document
    from meddinov3_stroke.system.statistics import memory_statistics

    return {
        **provenance(),
        **origin_document(embeddings, backbone.device),
        "pool_mode": "slice",
        "similarity": _about_map(similar),
        "elapsed_s": round(elapsed_s, 4),
        "embed_s": round(embed_s, 6),
        "slices_per_s": round(len(embeddings.slice_indices) / embed_s, 3),
        "memory": memory_statistics(backbone.device),
        "warnings": [*embeddings.warnings, *demo_warnings(embeddings.backbone), *backbone.warnings],
    }


def _about_map(similar: SliceMap) -> dict[str, Any]:
    from meddinov3_stroke.report import SIMILARITY_RANGE, WINDOW_CENTER, WINDOW_WIDTH

    return {
        "measure": "cosine similarity of patch tokens to the reference patch",
        "slice_index": similar.slice_index,
        "position_mm": list(similar.position_mm),
        "patch": list(similar.patch),
        "grid": list(similar.grid),
        "minimum": float(similar.similarity.min()),
        "mean": float(similar.similarity.mean()),
        "maximum": float(similar.similarity.max()),
        "colour_range": list(SIMILARITY_RANGE),
        "window_hu": {"center": WINDOW_CENTER, "width": WINDOW_WIDTH},
    }


def _tell(summary: dict[str, Any], files: list[Path]) -> None:
    for warning in summary["warnings"]:
        LOGGER.warning("%s", warning)
    gpu = summary["memory"]["gpu_peak_mib"]
    memory = f"peak memory {summary['memory']['cpu_peak_mib']:.0f} MiB" + (f", GPU {gpu:.0f} MiB" if gpu else "")
    similar = summary["similarity"]
    print(
        f"{summary['n_slices_embedded']} of {summary['n_slices']} slices, {summary['embedding_dim']} numbers each, on "
        f"{summary['device']} ({summary['engine']}, {summary['precision']})\n"
        f"{summary['embed_s']:.2f} s to embed ({summary['slices_per_s']:.1f} slices/s), "
        f"{summary['elapsed_s']:.2f} s in all, {memory}\n"
        f"similarity map: slice {similar['slice_index']}, reference patch row {similar['patch'][0]}, column "
        f"{similar['patch'][1]} of {similar['grid'][0]} x {similar['grid'][1]}"
    )
    print("\n".join([*(f"wrote {path}" for path in files), DISCLAIMER]))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
