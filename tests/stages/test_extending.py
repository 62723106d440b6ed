"""The worked examples of docs/extending.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke import ICHPredictor, sweeping
from meddinov3_stroke.cli import main
from meddinov3_stroke.heads import applying, checkpoint, fitting
from meddinov3_stroke.heads.registry import ARCHITECTURES
from meddinov3_stroke.types import LABELS

DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"


def test_the_head_of_the_example_is_compared_and_predicts(
    head_nifti: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    (line,) = re.findall(r'`("\w+": \w+)`', DOCUMENT.read_text(encoding="utf-8"))
    registry = {**ARCHITECTURES, **eval(f"{{{line}}}", scope)}
    for module in (applying, checkpoint, fitting, sweeping):
        monkeypatch.setattr(module, "ARCHITECTURES", registry)
    monkeypatch.chdir(tmp_path)
    rows = [",".join(["nifti_path", "study_uid", *LABELS])]
    rows += [f"{head_nifti(f'{k}.nii.gz', seed=k)},1.{k}" + f",{k % 2}" * 6 for k in range(8)]
    Path("table.csv").write_text("\n".join(rows))
    words = ["sweep", "--series-csv", "table.csv", "--backbone", "demo", "--resize", "64", "--folds", "2", "--quiet"]
    monkeypatch.setattr(sweeping, "REFERENCE", ("cls", "class_means"))  # so that it is the only one, and the best
    assert main([*words, "--heads", "class_means", "--resamples", "20", "-o", "out"]) == 0
    predictor = ICHPredictor.load("out/best.pt", backbone="demo", force=True)
    assert predictor.heads.members[0].arch == "class_means"
    assert set(predictor("0.nii.gz").probabilities) == set(LABELS)
