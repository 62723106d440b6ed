"""BHSD: names and values from a file that the user corrects, and the RSNA patients in it named for exclusion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from meddinov3_stroke.data import read_id_list
from meddinov3_stroke.data.bhsd import TEMPLATE, prepare_bhsd
from meddinov3_stroke.errors import LabelError, SeriesTableError, UsageError
from meddinov3_stroke.types import LABELS

FIRST, SECOND = "ID_0219ef88_ID_e5c1a31210", "ID_04a52d93_ID_22d1b6c1ee"


@pytest.fixture
def bhsd(tmp_path: Path) -> Callable[..., Path]:
    """Writes pairs: name -> {slice of the file: value in its mask}."""

    def write(pairs: dict[str, dict[int, int]], images: str = "images", masks: str = "ground truths") -> Path:
        root = tmp_path / "bhsd"
        for name, values in pairs.items():
            mask = np.zeros((8, 8, 4), np.uint8)
            for k, value in values.items():
                mask[2:5, 2:5, k] = value
            for folder, voxels in ((images, np.full((8, 8, 4), 30, np.int16)), (masks, mask)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                image = nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, -5.0, 1.0]))
                image.header.set_xyzt_units("mm")
                nib.save(image, root / folder / f"{name}.nii.gz")
        return root

    return write


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_labels_are_what_the_masks_hold(bhsd: Callable[..., Path], out: Path) -> None:
    prepare_bhsd(bhsd({FIRST: {0: 1, 3: 5}, SECOND: {}}), out)
    rows = pd.read_csv(out / "bhsd_series_labels.csv").set_index("series_uid")
    assert rows.loc[FIRST, list(LABELS)].tolist() == [1, 1, 0, 0, 0, 1]
    assert rows.loc[SECOND, list(LABELS)].tolist() == [0] * 6
    slices = pq.read_table(out / "slice_labels.parquet", filters=[("series_uid", "=", FIRST)])
    assert slices["epidural"].to_pylist() == [0, 0, 0, 1]  # the file runs downward
    assert slices["subdural"].to_pylist() == [1, 0, 0, 0]


def test_what_is_supposed_is_written_said_and_not_confirmed(bhsd: Callable[..., Path], out: Path) -> None:
    found = prepare_bhsd(bhsd({FIRST: {}}), out)
    assert "NOT CONFIRMED" in (out / "bhsd_mapping.toml").read_text()
    assert found.facts["mapping_is_confirmed"] is False
    assert any("not confirmed" in warning for warning in found.warnings)


def test_a_corrected_mapping_is_kept_and_used(bhsd: Callable[..., Path], out: Path, tmp_path: Path) -> None:
    root = bhsd({FIRST: {1: 2}}, images="label_192/imgs", masks="label_192/gt")
    with pytest.raises(SeriesTableError, match=r"correct `images` .*bhsd_mapping\.toml"):
        prepare_bhsd(root, out)
    mapping = out / "bhsd_mapping.toml"
    text = mapping.read_text().replace("confirmed = false", "confirmed = true")
    text = text.replace('"images"', '"label_192/imgs"').replace('"ground truths"', '"label_192/gt"')
    text = text.replace("intraparenchymal = 2", "intraparenchymal = 4").replace("subarachnoid = 4", "subarachnoid = 2")
    mapping.write_text(text)
    found = prepare_bhsd(root, out)
    assert mapping.read_text() == text
    assert not any("confirmed" in warning for warning in found.warnings)
    assert pd.read_csv(out / "bhsd_series_labels.csv")["subarachnoid"].tolist() == [1]


@pytest.mark.parametrize("pattern", ["(ID)_([0-9a-f]+)", "ID_([0-9a-f]+)", "(ID_[0-9a-f]+)", "(?:ID|XX)_[0-9a-f]+"])
def test_an_id_is_all_that_the_pattern_matches_whatever_its_groups(
    bhsd: Callable[..., Path], out: Path, pattern: str
) -> None:
    out.mkdir()
    (out / "bhsd_mapping.toml").write_text(TEMPLATE.replace("ID_[0-9a-f]{8,10}", pattern))
    prepare_bhsd(bhsd({"ID_0a1b2c3d": {}, "ID_000012eaf_1": {}}), out)
    assert read_id_list(out / "exclude_ids.txt").ids == ("ID_000012eaf", "ID_0a1b2c3d")


def test_a_pattern_that_matches_nothing_of_a_name_gives_no_id(bhsd: Callable[..., Path], out: Path) -> None:
    out.mkdir()
    (out / "bhsd_mapping.toml").write_text(TEMPLATE.replace("ID_[0-9a-f]{8,10}", "x*"))
    found = prepare_bhsd(bhsd({"ID_0a1b2c3d": {}}), out)
    assert not (out / "exclude_ids.txt").exists()
    assert any("1 names hold no RSNA ID" in warning for warning in found.warnings)


def test_rsna_ids_in_names_are_written_for_exclusion(bhsd: Callable[..., Path], out: Path) -> None:
    found = prepare_bhsd(bhsd({FIRST: {}, SECOND: {}}), out)
    ids = read_id_list(out / "exclude_ids.txt").ids
    assert set(ids) == {"ID_0219ef88", "ID_e5c1a31210", "ID_04a52d93", "ID_22d1b6c1ee"}
    assert any("--exclude-ids exclude_ids.txt" in warning for warning in found.warnings)


def test_names_without_an_id_are_warned_of(bhsd: Callable[..., Path], out: Path) -> None:
    found = prepare_bhsd(bhsd({"volume_1": {}}), out)
    assert not (out / "exclude_ids.txt").exists()
    assert any("1 names hold no RSNA ID (volume_1)" in warning for warning in found.warnings)


def test_a_value_the_mapping_does_not_name_stops_with_the_mask(bhsd: Callable[..., Path], out: Path) -> None:
    with pytest.raises(LabelError, match=rf"{FIRST}.*value\(s\) 9; expected 1 epidural"):
        prepare_bhsd(bhsd({FIRST: {0: 9}}), out)


def test_an_image_without_a_mask_is_counted(bhsd: Callable[..., Path], out: Path) -> None:
    root = bhsd({FIRST: {}, SECOND: {}})
    (root / "ground truths" / f"{SECOND}.nii.gz").unlink()
    found = prepare_bhsd(root, out)
    assert found.facts["ledger"]["by_status"] == {"usable": 1, "missing": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text + "[", "is not TOML"),
        (lambda text: text.replace("image_suffix", "suffix"), "image_suffix: Field required"),
        (
            lambda text: text.replace("confirmed = false", 'confirmed = "no"'),
            "confirmed: Input should be a valid boolean",
        ),
        (lambda text: text.replace("epidural = 1", "epidural = 2"), "a different whole number above 0 for each"),
        (lambda text: text.replace("epidural = 1", "extradural = 1"), "a different whole number above 0 for each"),
        (lambda text: text.replace('"ID_[', '"ID_(['), "not a regular expression"),
    ],
)
def test_a_mapping_that_is_none_says_why(
    bhsd: Callable[..., Path], out: Path, change: Callable[[str], str], words: str
) -> None:
    root = bhsd({FIRST: {}})
    prepare_bhsd(root, out)
    mapping = out / "bhsd_mapping.toml"
    mapping.write_text(change(mapping.read_text()))
    with pytest.raises(UsageError, match=words):
        prepare_bhsd(root, out)
