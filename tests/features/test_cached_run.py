"""A cohort whose embeddings are all cached costs no engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN = """
import json, sys
from pathlib import Path
from meddinov3_stroke.backbone import load_backbone
from meddinov3_stroke.features import EmbeddingStore, FeatureExtractor, extract
weights, cache, *paths = map(Path, sys.argv[1:])
extractor = FeatureExtractor(load_backbone(weights, device="cpu"), resize=64)
ledger = list(extract(paths, extractor, EmbeddingStore(cache)))
print(json.dumps({
    "from_cache": [found.from_cache for found in ledger],
    "engines": [name for name in ("torch", "openvino") if name in sys.modules],
    "first": [float(found.embeddings.cls[0, 0]) for found in ledger],
}))
"""


def run(*arguments: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return dict(json.loads(result.stdout))


def test_a_fully_cached_run_imports_neither_torch_nor_an_engine(
    head_nifti: Callable[..., Path], random_weights: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [head_nifti(f"{k}.nii.gz", seed=k) for k in range(2)]
    weights = random_weights()
    first, second = (run(weights, tmp_path / "cache", *paths) for _ in range(2))
    assert (first["from_cache"], first["engines"][0]) == ([False, False], "openvino")
    assert (second["from_cache"], second["engines"]) == ([True, True], [])
    assert second["first"] == first["first"]
