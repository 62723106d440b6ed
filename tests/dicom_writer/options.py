"""What a DICOM series of a phantom looks like and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meddinov3_stroke.errors import UsageError

TRANSFER_SYNTAXES: dict[str, str] = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big_endian": "1.2.840.10008.1.2.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg_lossless": "1.2.840.10008.1.2.4.57",
    "jpeg_lossless_sv1": "1.2.840.10008.1.2.4.70",
    "jpeg_ls": "1.2.840.10008.1.2.4.80",
    "jpeg_ls_near": "1.2.840.10008.1.2.4.81",
    "jpeg_2000_lossless": "1.2.840.10008.1.2.4.90",
    "jpeg_2000": "1.2.840.10008.1.2.4.91",
}
"""Every transfer syntax that can be written, by name (DICOM PS3.5 10)."""
NATIVE = ("implicit", "explicit", "deflated", "big_endian")
"""Transfer syntaxes whose pixels are not compressed frame by frame."""
LOSSY_TOLERANCE_HU = {"jpeg_ls_near": 2.0, "jpeg_2000": 8.0}
"""Most that a pixel differs from what was put in, at slope 1; the other transfer syntaxes keep every value."""

PixelKind = Literal["signed16", "unsigned16", "unsigned12", "wrapped12"]
"""How values are stored; `wrapped12` is the fault of RSNA 2019 (see `DicomOptions.pixels`)."""
Companion = Literal["localizer", "secondary_capture", "rgb_summary", "dose_report", "clutter"]
"""What else lies in the folder."""

VALUE_RANGE: dict[str, tuple[int, int]] = {
    "signed16": (-32768, 32767),
    "unsigned16": (0, 65535),
    "unsigned12": (0, 4095),
    "wrapped12": (0, 4095),
}
"""Least and greatest stored value of each kind of pixels."""


@dataclass(frozen=True, kw_only=True)
class DicomOptions:
    """One DICOM series: how it is written, and its faults; slices are counted as in the voxels given."""

    seed: int = 0
    """Decides UIDs, file names and every draw; the same options give the same bytes."""
    study_seed: int | None = None
    """Decides Study UID, Frame of Reference and Patient ID; series that share it are one study. None is `seed`."""
    patient_id: str | None = None
    """Invented; None draws one from the study's seed."""

    transfer_syntax: str = "explicit"
    """A name in `TRANSFER_SYNTAXES`; of the series itself, companions are always explicit little endian."""
    container: Literal["part10", "no_preamble", "bare"] = "part10"
    """`no_preamble` starts with the file meta group, `bare` with the data set (implicit and explicit only)."""
    layout: Literal["single", "enhanced", "legacy"] = "single"
    """One file a slice; one Enhanced CT object; or one Legacy Converted Enhanced CT object."""
    header: Literal["full", "stripped"] = "full"
    """`stripped` keeps what RSNA 2019 kept: UIDs such as ID_0a0ba0944f, no SOP class, thickness or instance number."""
    names: Literal["ordered", "shuffled", "sop_uid"] = "ordered"
    """File names: in the order of slices, in another, or the SOP UID."""
    extension: str = ".dcm"
    """Of every file of the series; empty for none."""
    instance_numbers: Literal["ordered", "shuffled", "constant", "absent"] = "ordered"

    pixels: PixelKind = "signed16"
    """`wrapped12`: HU from -1000 to 3095 wrapped around 4096, 12-bit unsigned, and an intercept of 0."""
    rescale: Literal["constant", "per_slice", "lut"] = "constant"
    """`per_slice` draws slope and intercept for each slice; `lut` is a modality LUT, whose outputs are never negative
    (DICOM PS3.3 C.11.1.1), so that HU below 0 read as 0."""
    slope: float = 1.0
    intercept: float = -1024.0
    padding_value: int | None = None
    """Stored value outside the round field of view; None leaves the voxels there."""
    padding_limit: int | None = None
    """Pixel Padding Range Limit: every other pixel of the padding holds this value."""
    is_padding_declared: bool = True
    """Whether the header names the padding value."""

    missing_slices: tuple[int, ...] = ()
    """Left out."""
    copied_slices: tuple[int, ...] = ()
    """Files copied under another name, SOP UID and all; of a multi-frame object the whole file, once."""
    repeated_slices: tuple[int, ...] = ()
    """Written again, same position and pixels, under a new SOP UID; in a multi-frame object another frame."""
    n_coronal: int = 0
    """Coronal images in the same series."""
    companions: tuple[Companion, ...] = ()
    """The localizer has the series' own UID; the others are series of the same study, or no images at all."""

    series_number: int = 2
    description: str = "Head 5.0 H30s"
    kernel: str = "H30s"
    body_part: str = "HEAD"
    contrast_agent: str = ""

    def __post_init__(self) -> None:
        """Refuse what no series can be.

        Raises:
            UsageError: an unknown transfer syntax, or options that exclude each other.
        """
        if self.transfer_syntax not in TRANSFER_SYNTAXES:
            raise UsageError(
                f"DICOM transfer syntax {self.transfer_syntax!r}: expected one of {', '.join(TRANSFER_SYNTAXES)}"
            )
        contradiction = _contradiction(self)
        if contradiction:
            raise UsageError(f"DICOM options: {contradiction}")


def _contradiction(options: DicomOptions) -> str:
    """The rules that the options break; empty if none."""
    low, high = VALUE_RANGE[options.pixels]
    paddings = [value for value in (options.padding_value, options.padding_limit) if value is not None]
    is_lut, is_wrapped = options.rescale == "lut", options.pixels == "wrapped12"
    rules = {
        "seeds are whole numbers from 0": options.seed < 0 or (options.study_seed or 0) < 0,
        "a bare data set names no transfer syntax; use implicit or explicit": (
            options.container == "bare" and options.transfer_syntax not in ("implicit", "explicit")
        ),
        "a multi-frame object has a full header": options.layout != "single" and options.header == "stripped",
        "a multi-frame object has no modality LUT": options.layout != "single" and is_lut,
        "a modality LUT maps 12-bit unsigned values": is_lut and options.pixels != "unsigned12",
        "wrapped values have one slope, 1, and no padding": (
            is_wrapped and (options.rescale != "constant" or options.slope != 1.0 or bool(paddings))
        ),
        "a modality LUT has no padding": is_lut and bool(paddings),
        "a padding limit needs a padding value": options.padding_value is None and options.padding_limit is not None,
        f"padding of {options.pixels} lies in {low} to {high}": any(not low <= value <= high for value in paddings),
        "a slope is not 0": options.slope == 0.0,
    }
    return "; ".join(rule for rule, is_broken in rules.items() if is_broken)
