"""Where BHSD keeps what: a small TOML file that the user corrects, because the download could not be looked at."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.system.atomic import write_text
from meddinov3_stroke.types import LABELS

MAPPING_NAME = "bhsd_mapping.toml"

TEMPLATE = """\
# How BHSD's images, masks and label values are named. NOT CONFIRMED: written from the paper (Wu et al., MLMI 2023),
# not from the download. Look at your copy, correct what differs, and set confirmed = true.
confirmed = false

# Folders below --root, and endings of files; an image and its mask have the same name but for the ending.
images = "images"
masks = "ground truths"
image_suffix = ".nii.gz"
mask_suffix = ".nii.gz"

# What an RSNA ID in a file's name looks like (a regular expression); these patients are to leave RSNA training.
rsna_id = "ID_[0-9a-f]{8,10}"

# The value of each type in the masks; 0 is background.
[values]
epidural = 1
intraparenchymal = 2
intraventricular = 3
subarachnoid = 4
subdural = 5
"""


@dataclass(frozen=True)
class BhsdMapping:
    """The names and values of one copy of BHSD."""

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str
    rsna_id: str
    values: Mapping[int, str]
    """Mask value -> type."""
    is_confirmed: bool


def mapping_at(path: Path) -> tuple[BhsdMapping, bool]:
    """(the mapping in the file at `path`, whether it was written just now because there was none).

    Raises:
        UsageError: the file is no such mapping; says what is wrong.
        StorageError: it cannot be written.
    """
    is_new = not path.exists()
    if is_new:
        write_text(path, TEMPLATE)
    try:
        with path.open("rb") as handle:
            return _mapping(tomllib.load(handle), path), is_new
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML ({error}); correct it, or delete it to have it written anew") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); expected a mapping file in TOML") from error


def _mapping(document: dict[str, Any], path: Path) -> BhsdMapping:
    texts = {name: document.get(name) for name in ("images", "masks", "image_suffix", "mask_suffix", "rsna_id")}
    missing = [name for name, text in texts.items() if not isinstance(text, str)]
    if missing or not isinstance(document.get("confirmed"), bool):
        absent = ", ".join(missing) or "confirmed"
        raise UsageError(f"{path}: {absent} is missing or of another kind; delete the file to have it written anew")
    try:
        re.compile(str(texts["rsna_id"]))
    except re.error as error:
        raise UsageError(f"{path}: rsna_id is no regular expression ({error}); correct it") from error
    return BhsdMapping(
        **{name: str(text) for name, text in texts.items()},
        values=_values(document.get("values"), path),
        is_confirmed=document["confirmed"],
    )


def _values(given: Any, path: Path) -> dict[int, str]:
    types = LABELS[1:]
    sound = isinstance(given, dict) and set(given) == set(types)
    numbers = list(given.values()) if sound else []
    if not sound or not all(type(number) is int and number > 0 for number in numbers) or len(set(numbers)) < len(types):
        raise UsageError(
            f"{path}: [values] needs a whole number above 0 of its own for each of {', '.join(types)}; found {given}"
        )
    return {given[name]: name for name in types}
