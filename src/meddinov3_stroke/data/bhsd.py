"""BHSD (Wu et al., MLMI 2023): 192 head CT of RSNA with voxel labels of the five types.

Its names and label values are unconfirmed: they come from a TOML file that the user corrects. Its patients are RSNA's:
the IDs in its names are written to `exclude_ids.txt`, for `--exclude-ids` of `train-rsna`.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
from jaxtyping import Int8
from pydantic import BaseModel, PositiveInt, ValidationError, model_validator

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.data.cohort import CohortCase, Prepared, mask_values, write_cohort
from meddinov3_stroke.errors import (
    InputError,
    LabelError,
    MachineError,
    OutOfScope,
    SeriesTableError,
    UsageError,
    name_some,
)
from meddinov3_stroke.system.atomic import write_text
from meddinov3_stroke.system.progress import progress_bar
from meddinov3_stroke.types import LABELS

EXCLUDE_IDS = "exclude_ids.txt"
MAPPING_NAME = "bhsd_mapping.toml"

TEMPLATE = """\
# How BHSD's images, masks and label values are named. NOT CONFIRMED: written from the paper (Wu et al., MLMI 2023),
# not from the download. Compare with your copy, correct what differs, and set confirmed = true.
confirmed = false

# Folders below --root, and endings of files; an image and its mask have the same name but for the ending.
images = "images"
masks = "ground truths"
image_suffix = ".nii.gz"
mask_suffix = ".nii.gz"

# Regular expression of an RSNA ID in a file's name; these patients must be excluded from RSNA training.
rsna_id = "ID_[0-9a-f]{8,10}"

# The value of each type in the masks; 0 is background.
[values]
epidural = 1
intraparenchymal = 2
intraventricular = 3
subarachnoid = 4
subdural = 5
"""


class _Mapping(BaseModel, strict=True):
    confirmed: bool
    images: str
    masks: str
    image_suffix: str
    mask_suffix: str
    rsna_id: str
    values: dict[str, PositiveInt]

    @model_validator(mode="after")
    def _check(self) -> _Mapping:
        try:
            re.compile(self.rsna_id)
        except re.error as error:
            raise ValueError(f"rsna_id is not a regular expression ({error})") from error
        if set(self.values) != set(LABELS[1:]) or len(set(self.values.values())) < len(self.values):
            raise ValueError(f"[values] needs a different whole number above 0 for each of {', '.join(LABELS[1:])}")
        return self

    def rsna_ids(self, name: str) -> list[str]:
        return [found[0] for found in re.finditer(self.rsna_id, name) if found[0]]


def prepare_bhsd(
    root: Path, output_dir: Path, mapping_path: Path | None = None, *, show_progress: bool = False
) -> Prepared:
    """The series table, slice labels and list of RSNA IDs of a BHSD download.

    The mapping is read from `mapping_path` (default: `bhsd_mapping.toml` in `output_dir`); if there is no such file,
    it is written with the assumed names and values.

    Raises:
        UsageError: the mapping file is invalid.
        DatasetError: a folder is missing or empty, no case is usable, or a mask value that the mapping does not name.
        MachineError: the folder cannot be read, or the tables cannot be written.
    """
    mapping_path = mapping_path or output_dir / MAPPING_NAME
    is_new = not mapping_path.exists()
    if is_new:
        write_text(mapping_path, TEMPLATE)
    mapping = _read_mapping(mapping_path)
    images = _files(root / mapping.images, mapping.image_suffix, "images", mapping_path)
    masks = _files(root / mapping.masks, mapping.mask_suffix, "masks", mapping_path)
    cases: list[CohortCase] = []
    with progress_bar("volumes", len(images), "volumes", show_progress) as advance:
        for name in sorted({*images, *masks}):
            cases.append(_case(name, images.get(name), masks.get(name), mapping, mapping_path))
            advance()
    ids = sorted({one for name in images for one in mapping.rsna_ids(name)})
    names = mapping.model_dump(exclude={"confirmed", "values"})
    values = {value: label for label, value in mapping.values.items()}
    facts = {
        "mapping": {**names, "values": values, "is_confirmed": mapping.confirmed},
        "mapping_file": str(mapping_path),
        "mapping_is_confirmed": mapping.confirmed,
        "n_rsna_ids": len(ids),
    }
    without_id = sorted(name for name in images if not mapping.rsna_ids(name))
    about = {
        f"{mapping_path} did not exist and was written with assumed names and values; check it": is_new,
        f"names and label values of BHSD are not confirmed (confirmed = false in {mapping_path.name}); compare them "
        "with your copy before you rely on figures from this table": not mapping.confirmed,
        f"{len(without_id)} names hold no RSNA ID ({name_some(without_id)}): these patients cannot be excluded from "
        "RSNA training by --exclude-ids": bool(without_id),
        f"BHSD is drawn from RSNA: train with --exclude-ids {EXCLUDE_IDS} before testing on it": not without_id,
    }
    warnings = [text for text, applies in about.items() if applies]
    prepared = write_cohort("bhsd", cases, output_dir, facts=facts, warnings=warnings)
    if ids:
        prepared.files["exclude_ids"] = output_dir / EXCLUDE_IDS
        write_text(prepared.files["exclude_ids"], "# RSNA IDs in the names of BHSD\n" + "\n".join(ids) + "\n")
    return prepared


def _read_mapping(path: Path) -> _Mapping:
    try:
        return _Mapping.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:  # a ValueError too
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        fault = f"{place}: {first['msg']}; found {first['input']!r:.60}" if place else first["msg"]
        raise UsageError(f"{path}: {fault}; correct it, or delete the file to get a new one") from error
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} is not TOML ({error}); correct it, or delete the file to get a new one") from error


def _files(folder: Path, suffix: str, what: str, mapping_path: Path) -> dict[str, Path]:
    """{name without the ending: file}."""
    with machine_errors(folder):
        files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {path.name.removesuffix(suffix): path for path in files if path.name.endswith(suffix)}
    if not found:
        raise SeriesTableError(
            f"no {what} named *{suffix} in {folder}; correct `{what}` or its ending in {mapping_path}"
        )
    return found


def _case(name: str, image: Path | None, mask: Path | None, mapping: _Mapping, path: Path) -> CohortCase:
    if image is None or mask is None:
        reason = "a mask without an image" if image is None else "an image without a mask"
        return CohortCase.left_out(name, "missing", reason)
    try:
        volume = read_volume(image)
        values = mask_values(mask, volume)
    except (InputError, OutOfScope, MachineError) as error:
        return CohortCase.failed(name, error)
    return CohortCase.labelled(name, volume, mask, _labels(values, mask, mapping, path), patient_id="")


def _labels(values: list[frozenset[int]], mask: Path, mapping: _Mapping, path: Path) -> Int8[np.ndarray, "slice 6"]:
    unknown = sorted(frozenset().union(*values) - set(mapping.values.values()))
    if unknown:
        known = ", ".join(f"{value} {label}" for value, label in sorted((v, k) for k, v in mapping.values.items()))
        raise LabelError(
            f"{mask} holds the value(s) {', '.join(map(str, unknown))}; expected {known}; correct [values] in {path}"
        )
    found = np.array([[mapping.values[label] in some for label in LABELS[1:]] for some in values], dtype=np.int8)
    return np.column_stack([found.max(axis=1), found])
