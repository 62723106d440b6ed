"""Stage `embed`: one head CT -> slice embeddings, their mean, and a patch-similarity map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from meddinov3_stroke import config
from meddinov3_stroke.cases import Cases, EndedCase, case_id, require_own_folder
from meddinov3_stroke.ct.scope import scope_warnings
from meddinov3_stroke.errors import AmbiguousInput, Outcome
from meddinov3_stroke.explain import demo_warnings, is_demo, parse_patch, patch_similarity, sim_slice_index
from meddinov3_stroke.options import CaseOptions, OptionalOutputDir
from meddinov3_stroke.report import map_document, origin_document
from meddinov3_stroke.system import names
from meddinov3_stroke.system.atomic import require_writable, write_bytes, write_json, write_npy
from meddinov3_stroke.system.command import Range, log_warnings, run_command
from meddinov3_stroke.system.progress import console, slice_progress
from meddinov3_stroke.system.provenance import SUMMARY_NAME, Stopwatch, ending, memory_statistics, provenance
from meddinov3_stroke.types import SliceEmbeddings, Volume, VolumeInput

if TYPE_CHECKING:
    from meddinov3_stroke.backbone import Backbone
    from meddinov3_stroke.batch import Compute
    from meddinov3_stroke.features import FeatureExtractor
    from meddinov3_stroke.features.extract import OnSlices
    from meddinov3_stroke.report.pictures import SliceMap


@dataclass(frozen=True, kw_only=True)
class Args(CaseOptions):
    """Embed the slices of head CTs with the frozen backbone and draw patch-similarity maps."""

    output_dir: OptionalOutputDir = None
    """Folder for embeddings, similarity map and summary.json; of several inputs, for results.csv and a folder for each
    case (default: outputs/meddinov3_<case id>, or outputs/meddinov3_cases)."""
    resize: Annotated[int, Range(1)] = config.RESIZE
    """Side in pixels of the square the backbone sees; a multiple of 16."""
    sim_slice: Annotated[int, Range(-1)] = config.SIM_SLICE
    """Slice of the similarity map, 0-based, inferior to superior; -1 is the middle one."""
    sim_patch: str = config.SIM_PATCH
    """Reference patch of the map: center, or row,column in the patch grid, 0-based."""

    def compute_on(self, device: str) -> tuple[Compute, dict[str, Any]]:
        """What computes cases on a device, and the settings that decide the results."""
        stage = _Embedding.on(self, device)
        return stage.compute, stage.settings()


@dataclass(frozen=True, eq=False)
class EmbeddedCase(EndedCase):
    """The embeddings of a case and its similarity map."""

    path: Path
    embeddings: SliceEmbeddings
    similar: SliceMap
    backbone: Backbone
    elapsed_s: float | None = None  # of a single case; in a batch passes hold slices of several cases
    embed_s: float | None = None
    outcome: Outcome = field(default_factory=Outcome)
    sha256 = property(attrgetter("embeddings.source.sha256"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the input and the backbone."""
        return (*self.embeddings.warnings, *demo_warnings(self.embeddings.backbone), *self.backbone.warnings)

    def row(self) -> dict[str, Any]:
        """Its columns of `results.csv`."""
        n_embedded, in_scope = len(self.embeddings.slice_indices), self.embeddings.scope.get("in_scope")
        counts = {"n_slices": self.embeddings.n_slices, "n_slices_embedded": n_embedded}
        found = {"valid": 1, "in_scope": None if in_scope is None else int(in_scope), **counts}
        return {**found, "warnings": " | ".join(self.warnings)}

    def document(self) -> dict[str, Any]:
        """`summary.json` of the case."""
        found, n_embedded = self.similar.similarity, len(self.embeddings.slice_indices)
        return {
            **provenance(),
            **origin_document(self.embeddings, self.backbone.device),
            "pool_mode": "slice",
            "similarity": {
                **map_document("the reference patch", self.similar.grid),
                "slice_index": self.similar.slice_index,
                "position_mm": list(self.similar.position_mm),
                "patch": self.similar.patch and list(self.similar.patch),
                "minimum": float(found.min()),
                "mean": float(found.mean()),
                "maximum": float(found.max()),
            },
            "elapsed_s": self.elapsed_s and round(self.elapsed_s, 4),
            "embed_s": self.embed_s and round(self.embed_s, 6),
            "slices_per_s": self.embed_s and round(n_embedded / self.embed_s, 3),
            "memory": memory_statistics(self.backbone.device),
            "warnings": list(self.warnings),
        }

    def save(self, folder: Path | str) -> dict[str, Path]:
        """Name -> path of the files written into `folder`; `summary.json` is written last."""
        from meddinov3_stroke.features import pool_slices
        from meddinov3_stroke.report.pictures import slice_picture

        arrays = {
            "meddinov3_slice_embeddings.npy": self.embeddings.cls,
            "slice_indices.npy": self.embeddings.slice_indices,
            "embedding_mean.npy": pool_slices(self.embeddings.cls, "mean"),
            "similarity_map.npy": self.similar.similarity,
        }
        files = {name: Path(folder) / name for name in (*arrays, "similarity_map.png", SUMMARY_NAME)}
        for name, array in arrays.items():
            write_npy(files[name], array)
        demo, notices = is_demo(self.embeddings.backbone.name), scope_warnings(self.embeddings.scope)
        picture = slice_picture(self.similar, demo, notices, self.embeddings.source.label)
        write_bytes(files["similarity_map.png"], picture)
        write_json(files[SUMMARY_NAME], self.document())
        return files


