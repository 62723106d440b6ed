"""`calibrate`: made on some volumes, measured on others, refused where it does not earn its use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from meddinov3_stroke import config
from meddinov3_stroke.backbone import load_backbone
from meddinov3_stroke.backbone.records import Calibration, calibration_folder, read_calibration
from meddinov3_stroke.commands import calibrate as calibrate_int8
from meddinov3_stroke.commands.calibrate import Args, run
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import DatasetError, MachineError, SplitError, UsageError, WeightsError
from meddinov3_stroke.feature_extractor import FeatureExtractor
from meddinov3_stroke.types import LABELS

pytestmark = pytest.mark.xdist_group("calibrate")  # one process quantizes, the others read its record


@pytest.fixture(scope="module")
def weights(random_weights: Callable[..., Path]) -> Path:
    return random_weights("int8.pth", seed=5)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four small heads of their own noise."""
    import nibabel as nib
    import numpy as np

    folder = tmp_path_factory.mktemp("volumes")
    row, column = np.mgrid[:64, :64]
    paths = []
    for seed in range(4):
        hu = np.where(np.hypot((row - 32) / 28, (column - 32) / 24) < 1, 40.0, -1000.0)[None].repeat(6, axis=0)
        hu += np.random.default_rng(seed).normal(0, 20, hu.shape)
        image = nib.Nifti1Image(hu.round().astype(np.int16).transpose(2, 1, 0), np.diag([-3.0, -3.0, 5.0, 1.0]))
        image.header.set_xyzt_units("mm")
        paths.append(folder / f"{seed}.nii.gz")
        nib.save(image, paths[-1])
    return paths


@pytest.fixture(scope="module")
def args(weights: Path, volumes: list[Path]) -> Callable[..., Args]:
    def make(**changes: Any) -> Args:
        flags: dict[str, Any] = {
            "input": tuple(volumes),
            "backbone": str(weights),
            "resize": 64,
            "quiet": True,
            "force": True,
        }
        return Args(**(flags | changes))

    return make


@pytest.fixture(scope="module")
def calibration(args: Callable[..., Args]) -> Calibration:
    return run(args(check_share=0.5))


def rewrite(calibration: Calibration, **changes: Any) -> None:
    from dataclasses import replace

    from meddinov3_stroke.backbone.records import write_calibration

    write_calibration(folder_of(calibration), replace(calibration, **changes))


def folder_of(calibration: Calibration) -> Path:
    return calibration_folder(config.engine_cache(), calibration.weights_sha256)


def test_the_record_lies_beside_the_graph_and_says_what_was_done(calibration: Calibration) -> None:
    assert read_calibration(folder_of(calibration)) == calibration
    assert (calibration.n_calibration_volumes, calibration.n_check_volumes) == (2, 2)
    assert (calibration.n_calibration_slices, calibration.n_check_slices) == (12, 12)
    assert set(calibration.calibration_inputs_sha256).isdisjoint(calibration.check_inputs_sha256)


def test_the_cosine_is_that_of_the_loaded_int8_backbone_to_the_reference(
    calibration: Calibration, weights: Path, volumes: list[Path]
) -> None:
    from meddinov3_stroke.backbone.loading import cosines

    int8 = load_backbone(weights, precision="int8", device="cpu", accept_int8=True)
    reference = load_backbone(weights, engine="openvino", precision="fp32", device="cpu")
    checked = [path for path in volumes if read_volume(path).source.sha256 in calibration.check_inputs_sha256]
    worst = min(
        cosines(*(FeatureExtractor(one, 64).embed(read_volume(path)).cls for one in (int8, reference))).min()
        for path in checked
    )
    assert worst == pytest.approx(calibration.cls_cosine_min, abs=1e-6)
    assert worst < 1


def test_int8_is_an_identity_of_its_own(calibration: Calibration, weights: Path) -> None:
    identity = load_backbone(weights, precision="int8", accept_int8=True).identity
    assert (identity.engine, identity.precision) == ("openvino", "int8")
    assert identity.calibration_sha256 == calibration.graph_sha256


def test_too_low_a_cosine_is_refused_unless_it_is_accepted_and_then_said(
    calibration: Calibration, weights: Path
) -> None:
    rewrite(calibration, cls_cosine_min=0.9989)
    with pytest.raises(WeightsError, match=r"0\.99890 at worst .* --accept-int8"):
        load_backbone(weights, precision="int8")
    backbone = load_backbone(weights, precision="int8", accept_int8=True)
    assert "accepted with --accept-int8" in backbone.warnings[0]
    rewrite(calibration, cls_cosine_min=0.999)
    assert "accepted" not in load_backbone(weights, precision="int8").warnings[0]
    rewrite(calibration)


