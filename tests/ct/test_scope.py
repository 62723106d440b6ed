"""The intended-use gate: what is refused, what passes, and what outputs say about it."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from ct.not_heads import NOT_HEADS, Made, head
from meddinov3_stroke.commands import extract as extract_stage
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.ct.scope import RULES, judge
from meddinov3_stroke.errors import OutOfScope
from meddinov3_stroke.ich_infer import main as predict
from meddinov3_stroke.meddinov3_infer import main as embed
from meddinov3_stroke.phantom import draw_spec, make_phantom
from meddinov3_stroke.predictor import ICHPredictor
from meddinov3_stroke.system.nifti_bytes import nifti_bytes

pytestmark = pytest.mark.scope


def written(folder: Path, made: Made, name: str = "case.nii") -> Path:
    """The volume as NIfTI in L P S, as the tests of reading write heads."""
    voxels, (slice_mm, row_mm, column_mm) = made
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), np.diag([-column_mm, -row_mm, slice_mm, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, folder / name)
    return folder / name


def rules_broken(folder: Path, made: Made) -> dict[str, bool]:
    return {one.rule: one.is_refusal for one in judge(read_volume(written(folder, made))).findings}


@pytest.mark.parametrize("kind", NOT_HEADS)
def test_what_is_not_a_head_ct_is_refused(kind: str, tmp_path: Path) -> None:
    for seed in range(3):
        assert any(rules_broken(tmp_path, NOT_HEADS[kind](np.random.default_rng(seed))).values()), seed


@pytest.mark.parametrize("seed", range(4))
def test_heads_are_accepted(seed: int, tmp_path: Path) -> None:
    assert not any(rules_broken(tmp_path, head(np.random.default_rng(seed))).values())
    phantom = make_phantom(draw_spec(seed))
    (tmp_path / "phantom.nii.gz").write_bytes(nifti_bytes(phantom.hu, phantom.affine))
    assert judge(read_volume(tmp_path / "phantom.nii.gz")).findings == ()


SEEDS = range(3000, 3000 + int(os.environ.get("SCOPE_VOLUMES", "100")))  # not looked at when the limits were set


def test_a_head_drawn_without_noise_is_accepted_although_its_slices_repeat(tmp_path: Path) -> None:
    _, y, x = np.mgrid[0:12, 0:96, 0:96] - 47.5
    r = np.hypot(y / 40, x / 35)
    hu = np.select([np.hypot(y / 10, (x + 8) / 6) < 1, r < 0.9, r < 1], [8.0, 33.0, 900.0], -1000.0)
    assert rules_broken(tmp_path, (hu, (5.0, 1.9, 1.9))) == {"noise-free": False, "clipped": False}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NOT_HEADS)
def test_the_rate_of_refusal(kind: str, tmp_path: Path) -> None:
    refused = sum(any(rules_broken(tmp_path, NOT_HEADS[kind](np.random.default_rng(k))).values()) for k in SEEDS)
    assert refused >= 0.99 * len(SEEDS)


@pytest.mark.slow
def test_the_rate_of_acceptance(tmp_path: Path) -> None:
    refused = sum(any(rules_broken(tmp_path, head(np.random.default_rng(k))).values()) for k in SEEDS)
    assert refused <= 0.005 * len(SEEDS)


@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_a_rule_taken_out_is_not_reported(rule: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = {
        "constant": NOT_HEADS["all zero"],
        "air": NOT_HEADS["1024 too high"],
        "noise": NOT_HEADS["noise"],
        "bone": NOT_HEADS["skull-stripped"],
        "brain": NOT_HEADS["chest"],
        "size": lambda rng: (head(rng)[0], (5.0, 0.9, 0.9)),
        "uniform": lambda rng: (np.where(np.abs(hu := head(rng)[0]) < 150, 35.0, hu), (5.0, 1.9, 1.9)),
        "contrast in vessels": NOT_HEADS["CT angiography"],
        "possible contrast": NOT_HEADS["CT angiography"],
        "noise-free": lambda rng: (
            np.where(np.abs(hu := head(rng)[0]) < 60, np.round(hu / 30) * 30, hu),
            (5.0, 1.9, 1.9),
        ),
        "order": NOT_HEADS["shuffled"],
        "dead slices": NOT_HEADS["dead tail"],
        "repeated slices": NOT_HEADS["repeated slices"],
        "jump": lambda rng: (np.delete(head(rng)[0], range(8, 14), axis=0), (5.0, 1.9, 1.9)),
        "clipped": head,
    }[rule](np.random.default_rng(1))
    assert rule in rules_broken(tmp_path, made)
    monkeypatch.setattr("meddinov3_stroke.ct.scope.RULES", tuple(one for one in RULES if one.name != rule))
    assert rule not in rules_broken(tmp_path, made)


def put(hu: np.ndarray, slices: slice, value: np.ndarray | float) -> np.ndarray:
    changed = hu.copy()
    changed[slices] = value
    return changed


@pytest.mark.parametrize(
    ("rule", "change", "slices"),
    [
        ("dead slices", lambda hu: put(hu, slice(-3, None), 0.0), (-3, -2, -1)),
        ("dead slices", lambda hu: put(hu, slice(9, 11), -1000.0), (9, 10)),
        ("repeated slices", lambda hu: put(hu, slice(9, 11), hu[8]), (9, 10)),
    ],
)
def test_the_slices_concerned_are_listed(
    rule: str, change: Callable[[np.ndarray], np.ndarray], slices: tuple[int, ...], tmp_path: Path
) -> None:
    hu, spacing = head(np.random.default_rng(1))
    made = change(hu)
    expected = tuple(k % len(made) for k in slices)
    (found,) = [one for one in judge(read_volume(written(tmp_path, (made, spacing)))).findings if one.rule == rule]
    assert found.slices == expected
    assert found.message.endswith(f": {', '.join(map(str, expected))}")


def test_slices_missing_between_two_neighbours_are_warned_of(tmp_path: Path) -> None:
    phantom = make_phantom(draw_spec(1))
    middle = len(phantom.hu) // 2
    cut = np.delete(phantom.hu, range(middle, middle + 5), axis=0)
    (tmp_path / "cut.nii.gz").write_bytes(nifti_bytes(cut, phantom.affine))
    (found,) = judge(read_volume(tmp_path / "cut.nii.gz")).findings
    assert (found.rule, found.is_refusal, found.slices) == ("jump", False, (middle - 1, middle))


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "T1"])
def test_real_images_of_development_packages_are_refused(name: str, flags: list[str]) -> None:
    if name == "T1":
        package = importlib.util.find_spec("nilearn")
        assert package is not None
        assert package.origin is not None
        folder = Path(package.origin).parent / "datasets" / "data"
        path = folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    else:
        path = Path(str(get_testdata_file(name, download=False)))
    assert predict(["--input", str(path), *flags]) == 4


@pytest.fixture
def flags(random_weights: Callable[..., Path], random_head: Callable[..., Path], tmp_path: Path) -> list[str]:
    from meddinov3_stroke import load_backbone

    weights = random_weights()
    backbone = load_backbone(weights, engine="torch", precision="fp32", device="cpu")
    words = {"--checkpoint": random_head(backbone), "--backbone": weights, "--output-dir": tmp_path / "out"}
    fixed = ["--engine", "torch", "--precision", "fp32", "--device", "cpu", "--quiet"]
    return [*(str(word) for pair in words.items() for word in pair), *fixed]


def test_predict_refuses_and_writes_no_probability(flags: list[str], tmp_path: Path, capsys) -> None:
    path = written(tmp_path, NOT_HEADS["chest"](np.random.default_rng(0)))
    assert predict(["--input", str(path), *flags]) == 4
    assert "0 mm of slices show brain" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_forced_findings_say_so_everywhere(flags: list[str], tmp_path: Path, capsys) -> None:
    path = written(tmp_path, NOT_HEADS["chest"](np.random.default_rng(0)))
    assert predict(["--input", str(path), "--force", *flags]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["verdicts"] == {"valid": True, "in_scope": False, "in_distribution": None}
    assert summary["scope"]["figures"]["brain_mm"] == 0
    assert any("outside the intended use" in warning for warning in summary["warnings"])
    assert "outside the intended use" in capsys.readouterr().out


def test_embed_warns(flags: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, NOT_HEADS["chest"](np.random.default_rng(0)))
    assert embed(["--input", str(path), *flags[2:]]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["scope"]["in_scope"] is False
    assert any("outside the intended use" in warning for warning in summary["warnings"])


def test_a_predictor_records_the_refused_case_and_goes_on(flags: list[str], tmp_path: Path) -> None:
    predictor = ICHPredictor.load(flags[1], backbone=flags[3], engine="torch", precision="fp32", device="cpu")
    bad = written(tmp_path, NOT_HEADS["MR"](np.random.default_rng(0)), "bad.nii")
    good = written(tmp_path, head(np.random.default_rng(0)), "good.nii")
    refused, done = predictor.map([bad, good])
    assert (refused.status, refused.code, done.status) == ("refused", "E-SCOPE", "done")
    with pytest.raises(OutOfScope, match="air"):
        predictor.judge(read_volume(bad))


def test_features_cached_by_extract_are_refused_where_training_refuses(flags: list[str], tmp_path: Path) -> None:
    from meddinov3_stroke import load_backbone
    from meddinov3_stroke.features import EmbeddingStore, FeatureExtractor, extract

    path = written(tmp_path, NOT_HEADS["abdomen"](np.random.default_rng(0)))
    backbone = load_backbone(flags[3], engine="torch", precision="fp32", device="cpu")
    extractor, store = FeatureExtractor(backbone, resize=64), EmbeddingStore(tmp_path / "cache")
    (warned,) = extract([path], extractor, store)
    (refused,) = extract([path], extractor, store, force=False)
    (again,) = extract([path], extractor, store)
    assert (warned.outcome.status, refused.outcome.status) == ("done", "refused")
    assert refused.error is not None
    assert refused.error.rules == ("brain",)  # type: ignore[attr-defined]
    assert again.from_cache
    assert extract_stage.Args.__dataclass_fields__.keys().isdisjoint({"force"})  # it warns, always
