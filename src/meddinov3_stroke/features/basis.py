"""Principal components of patch tokens: fitting on training series, writing, reading, and the loss of compression."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open

from meddinov3_stroke.backbone import save_safetensors
from meddinov3_stroke.backbone.loading import cosines
from meddinov3_stroke.ct import Source
from meddinov3_stroke.errors import UsageError, WeightsError, WeightsMismatch
from meddinov3_stroke.features.extract import extract
from meddinov3_stroke.features.extractor import FeatureExtractor
from meddinov3_stroke.system.progress import progress_bar
from meddinov3_stroke.system.provenance import provenance
from meddinov3_stroke.types import SliceSelection
from meddinov3_stroke.views import LIMIT, PatchBasis, View

LOGGER = logging.getLogger("meddinov3_stroke")

N_SERIES, SLICES_EACH, N_PATCHES = 512, 8, 65_536
"""At most so many series, evenly spaced in their table, slices of each, and patches in all (ViT-B: 200 MB)."""

INSIDE = 0.9999
"""Share of the fitted patches whose code lies within the limits, in each component."""

METADATA = "patch_basis"
"""Key in the header of a basis file."""


@dataclass(frozen=True, eq=False)
class FittedBasis:
    """A basis, and what it was fitted on and loses, as JSON."""

    view: View
    facts: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """A safetensors file, whole or not at all."""
        assert self.view.basis is not None
        arrays = {name: getattr(self.view.basis, name) for name in ("mean", "components", "scale")}
        document = {**provenance(), **self.facts, "sha256": self.view.basis.sha256}
        save_safetensors(arrays, path, {METADATA: json.dumps(document, sort_keys=True)})

    @classmethod
    def read(cls, path: Path) -> FittedBasis:
        """The basis in a file, its digest checked; raises WeightsError or WeightsMismatch."""
        try:
            with safe_open(path, framework="np") as handle:
                facts = json.loads((handle.metadata() or {})[METADATA])
                basis = PatchBasis(*(handle.get_tensor(name) for name in ("mean", "components", "scale")))
            view = replace(View.parse(facts["view"]), basis=basis)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path} is no readable patch basis ({error!r}); fit one with --basis fit") from error
        if basis.sha256 != facts["sha256"]:
            raise WeightsMismatch(f"{path}: the basis does not match its sha256; fit it again with --basis fit")
        return cls(view, facts)

    def require_origin(self, extractor: FeatureExtractor, where: Path) -> None:
        """Raise WeightsMismatch unless the basis was fitted with the weights and side of `extractor`."""
        expected = _origin(extractor)
        if different := [name for name, value in expected.items() if self.facts[name] != value]:
            listed = "; ".join(f"{name}: found {self.facts[name]}, expected {expected[name]}" for name in different)
            raise WeightsMismatch(f"{where}: fitted on other patch tokens ({listed}); fit one with --basis fit")


def fit_bases(
    views: Sequence[View], inputs: Sequence[Source], extractor: FeatureExtractor, show_progress: bool = False
) -> list[FittedBasis]:
    """A basis for each of the views, fitted on some slices of `inputs`, which must be training series.

    Unusable inputs are counted in the facts. Raises UsageError where there are fewer patches than components.
    """
    chosen = [inputs[k] for k in np.unique(np.linspace(0, len(inputs) - 1, min(N_SERIES, len(inputs))).astype(int))]
    windows = list(dict.fromkeys(view.input for view in views))
    full = tuple(replace(View(), taken="patches", window=view.window, head_only=view.head_only) for view in views)
    wanted = (replace(full[0], taken="cls"), *dict.fromkeys(full))
    sampler = replace(extractor, selection=SliceSelection(max_slices=SLICES_EACH), views=wanted)
    samples: dict[str, list[np.ndarray]] = {window: [] for window in windows}
    with progress_bar("fitting", len(chosen), "volumes", show_progress) as advance:
        for k, found in enumerate(extract(chosen, sampler, keep_views=True)):
            advance()
            for view in wanted[1:] if found.error is None else ():
                patches = found.entries[view.name].arrays["patches"].reshape(-1, extractor.backbone.identity.embed_dim)
                patches = patches[patches.any(axis=1)]  # those left out of the token sequence are zero
                some = np.random.default_rng(k).permutation(len(patches))[: max(1, N_PATCHES // len(chosen))]
                samples[view.input].append(patches[np.sort(some)])
    n_used = len(samples[windows[0]])
    facts = {"n_series": n_used, "n_unusable": len(chosen) - n_used, **_origin(extractor)}
    return [_fitted(view, samples[view.input], facts) for view in views]


def _origin(extractor: FeatureExtractor) -> dict[str, Any]:
    identity = extractor.backbone.identity
    recipe = asdict(identity.preprocessing)
    return {"weights_sha256": identity.weights_sha256, "preprocessing": recipe, "resize": extractor.resize}


def _fitted(view: View, samples: Sequence[np.ndarray], facts: Mapping[str, Any]) -> FittedBasis:
    n_patches, dim = sum(map(len, samples)), 0 if not samples else samples[0].shape[1]
    if view.n_components > min(n_patches - 1, dim):
        raise UsageError(f"view {view.name}: found {n_patches} patches of {dim} channels, too few for its components")
    patches = np.concatenate(samples).astype(np.float32)
    basis = principal_components(patches, view.n_components)
    loss = compression_loss(basis, patches)
    return FittedBasis(replace(view, basis=basis), {"view": view.name, "n_patches": n_patches, **facts, "loss": loss})


def principal_components(patches: Float32[np.ndarray, "n dim"], k: int) -> PatchBasis:
    """The first `k` components, by falling variance, each with its largest entry positive."""
    mean = patches.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = patches - mean
    _, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(patches))
    components = vectors[:, ::-1][:, :k]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=0)[None], axis=0)
    components = np.ascontiguousarray(components * np.sign(largest), dtype=np.float32)
    reach = np.quantile(np.abs(centred @ components), INSIDE, axis=0).clip(np.finfo(np.float32).tiny * LIMIT)
    return PatchBasis(mean, components, (reach / LIMIT).astype(np.float32))


def compression_loss(basis: PatchBasis, patches: Float32[np.ndarray, "n dim"]) -> dict[str, float]:
    """`explained_variance` (share of the variance around the mean that the codes keep), and the median and fifth
    percentile of the cosine of a patch token to what its code stands for."""
    restored = basis.patches(basis.codes(patches))
    error, total = (((one) ** 2).sum(dtype=np.float64) for one in (patches - restored, patches - basis.mean))
    found = cosines(restored, patches)
    percentiles = {"cosine_median": np.median(found), "cosine_p5": np.quantile(found, 0.05)}
    return {"explained_variance": float(1 - error / total), **{name: float(one) for name, one in percentiles.items()}}


def with_views(
    extractor: FeatureExtractor, names: Sequence[str], bases: Sequence[FittedBasis] = ()
) -> FeatureExtractor:
    """The extractor with views by name, and the basis of each compressed one; `cls` goes before patches alone.

    Raises UsageError for an unknown name or a view without a basis.
    """
    views = [View.parse(name) for name in names]
    if views and views[0].on_patches:
        rows = [view for view in views if not view.on_patches] or [replace(views[0], taken="cls", n_components=0)]
        views = [rows[0], *(view for view in views if view != rows[0])]
        LOGGER.info("view %s comes first: pooled features need one row a slice", rows[0].name)
    known = {basis.view: basis.view.basis for basis in bases}
    if unfitted := [view.name for view in views if view.n_components and view not in known]:
        raise UsageError(f"no basis for view {', '.join(unfitted)}; pass --basis fit, fit-all or FILE")
    return replace(extractor, views=tuple(replace(view, basis=known.get(view)) for view in views))