def test_a_graph_of_another_calibration_is_refused(calibration: Calibration, weights: Path) -> None:
    rewrite(calibration, graph_sha256="0" * 64)
    backbone = load_backbone(weights, precision="int8", accept_int8=True)
    with pytest.raises(WeightsError, match="another one; calibrate again"):
        backbone.class_tokens(backbone.prepare(read_volume_hu(), 64))
    rewrite(calibration)


def test_another_size_than_the_calibrated_is_a_usage_error(calibration: Calibration, weights: Path) -> None:
    backbone = load_backbone(weights, precision="int8", accept_int8=True)
    with pytest.raises(UsageError, match="calibration was made at 64"):
        backbone.class_tokens(backbone.prepare(read_volume_hu(), 96))


def read_volume_hu() -> Any:
    import numpy as np

    return np.zeros((1, 64, 64), dtype=np.float32)


def test_int8_is_never_what_auto_comes_to(calibration: Calibration, weights: Path) -> None:
    assert load_backbone(weights).identity.precision != "int8"


def test_auroc_of_a_head_is_compared_on_the_held_out_volumes_of_a_table(
    args: Callable[..., Args], volumes: list[Path], weights: Path, tmp_path: Path, random_head: Callable[..., Path]
) -> None:
    rows = [[str(path), f"S{k}", f"P{k}", k % 2, k % 2, 0, 0, 0, 0] for k, path in enumerate(volumes)]
    csv = tmp_path / "series.csv"
    pd.DataFrame(rows, columns=["nifti_path", "study_uid", "patient_id", *LABELS]).to_csv(csv, index=False)
    head = random_head(load_backbone(weights, engine="torch", precision="fp32", device="cpu"))
    found = run(args(input=(), series_csv=csv, checkpoint=head, check_share=0.75, calibration_slices=4))
    assert found.auroc is not None
    assert found.auroc["n_volumes"] == found.n_check_volumes == 3
    assert set(found.auroc["fp32"]["per_class"]) == set(LABELS)


def test_excluded_patients_are_not_calibrated_or_checked_on(
    args: Callable[..., Args], volumes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report_groups(groups: list[str], *_: Any) -> None:
        raise DatasetError(",".join(sorted(groups)))

    rows = [[str(path), f"S{k}", f"P{k}", 0, 0, 0, 0, 0, 0] for k, path in enumerate(volumes)]
    csv, ids = tmp_path / "series.csv", tmp_path / "ids.txt"
    pd.DataFrame(rows, columns=["nifti_path", "study_uid", "patient_id", *LABELS]).to_csv(csv, index=False)
    ids.write_text("P1\n")
    monkeypatch.setattr(calibrate_int8, "hold_out", report_groups)
    left = ",".join(f"patient:P{k}" for k in range(len(volumes)) if k != 1)
    with pytest.raises(DatasetError, match=f"^{left}$"):
        run(args(input=(), series_csv=csv, exclude_ids=ids))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": ()}, UsageError, "one of the two"),
        ({"series_csv": Path("a.csv")}, UsageError, "one of the two"),
        ({"checkpoint": Path("best.pt")}, UsageError, "only --series-csv brings"),
        ({"exclude_ids": Path("ids.txt")}, UsageError, "belong to --series-csv"),
        ({"check_share": 1.0}, UsageError, "--check-share 1"),
        ({"calibration_slices": 0}, UsageError, "--calibration-slices 0"),
        ({"input": (Path("one.nii.gz"),)}, DatasetError, "at least 2 patients"),
    ],
)
def test_what_cannot_be_honoured_is_said_before_anything_is_loaded(
    args: Callable[..., Args], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(args(**changes))


def test_a_copy_on_both_sides_is_refused_and_nothing_is_kept(
    args: Callable[..., Args], volumes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "models"))
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(volumes[0].read_bytes())
    with pytest.raises(SplitError, match="same pixels"):
        run(args(input=(volumes[0], copy), check_share=0.5))
    assert not list(tmp_path.rglob("calibration.json"))


def test_without_the_quantizer_the_extra_is_named(args: Callable[..., Args], monkeypatch: pytest.MonkeyPatch) -> None:
    from meddinov3_stroke.backbone import int8

    monkeypatch.setattr(int8, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"meddinov3-stroke\[int8\]"):
        run(args())


def test_the_command_prints_the_figures_and_the_disclaimer(
    volumes: list[Path],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ["--backbone", str(weights), "--resize", "64", "--calibration-slices", "4", "--quiet"]
    assert calibrate_int8.main(["--input", *map(str, volumes[:2]), *flags]) == 0
    (record,) = tmp_path.rglob("calibration.json")
    found = read_calibration(record.parent)
    assert found is not None
    printed = capsys.readouterr().out
    assert f"{found.cls_cosine_min:.6f}" in printed
    assert str(record.parent) in printed
    assert "research use only, not for clinical diagnosis" in printed
