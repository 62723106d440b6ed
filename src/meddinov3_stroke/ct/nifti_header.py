"""The header of a NIfTI file (nifti1.h, nifti2.h), checked before a voxel is allocated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64

from meddinov3_stroke.ct.contents import recognise, within_gzip
from meddinov3_stroke.ct.geometry import SPACING_RANGE_MM, voxel_sides
from meddinov3_stroke.errors import CorruptInput, InputError, MissingInput, UnsupportedInput

ByteOrder = Literal["<", ">"]

NIFTI1_BYTES, NIFTI2_BYTES = 348, 540
"""`sizeof_hdr` of the two formats."""

NIFTI2_MAGIC = b"n+2\0\r\n\x1a\n"
"""Its line ends reveal a file that was changed by copying it as text."""

FIELDS: dict[str, tuple[str, int, str, int]] = {
    "dim": ("8i2", 40, "8i8", 16),
    "datatype": ("i2", 70, "i2", 12),
    "pixdim": ("8f4", 76, "8f8", 104),
    "vox_offset": ("f4", 108, "i8", 168),
    "scl_slope": ("f4", 112, "f8", 176),
    "scl_inter": ("f4", 116, "f8", 184),
    "xyzt_units": ("u1", 123, "i4", 500),
    "qform_code": ("i2", 252, "i4", 344),
    "sform_code": ("i2", 254, "i4", 348),
    "quatern": ("3f4", 256, "3f8", 352),
    "qoffset": ("3f4", 268, "3f8", 376),
    "srow": ("(3,4)f4", 280, "(3,4)f8", 400),
}
"""Type and offset of the fields that are used, in NIfTI-1 and in NIfTI-2; parts such as `_x`, `_y`, `_z` are one."""

SCALAR_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
"""NIfTI `datatype` codes of one real number per voxel."""

OTHER_DATATYPES = {1: "1-bit", 32: "complex64", 128: "RGB24", 1536: "float128", 1792: "complex128",
                   2048: "complex256", 2304: "RGBA32"}  # fmt: skip
"""NIfTI `datatype` codes that this package does not read."""

MAX_EXTENSION_BYTES = 1 << 26
"""Most bytes of header extensions, which hold notes of the writer."""

SLOPE_RANGE, MAX_INTERCEPT = (float(np.float32(1e-6)), 1e6), 1e6
"""Larger sizes, and smaller slopes, are damage. NIfTI-1 stores them in float32."""

MAX_OFFSET_MM = 1e6
"""A volume further from the scanner's origin than a kilometre is damage."""

MIN_DETERMINANT = 1e-2
"""Least volume spanned by the unit axes: 1 if orthogonal, cos(tilt) for a sheared gantry tilt, 0 in one plane."""

AGREEMENT_VOXELS = 0.5
"""Share of the smallest voxel side by which sform and qform may differ; float32 quaternions alone reach 0.3."""

SPACING_AGREEMENT = 0.01
"""Relative difference between `pixdim` and the affine's voxel sides that is worth a warning."""

_AGAIN = "the header is damaged; fetch the file or convert it again"


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """What the header declares, free of contradictions."""

    shape: tuple[int, int, int]
    """Voxels along the file's first (fastest), second and third axis."""
    dtype: np.dtype[np.generic]
    """As stored, with the file's byte order."""
    voxel_offset: int
    """Byte of the first voxel."""
    slope: float
    intercept: float
    affine: Float64[np.ndarray, "4 4"]
    """Maps the file's voxel index (i, j, k, 1) to RAS+ mm."""
    warnings: tuple[str, ...]
    needs_exact_end: str = ""
    """Why no byte may follow the last voxel: the header was repaired, and only the file's length confirms that."""

    @property
    def n_bytes(self) -> int:
        """Bytes of content that the file should have."""
        return self.voxel_offset + math.prod(self.shape) * self.dtype.itemsize


