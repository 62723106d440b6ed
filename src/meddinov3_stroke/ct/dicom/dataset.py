"""The values of a walked DICOM file, by pydicom, without its pixel data.

pydicom converts a value when it is first asked for and judges it by global settings (a UID such as `ID_0a0ba0944f`
warns). Here every value is converted at once under settings of this module's own, which no thread sees outside it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO

import pydicom
from pydicom.config import disable_value_validation

from meddinov3_stroke.ct.dicom.structure import DicomContent
from meddinov3_stroke.errors import CorruptInput

_pydicom_settings = threading.RLock()
"""pydicom's settings and Python's warning filters are global: one thread changes them at a time and puts them back."""


def parse_dataset(content: DicomContent, name: str, tags: Sequence[int] | None = None) -> pydicom.Dataset:
    """The data set up to its pixel data, with `file_meta`; of the given `tags` alone where there are any.

    A value that cannot be converted stays as it is and raises pydicom's error when asked for: whether it matters is
    judged by who reads it.

    Raises:
        CorruptInput: pydicom cannot read the elements.
    """
    with lenient_pydicom():
        try:
            dataset = pydicom.dcmread(
                BytesIO(content.content),
                stop_before_pixels=True,
                force=True,  # files without preamble were recognised by `read_structure`
                specific_tags=None if tags is None else list(tags),
            )
        except MemoryError:
            raise
        except Exception as error:  # its parsers raise whatever they meet
            raise CorruptInput(
                f"{name}: the data set cannot be read ({type(error).__name__}: {' '.join(str(error).split())}); "
                "the header is damaged; fetch it again"
            ) from error
        _convert_values(dataset)
        return dataset


@contextmanager
def lenient_pydicom() -> Iterator[None]:
    """Within it pydicom validates no value and its warnings are not shown; for one thread at a time."""
    with _pydicom_settings, disable_value_validation(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom\b")
        yield


def _convert_values(dataset: pydicom.Dataset) -> None:
    """Convert every value, those of nested items too, while the settings hold."""
    for tag in list(dataset.keys()):
        with suppress(Exception):  # stays raw, and its reader meets the error
            element = dataset[tag]
            if element.VR == "SQ":
                for item in element.value:
                    _convert_values(item)
