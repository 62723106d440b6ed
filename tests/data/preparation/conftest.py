"""Miniatures of public cohorts, in the layout and naming of their downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_writer import DicomOptions, DicomSeriesTruth, axial_geometry, write_dicom_series
from meddinov3_stroke.types import LABELS

KAGGLE_LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
"""The order in which Kaggle lists the six."""


@dataclass
class Kaggle:
    """A folder as Kaggle gives it, being filled."""

    root: Path
    rows: list[str] = field(default_factory=list)
    series: dict[str, DicomSeriesTruth] = field(default_factory=dict)
    """By the name the test gave."""
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    """SOP UID -> label -> 0 or 1."""

    @property
    def images(self) -> Path:
        return self.root / "stage_2_train"

    @property
    def csv(self) -> Path:
        return self.root / "stage_2_train.csv"

    def add(
        self,
        name: str,
        positive: dict[int, tuple[str, ...]] | None = None,
        n_slices: int = 4,
        patient: str | None = None,
        study: int | None = None,
        **options: Any,
    ) -> DicomSeriesTruth:
        """A series; `positive` says which types its slices (inferior to superior) have."""
        seed = len(self.series) + 1
        hu = np.random.default_rng(seed).integers(0, 80, size=(n_slices, 8, 8)).astype(np.float32)
        settings: dict[str, Any] = {"header": "stripped", "names": "sop_uid", "instance_numbers": "absent"} | options
        settings |= {"patient_id": patient or f"ID_p{seed}", "study_seed": 1000 + (study or seed)}
        truth = write_dicom_series(
            self.images, hu, axial_geometry([5.0] * (n_slices - 1), (8, 8)), DicomOptions(seed=seed, **settings)
        )
        self.series[name] = truth
        for image in truth.images:
            if image.sop_instance_uid and image.sop_instance_uid not in self.labels:
                types = (positive or {}).get(-1 if image.slice_index is None else image.slice_index, ())
                self.label(image.sop_instance_uid, *types)
        return truth

    def label(self, sop_uid: str, *types: str) -> None:
        values = {label: int(label in types or (label == "any" and bool(types))) for label in LABELS}
        self.labels[sop_uid] = values
        self.rows += [f"{sop_uid}_{label},{values[label]}" for label in KAGGLE_LABELS]

    def write(self) -> Path:
        self.csv.write_text("\n".join(["ID,Label", *self.rows]) + "\n")
        return self.root


@pytest.fixture
def kaggle(tmp_path: Path) -> Callable[..., Kaggle]:
    def empty(name: str = "rsna") -> Kaggle:
        root = tmp_path / name
        (root / "stage_2_train").mkdir(parents=True)
        return Kaggle(root)

    return empty