def read_header(take: Callable[[int], bytes], path: Path, max_voxels: int) -> NiftiHeader:
    """The checked header at the front of a file; `take(n)` gives its next `n` bytes, or fewer at the end.

    Raises:
        MissingInput: there are no bytes.
        CorruptInput: a field contradicts the format or another field.
        UnsupportedInput: another format, not a 3-D scalar volume in mm, or more than `max_voxels`.
    """
    try:
        block, order = _header_block(take)
        with np.errstate(over="ignore", invalid="ignore"):  # odd values are refused below, not warned about
            fields = np.frombuffer(block, header_dtype(len(block), order)).astype(header_dtype(len(block), "="))[0]
            dtype = _dtype(int(fields["datatype"]), int(fields["xyzt_units"])).newbyteorder(order)
            shape, repairs = _shape([int(dim) for dim in fields["dim"]], max_voxels)
            slope, intercept, warnings = _scaling(float(fields["scl_slope"]), float(fields["scl_inter"]))
            offset, offset_repairs = _voxel_offset(float(fields["vox_offset"]), len(block))
            affine, affine_warnings = _affine(fields, shape)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from None
    repairs += offset_repairs
    needs_exact_end = f"{' and '.join(repairs)}, but bytes follow the last voxel" if repairs else ""
    warnings = (*repairs, *warnings, *affine_warnings)
    return NiftiHeader(shape, dtype, offset, slope, intercept, affine, warnings, needs_exact_end)


def header_dtype(n_bytes: int, order: ByteOrder | Literal["="]) -> np.dtype[np.void]:
    """`FIELDS` of a header of `n_bytes` bytes in the given byte order."""
    kind = 0 if n_bytes == NIFTI1_BYTES else 2
    types, offsets = ([field[k] for field in FIELDS.values()] for k in (kind, kind + 1))
    spec = {"names": list(FIELDS), "formats": types, "offsets": offsets, "itemsize": n_bytes}
    return np.dtype(spec).newbyteorder(order)  # type: ignore[call-overload, no-any-return]


def _header_block(take: Callable[[int], bytes]) -> tuple[bytes, ByteOrder]:
    """The bytes of the header and their order."""
    block = take(NIFTI1_BYTES)
    if not block:
        raise MissingInput("the file is empty once inflated; expected a NIfTI volume; fetch it again")
    is_little = int.from_bytes(block[:4], "little") in (NIFTI1_BYTES, NIFTI2_BYTES)
    n_bytes = int.from_bytes(block[:4], "little" if is_little else "big")
    has_size = n_bytes in (NIFTI1_BYTES, NIFTI2_BYTES)
    if len(block) == NIFTI1_BYTES or not has_size:
        _require_single_file(block, has_size)
    block += take(n_bytes - len(block))
    if len(block) < n_bytes:
        raise CorruptInput(f"ends after {len(block)} bytes, in a header of {n_bytes}; it is truncated; fetch it again")
    if n_bytes == NIFTI2_BYTES and block[4:12] != NIFTI2_MAGIC:
        raise CorruptInput(f"NIfTI-2 magic is {block[4:12]!r}, expected {NIFTI2_MAGIC!r}: copied as text? {_AGAIN}")
    return block, "<" if is_little else ">"


def _require_single_file(block: bytes, has_size: bool) -> None:
    """Refuse content that is not NIfTI in one file; `has_size`: its `sizeof_hdr` is that of NIfTI."""
    found = recognise(block)
    if found is None:
        size = f"no NIfTI header; sizeof_hdr is {block[:4].hex(' ')}, expected 348 or 540"
        raise CorruptInput(f"{'the NIfTI magic is neither n+1 nor n+2' if has_size else size}; {_AGAIN}")
    if found.kind != "nifti" or not has_size:
        where, found = ("holds", found) if has_size else ("is", within_gzip(found))
        raise UnsupportedInput(f"{where} {found.name}; expected a NIfTI volume in one file; {found.remedy}")


def _dtype(code: int, xyzt_units: int) -> np.dtype[np.generic]:
    if code in OTHER_DATATYPES:
        raise UnsupportedInput(f"voxels are {OTHER_DATATYPES[code]}; expected one real number each; save the CT itself")
    if code not in SCALAR_DTYPES:
        raise CorruptInput(f"datatype code {code} is not one of NIfTI's; {_AGAIN}")
    unit = xyzt_units & 7  # the spatial part; 0 is unknown and read as mm, as every reader does
    if unit not in (0, 2):
        name = {1: "metre", 3: "micrometre"}.get(unit, f"code {unit}")
        raise UnsupportedInput(f"the header's spatial unit is {name}; expected mm; save the volume in mm")
    return np.dtype(SCALAR_DTYPES[code])


