"""Stage `embed`: one head CT -> slice embeddings, their mean, and a patch-similarity map."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from meddinov3_stroke import config
from meddinov3_stroke.cases import case_id, require_own_folder
from meddinov3_stroke.ct.scope import scope_warnings
from meddinov3_stroke.explain import demo_warnings, is_demo, parse_patch, patch_similarity, sim_slice_index
from meddinov3_stroke.options import CaseOptions, OptionalOutputDir, slice_progress
from meddinov3_stroke.report import map_document, origin_document
from meddinov3_stroke.system.atomic import require_writable, write_bytes, write_json, write_npy
from meddinov3_stroke.system.command import Range, run_command
from meddinov3_stroke.system.progress import console
from meddinov3_stroke.system.provenance import Stopwatch, ending, memory_statistics, provenance
from meddinov3_stroke.types import SliceEmbeddings, Volume

if TYPE_CHECKING:
    from meddinov3_stroke.backbone import Backbone
    from meddinov3_stroke.features import FeatureExtractor
    from meddinov3_stroke.report.pictures import SliceMap

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True, kw_only=True)
class Args(CaseOptions):
    """Embed the slices of one head CT with the frozen backbone and draw a patch-similarity map."""

    output_dir: OptionalOutputDir = None
    """Folder for embeddings, similarity map and summary.json (default: outputs/meddinov3_<case id>)."""
    resize: Annotated[int, Range(1)] = config.RESIZE
    """Side in pixels of the square the backbone sees; a multiple of 16."""
    sim_slice: Annotated[int, Range(-1)] = config.SIM_SLICE
    """Slice of the similarity map, 0-based, inferior to superior; -1 is the middle one."""
    sim_patch: str = config.SIM_PATCH
    """Reference patch of the map: center, or row,column in the patch grid, 0-based."""


def run(args: Args) -> dict[str, Any]:
    """The document written as `summary.json`."""
    from meddinov3_stroke.features import extract_one, pool_slices
    from meddinov3_stroke.report.pictures import slice_picture

    watch, source = Stopwatch(), args.source()
    require_writable(args.output_dir or Path(config.EMBED_OUTPUT_PREFIX).parent)
    extractor = args.extractor(args.resize)
    side = extractor.backbone.side(args.resize)
    patch = parse_patch(args.sim_patch, (side, side))
    opened_s = watch.elapsed_s

    def check(volume: Volume) -> None:
        sim_slice_index(args.sim_slice, volume.n_slices)  # a wrong flag costs no forward pass
        if args.output_dir is not None and not args.overwrite:
            require_own_folder(args.output_dir, volume.source.sha256)

    with slice_progress(args.show_progress) as on_slices, extractor.warming_up():
        volume, embeddings, read_s = extract_one(source, extractor, on_slices, check)
    embed_s = watch.elapsed_s - opened_s - read_s
    folder = args.output_dir or Path(f"{config.EMBED_OUTPUT_PREFIX}{case_id(embeddings.source.sha256)}")
    similar = _similarity(sim_slice_index(args.sim_slice, volume.n_slices), patch, volume, extractor)
    summary = _summary(embeddings, extractor.backbone, similar, embed_s)
    summary["elapsed_s"] = round(watch.elapsed_s, 4)
    arrays = {
        "meddinov3_slice_embeddings.npy": embeddings.cls,
        "slice_indices.npy": embeddings.slice_indices,
        "embedding_mean.npy": pool_slices(embeddings.cls, "mean"),
        "similarity_map.npy": similar.similarity,
    }
    for name, array in arrays.items():
        write_npy(folder / name, array)
    write_bytes(
        folder / "similarity_map.png",
        slice_picture(
            similar, is_demo(embeddings.backbone.name), scope_warnings(embeddings.scope), embeddings.source.label
        ),
    )
    write_json(folder / "summary.json", summary)
    _print(summary, [folder / name for name in (*arrays, "similarity_map.png", "summary.json")])
    return summary


def _similarity(index: int, patch: tuple[int, int], volume: Volume, extractor: FeatureExtractor) -> SliceMap:
    from meddinov3_stroke.report.pictures import SliceMap

    tokens = extractor.tokens(volume, [index])
    assert tokens.patches is not None  # asked for
    x, y, z = volume.slice_positions_mm[index].tolist()
    return SliceMap(
        hu=volume.hu_slices([index])[0],
        spacing_mm=volume.spacing_mm,
        similarity=patch_similarity(tokens.patches[0], tokens.grid, patch),
        patch=patch,
        slice_index=index,
        n_slices=volume.n_slices,
        position_mm=(x, y, z),
    )


def _summary(embeddings: SliceEmbeddings, backbone: Backbone, similar: SliceMap, embed_s: float) -> dict[str, Any]:
    found = similar.similarity
    return {
        **provenance(),
        **origin_document(embeddings, backbone.device),
        "pool_mode": "slice",
        "similarity": {
            **map_document("the reference patch", similar.grid),
            "slice_index": similar.slice_index,
            "position_mm": list(similar.position_mm),
            "patch": similar.patch and list(similar.patch),
            "minimum": float(found.min()),
            "mean": float(found.mean()),
            "maximum": float(found.max()),
        },
        "elapsed_s": None,
        "embed_s": round(embed_s, 6),
        "slices_per_s": round(len(embeddings.slice_indices) / embed_s, 3),
        "memory": memory_statistics(backbone.device),
        "warnings": [*embeddings.warnings, *demo_warnings(embeddings.backbone), *backbone.warnings],
    }


def _print(summary: dict[str, Any], files: list[Path]) -> None:
    for warning in summary["warnings"]:
        LOGGER.warning("%s", warning)
    peaks = zip(("peak memory", "GPU"), summary["memory"].values(), strict=True)
    memory = "".join(f", {name} {peak:.0f} MiB" for name, peak in peaks if peak)
    similar = summary["similarity"]
    console().print(
        f"{summary['n_slices_embedded']} of {summary['n_slices']} slices, {summary['embedding_dim']}-dimensional "
        f"embeddings, on {summary['device']} ({summary['engine']}, {summary['precision']})\n"
        f"{summary['embed_s']:.2f} s to embed ({summary['slices_per_s']:.1f} slices/s), "
        f"{summary['elapsed_s']:.2f} s in total{memory}\n"
        f"similarity map: slice {similar['slice_index']}, reference patch row {similar['patch'][0]}, column "
        f"{similar['patch'][1]} of {similar['grid'][0]} x {similar['grid'][1]}; {similar['note']}",
        markup=False,
    )
    demo = is_demo(summary["backbone"]["name"])
    last = ending(f"{summary['n_slices_embedded']} slices embedded", files[0].parent, len(summary["warnings"]), demo)
    print("\n".join([*(f"wrote {path}" for path in files), last]))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