@dataclass(frozen=True, eq=False)
class _Embedding:
    """The stage for one case or many, with the backbone loaded."""

    args: Args
    extractor: FeatureExtractor
    patch: tuple[int, int]
    watch: Stopwatch  # runs since before the backbone was loaded

    def check(self, volume: Volume) -> None:
        sim_slice_index(self.args.sim_slice, volume.n_slices)  # a wrong flag costs no forward pass

    def finish(self, volume: Volume, embeddings: SliceEmbeddings) -> EmbeddedCase:
        index, backbone = sim_slice_index(self.args.sim_slice, volume.n_slices), self.extractor.backbone
        similar = _similarity(index, self.patch, volume, self.extractor)
        return EmbeddedCase(volume.source.path, embeddings, similar, backbone)

    def one(self, source: VolumeInput) -> dict[str, Any]:
        from meddinov3_stroke.features import extract_one

        args, started_s = self.args, self.watch.elapsed_s

        def check(volume: Volume) -> None:
            self.check(volume)
            if args.output_dir is not None and not args.overwrite:
                require_own_folder(args.output_dir, volume.source.sha256)

        with slice_progress(args.show_progress) as on_slices, self.extractor.warming_up():
            volume, embeddings, read_s = extract_one(source, self.extractor, on_slices, check)
        embed_s = self.watch.elapsed_s - started_s - read_s
        case = replace(self.finish(volume, embeddings), elapsed_s=self.watch.elapsed_s, embed_s=embed_s)
        files = case.save(args.output_dir or Path(f"{config.EMBED_OUTPUT_PREFIX}{case_id(case.sha256)}"))
        log_warnings(case.warnings)
        summary = case.document()
        if args.json:
            names.print_document(summary)
        else:
            _print(summary, list(files.values()))
        return summary

    def settings(self) -> dict[str, Any]:
        flags = {name: getattr(self.args, name) for name in ("sim_slice", "sim_patch", "join_series")}
        return {"verb": "embed", **self.extractor.settings(), **flags}

    def compute(self, todo: Iterable[VolumeInput], on_slices: OnSlices | None = None) -> Iterator[EndedCase]:
        from meddinov3_stroke.batch import map_cases

        return map_cases(
            todo, self.extractor, self.finish, on_slices=on_slices, check=self.check, stage=self.args.stage
        )

    @classmethod
    def on(cls, args: Args, device: str) -> _Embedding:
        watch, extractor = Stopwatch(), replace(args, device=device).extractor(args.resize)
        side = extractor.backbone.side(args.resize)
        return cls(args, extractor, parse_patch(args.sim_patch, (side, side)), watch)


def run(args: Args) -> dict[str, Any] | None:
    """The document written as `summary.json`; None for a batch."""
    cases = args.cases()
    require_writable(args.output_dir or Path(config.EMBED_OUTPUT_PREFIX).parent, *args.stage_folders)
    if cases.is_batch:
        _run_batch(args, cases)
        return None
    args.require_no_crew()
    stage = _Embedding.on(args, args.device)
    try:
        return stage.one(cases.inputs[0])
    except AmbiguousInput:
        if args.series is not None:
            raise
    _run_batch(args, args.studies(cases), stage)
    return None


def _run_batch(args: Args, cases: Cases, stage: _Embedding | None = None) -> None:
    from meddinov3_stroke.batch import Batch

    workers = args.crew(args.device)
    stage = stage or _Embedding.on(args, workers.devices[0] if workers else args.device)
    folder = args.output_dir or Path(f"{config.EMBED_OUTPUT_PREFIX}cases")
    batch = Batch(folder, stage.settings(), overwrite=args.overwrite, shard=args.own_shard())
    with nullcontext() if workers else stage.extractor.warming_up():
        batch.run(cases.inputs, stage.compute, args, workers, args.compute_on)


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


def _print(summary: dict[str, Any], files: list[Path]) -> None:
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