def _shape(dims: list[int], max_voxels: int) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """(voxels along each axis, repairs): a size of 0 after the third is read as 1, as SimpleITK does."""
    n_dims, sizes = dims[0], dims[1 : 1 + max(dims[0], 0)]
    unset = [k for k in range(3, len(sizes)) if sizes[k] == 0]
    sizes = [1 if k in unset else size for k, size in enumerate(sizes)]
    if not 1 <= n_dims <= 7 or any(size < 1 for size in sizes):
        raise CorruptInput(f"dim is {dims}; expected 1 to 7 dimensions of at least one voxel; {_AGAIN}")
    if n_dims == 1:
        raise UnsupportedInput(f"a one-dimensional NIfTI of {sizes[0]} values; expected a 3-D volume")
    if any(size > 1 for size in sizes[3:]):
        found = f"{n_dims}-D data of {'x'.join(map(str, sizes))}"
        raise UnsupportedInput(f"{found}; expected a 3-D volume; save one volume per file")
    shape = (sizes[0], sizes[1], sizes[2] if n_dims > 2 else 1)
    if (n_voxels := math.prod(shape)) > max_voxels:
        found = f"the header declares {'x'.join(map(str, shape))} = {n_voxels} voxels"
        raise UnsupportedInput(f"{found}; at most {max_voxels} are read; the header is damaged, or raise max_voxels")
    return shape, tuple(f"dim[{k + 1}] is 0 and was read as 1" for k in unset)


def _scaling(slope: float, intercept: float) -> tuple[float, float, tuple[str, ...]]:
    """(slope, intercept, warnings): a slope of 0 means unscaled (nifti1.h, DATA SCALING), and so does NaN in nibabel
    and SimpleITK."""
    if slope == 0.0 or math.isnan(slope):
        ignored = f": scl_inter {intercept:g} is ignored" if intercept else ""
        return 1.0, 0.0, (f"scl_slope is {slope:g}, which means unscaled{ignored}",)
    low, high = SLOPE_RANGE
    if not low <= abs(slope) <= high:
        expected = f"expected 0 (unscaled) or a size of {low:g} to {high:g}"
        raise CorruptInput(f"scl_slope is {slope:g}; {expected}; save it again")
    if math.isnan(intercept):
        return slope, 0.0, ("scl_inter is nan and was read as 0",)
    if not abs(intercept) <= MAX_INTERCEPT:
        raise CorruptInput(f"scl_inter is {intercept:g}; expected a size of at most {MAX_INTERCEPT:g}; save it again")
    return slope, intercept, ()


def _voxel_offset(offset: float, n_header: int) -> tuple[int, tuple[str, ...]]:
    """(byte of the first voxel, repairs): voxels that follow the header at once are read as SimpleITK does."""
    first = n_header + 4  # 4 bytes say whether extensions follow
    if offset == n_header:
        return n_header, (f"vox_offset is {n_header}, below {first}: voxels were read from byte {n_header}",)
    if not (offset >= first and offset.is_integer()):
        raise CorruptInput(f"vox_offset is {offset:g}; expected a whole number of at least {first}; {_AGAIN}")
    if offset > first + MAX_EXTENSION_BYTES:
        most = f"at most {MAX_EXTENSION_BYTES} bytes of header extensions are read"
        raise UnsupportedInput(f"vox_offset is {offset:g}; {most}; the header is damaged, or save it without them")
    return int(offset), ()


