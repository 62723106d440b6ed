"""BHSD (Wu et al., MLMI 2023): 192 head CT of RSNA with voxel labels of the five types. Names and values are taken from
a mapping file, because they are not confirmed; see `bhsd_mapping`.

Its patients are RSNA's: the IDs in its names are written to `exclude_ids.txt`, for `--exclude-ids` of `train-rsna`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.data.bhsd_mapping import MAPPING_NAME, BhsdMapping, mapping_at
from meddinov3_stroke.data.cohort_tables import (
    CohortCase,
    PreparedCohort,
    failed_case,
    labelled_case,
    name_cases,
    write_cohort,
)
from meddinov3_stroke.data.masks import slice_values
from meddinov3_stroke.errors import InputError, LabelError, MachineError, OutOfScope, SeriesTableError
from meddinov3_stroke.system.atomic import write_text
from meddinov3_stroke.system.progress import progress_bar
from meddinov3_stroke.types import LABELS

EXCLUDE_IDS = "exclude_ids.txt"


def prepare_bhsd(
    root: Path, output_dir: Path, mapping_path: Path | None = None, *, show_progress: bool = False
) -> PreparedCohort:
    """The series table, slice labels and list of RSNA IDs of a BHSD download.

    Without `mapping_path` the mapping is `bhsd_mapping.toml` in `output_dir`, written with what is supposed where it is
    not there.

    Raises:
        UsageError: the mapping file is none.
        SeriesTableError: a folder is missing or empty, or no case is usable.
        LabelError: a mask value that the mapping does not name.
        MachineError: the folder cannot be read, or the tables not be written.
    """
    mapping_path = mapping_path or output_dir / MAPPING_NAME
    mapping, is_new = mapping_at(mapping_path)
    images = _files(root / mapping.images, mapping.image_suffix, "images", mapping_path)
    masks = _files(root / mapping.masks, mapping.mask_suffix, "masks", mapping_path)
    cases: list[CohortCase] = []
    with progress_bar("volumes", len(images), "volumes", show_progress) as advance:
        for name in sorted({*images, *masks}):
            cases.append(_case(name, images.get(name), masks.get(name), mapping, mapping_path))
            advance()
    ids = sorted({found[0] for name in images for found in re.finditer(mapping.rsna_id, name) if found[0]})
    warnings = _warnings(mapping, mapping_path, is_new, ids, list(images))
    facts = {
        "mapping": {**asdict(mapping), "values": dict(mapping.values)},
        "mapping_file": str(mapping_path),
        "mapping_is_confirmed": mapping.is_confirmed,
        "n_rsna_ids": len(ids),
    }
    prepared = write_cohort("bhsd", cases, output_dir, facts=facts, warnings=warnings)
    if ids:
        prepared.files["exclude_ids"] = output_dir / EXCLUDE_IDS
        write_text(prepared.files["exclude_ids"], "# RSNA IDs in the names of BHSD\n" + "\n".join(ids) + "\n")
    return prepared


def _files(folder: Path, suffix: str, what: str, mapping_path: Path) -> dict[str, Path]:
    """{name without the ending: file}."""
    with machine_errors(folder):
        files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {path.name.removesuffix(suffix): path for path in files if path.name.endswith(suffix)}
    if not found:
        raise SeriesTableError(
            f"no {what} named *{suffix} in {folder}; correct `{what}` or its ending in {mapping_path} to your "
            "copy of BHSD"
        )
    return found


def _case(name: str, image: Path | None, mask: Path | None, mapping: BhsdMapping, mapping_path: Path) -> CohortCase:
    if image is None or mask is None:
        return CohortCase(name, "missing", "a mask without an image" if image is None else "an image without a mask")
    try:
        volume = read_volume(image)
        values = slice_values(mask, volume)
    except (InputError, OutOfScope, MachineError) as error:
        return failed_case(name, error)
    labels = _labels(values, mapping.values, mask, mapping_path)
    return labelled_case(name, volume, mask, labels, patient_id="")


def _labels(
    values: list[frozenset[int]], names: Mapping[int, str], mask: Path, mapping_path: Path
) -> Int8[np.ndarray, "slice 6"]:
    """The six labels of each slice: the types whose values its mask holds."""
    unknown = sorted(frozenset().union(*values) - set(names))
    if unknown:
        known = ", ".join(f"{value} {name}" for value, name in sorted(names.items()))
        raise LabelError(
            f"{mask} holds the value(s) {', '.join(map(str, unknown))}; expected {known}; correct "
            f"[values] in {mapping_path}"
        )
    types = [[int(any(names[value] == label for value in of_slice)) for label in LABELS[1:]] for of_slice in values]
    found = np.array(types, dtype=np.int8)
    return np.column_stack([found.max(axis=1), found])


def _warnings(mapping: BhsdMapping, mapping_path: Path, is_new: bool, ids: list[str], names: list[str]) -> list[str]:
    warnings = []
    if is_new:
        warnings.append(f"{mapping_path} was not there and was written with what is supposed of BHSD; look it over")
    if not mapping.is_confirmed:
        warnings.append(
            f"names and label values of BHSD are not confirmed (confirmed = false in {mapping_path.name}); no figure "
            "from this table counts before you have compared the mapping with your copy"
        )
    without = [name for name in names if not any(found[0] for found in re.finditer(mapping.rsna_id, name))]
    if without:
        warnings.append(
            f"{len(without)} names hold no RSNA ID ({name_cases(without)}): these patients cannot be left out of RSNA "
            "training by --exclude-ids"
        )
    elif ids:
        warnings.append(f"BHSD is drawn from RSNA: train with --exclude-ids {EXCLUDE_IDS} before testing on it")
    return warnings
