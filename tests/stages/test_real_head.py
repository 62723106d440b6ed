"""A real head CT through `embed` and `predict`: every output there, and its picture the right way round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from PIL import Image
from scipy.ndimage import zoom

from meddinov3_stroke import ich_infer, meddinov3_infer
from meddinov3_stroke.backbone import load_backbone, loading
from meddinov3_stroke.backbone.loading import REGISTERED
from meddinov3_stroke.report import pictures

pytestmark = pytest.mark.shared_data

VIT_B = {"embed_dim": 768, "depth": 12, "num_heads": 12}
DEMO_FILE = Path(loading.__file__).parent / "weights" / REGISTERED["demo"]


@pytest.fixture(params=["demo", "vit_b"])
def backbone_name(request: pytest.FixtureRequest, random_weights: Callable[..., Path]) -> str:
    """The bundled backbone, and a ViT-B/16 in the published layout with random weights."""
    if request.param == "vit_b":
        return str(random_weights(**VIT_B))
    if not DEMO_FILE.is_file():
        pytest.skip("the demonstration backbone is not bundled yet")
    return "demo"


@pytest.fixture
def real_head(shared_data_dir: Path) -> Path:
    return shared_data_dir / "head_ncct_nifti" / "head_ncct.nii.gz"


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of the panels drawn, in pixels of the picture."""
    drawn: list[tuple[int, int, int, int]] = []
    draw = pictures.Page.panel

    def panel(page: Any, left: int, top: int, size: tuple[int, int], *rest: Any, **options: Any) -> None:
        drawn.append((left, top, left + size[0], top + size[1]))
        draw(page, left, top, size, *rest, **options)

    monkeypatch.setattr(pictures.Page, "panel", panel)
    return drawn


def windowed_dicom(shared_data_dir: Path, slice_index: int) -> np.ndarray:
    """The DICOM slice at a place counted from below, as a viewer shows it: rows and columns as stored, L 40 W 80."""
    images = [SimpleITK.ReadImage(str(path)) for path in (shared_data_dir / "head_ncct_dicom").glob("*.dcm")]
    image = sorted(images, key=lambda image: image.GetOrigin()[2])[slice_index]
    return np.clip(SimpleITK.GetArrayFromImage(image)[0] / 80.0, 0, 1)


def drawn_panel(folder: Path, box: tuple[int, int, int, int]) -> np.ndarray:
    """Grey values of a panel of the picture in `folder`."""
    return np.asarray(Image.open(folder / "similarity_map.png").convert("RGB").crop(box)).mean(axis=-1)


def likeness(panel: np.ndarray, expected: np.ndarray) -> float:
    """Correlation of a drawn panel with a slice brought to its size."""
    brought = zoom(expected, [n / m for n, m in zip(panel.shape, expected.shape, strict=True)], order=1)
    return float(np.corrcoef(panel.ravel(), brought.ravel())[0, 1])


def assert_shown_as_in_a_viewer(panel: np.ndarray, dicom: np.ndarray) -> None:
    """Nose up, the patient's right at the left: like the DICOM slice, and unlike any turn or flip of it."""
    wrong = [dicom[::-1], dicom[:, ::-1], dicom[::-1, ::-1], dicom.T, np.rot90(dicom), np.rot90(dicom, -1)]
    right = likeness(panel, dicom)
    assert right > 0.95
    assert right > max(likeness(panel, one) for one in wrong) + 0.05


def test_embed_shows_the_real_head_the_right_way_round(
    real_head, backbone_name, tmp_path, panels, shared_data_dir
) -> None:
    summary = meddinov3_infer.run(
        meddinov3_infer.Args(
            input=real_head, backbone=backbone_name, output_dir=tmp_path, max_slices=3, device="cpu", quiet=True
        )
    )
    assert (summary["n_slices"], summary["n_slices_embedded"], summary["similarity"]["grid"]) == (28, 3, [14, 14])
    assert np.isfinite(np.load(tmp_path / "meddinov3_slice_embeddings.npy")).all()
    assert_shown_as_in_a_viewer(drawn_panel(tmp_path, panels[0]), windowed_dicom(shared_data_dir, 14))
    assert ("demonstration" in " ".join(summary["warnings"])) is (backbone_name == "demo")


def test_predict_shows_the_real_head_the_right_way_round(
    real_head, backbone_name, random_head, tmp_path, panels, shared_data_dir
) -> None:
    head = random_head(load_backbone(backbone_name, device="cpu"), resize=224)
    out = tmp_path / "out"
    ich_infer.run(
        ich_infer.Args(
            input=real_head,
            checkpoint=head,
            backbone=backbone_name,
            output_dir=out,
            max_slices=3,
            top_k=2,
            device="cpu",
            quiet=True,
        )
    )
    summary = json.loads((out / "summary.json").read_text())
    assert {path.name for path in out.iterdir()} == set(summary["files"])
    for k, one in enumerate(summary["top_slices"]):
        assert_shown_as_in_a_viewer(
            drawn_panel(out, panels[2 * k]), windowed_dicom(shared_data_dir, one["slice_index"])
        )


def test_positions_of_top_slices_are_those_of_the_files_affine(
    real_head, random_weights, random_head, tmp_path
) -> None:
    weights = random_weights()
    head = random_head(load_backbone(weights, device="cpu"))
    case = ich_infer.run(
        ich_infer.Args(
            input=real_head,
            checkpoint=head,
            backbone=str(weights),
            output_dir=tmp_path / "out",
            max_slices=6,
            top_k=3,
            device="cpu",
            quiet=True,
        )
    )
    image = nib.load(real_head)
    last_row = image.shape[1] - 1  # the file's rows run to the front, ours to the back
    for one in case.top_slices:
        np.testing.assert_allclose(one.position_mm, (image.affine @ (0, last_row, one.slice_index, 1))[:3], atol=1e-3)