def _affine(fields: np.void, shape: tuple[int, int, int]) -> tuple[Float64[np.ndarray, "4 4"], tuple[str, ...]]:
    """The affine from the file's voxel index to RAS+ mm, and warnings; the sform takes precedence over the qform."""
    n_dims, pixdim = int(fields["dim"][0]), fields["pixdim"].astype(np.float64)
    _require_spacing(pixdim[1 : 1 + min(n_dims, 3)])
    sform_code, qform_code = int(fields["sform_code"]), int(fields["qform_code"])
    qform = qform_affine(fields) if qform_code > 0 else None
    if sform_code <= 0 and qform_code <= 0:
        codes = f"sform_code and qform_code are {sform_code} and {qform_code}; expected one above 0"
        raise UnsupportedInput(f"{codes}: left and right are unknown; convert again from DICOM with dcm2niix")
    if sform_code <= 0:
        if qform is None:
            raise CorruptInput("the qform quaternion is not a rotation, and there is no sform; fetch it again")
        return _require_affine(qform, "qform"), ()
    sform = _require_affine(np.vstack([fields["srow"].astype(np.float64), [0, 0, 0, 1]]), "sform")
    sides_mm = voxel_sides(sform)
    if qform is not None:
        corners = np.array([(*corner, 1.0) for corner in itertools.product(*((0.0, n - 1.0) for n in shape))])
        moved_mm = float(np.linalg.norm((corners @ (sform - qform).T)[:, :3], axis=1).max())
        agrees = moved_mm <= AGREEMENT_VOXELS * sides_mm.min()
        problem = f"sform and qform disagree by up to {moved_mm:.1f} mm"
    elif qform_code > 0:
        agrees, problem = False, "the qform quaternion is not a rotation"
    else:
        agrees = n_dims < 3 or np.allclose(pixdim[1:4], sides_mm, rtol=SPACING_AGREEMENT, atol=0.0)
        in_pixdim, in_sform = (" x ".join(f"{side:.3g}" for side in sides) for sides in (pixdim[1:4], sides_mm))
        problem = f"voxel sides are {in_pixdim} mm in pixdim and {in_sform} mm in the sform"
    return sform, () if agrees else (f"{problem}; the sform is used",)


def qform_affine(fields: np.void) -> Float64[np.ndarray, "4 4"] | None:
    """The affine of the qform (nifti1.h, METHOD 2), or None if its quaternion, offset or voxel sides are impossible.

    In extended precision, since the quaternion's first component is a small difference near 180 degrees.
    """
    vector, sides_mm = fields["quatern"].astype(np.longdouble), fields["pixdim"][1:4].astype(np.longdouble)
    if not np.isfinite([*vector, *fields["qoffset"]]).all() or (sides_mm < 0).any():
        return None
    first_squared, tolerance = 1 - vector @ vector, 3 * np.finfo(fields["quatern"].dtype).eps
    if first_squared <= -tolerance:
        return None
    unit = np.array([np.sqrt(first_squared) if first_squared >= tolerance else 0, *vector])
    (_, ab, ac, ad), (_, bb, bc, bd), (_, _, cc, cd), (_, _, _, dd) = np.outer(unit, unit * (2 / (unit @ unit)))
    rotation = [[1 - (cc + dd), bc - ad, bd + ac], [bc + ad, 1 - (bb + dd), cd - ab], [bd - ac, cd + ab, 1 - (bb + cc)]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(rotation) * sides_mm * [1, 1, -1 if fields["pixdim"][0] < 0 else 1]
    affine[:3, 3] = fields["qoffset"]
    return affine


def _require_affine(affine: Float64[np.ndarray, "4 4"], name: str) -> Float64[np.ndarray, "4 4"]:
    if not (np.isfinite(affine).all() and np.abs(affine[:3, 3]).max() <= MAX_OFFSET_MM):
        raise CorruptInput(f"the {name} holds NaN, infinity or an absurd offset; {_AGAIN}")
    _require_spacing(sides_mm := voxel_sides(affine))
    determinant = abs(float(np.linalg.det(affine[:3, :3] / sides_mm)))
    if determinant < MIN_DETERMINANT:
        found = f"determinant {determinant:.2g} of unit axes, at least {MIN_DETERMINANT:g} needed"
        raise CorruptInput(f"the axes of the {name} span no volume ({found}); {_AGAIN}")
    return affine


def _require_spacing(spacing_mm: Float64[np.ndarray, " axis"]) -> None:
    low, high = SPACING_RANGE_MM
    if not np.all((spacing_mm >= low) & (spacing_mm <= high)):
        shown = " x ".join(f"{side:g}" for side in spacing_mm)
        raise CorruptInput(f"voxel sides are {shown} mm; expected {low:g} to {high:g}; {_AGAIN}")
