"""What an input holds: its images in stacks, the files without images, and the damaged ones.

Warnings name no free text of headers and no files, which may identify a patient: they go into outputs and the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256

from meddinov3_stroke.ct.dicom.choice import contrast_hint
from meddinov3_stroke.ct.dicom.container import DicomContent, begins_as_dicom, read_structure
from meddinov3_stroke.ct.dicom.files import InputFile
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.header_reading import headers_of
from meddinov3_stroke.ct.dicom.layout import layout_of
from meddinov3_stroke.ct.dicom.pixels import NATIVE_SYNTAXES, decode_frame, require_length
from meddinov3_stroke.ct.dicom.series import Stack, assemble, role_fault
from meddinov3_stroke.errors import CorruptInput, InputError
from meddinov3_stroke.system.prefetch import read_ahead

HEAD_BYTES = 1 << 14
"""Bytes read of a file first; RSNA's headers have about 1 KiB, those of a scanner rarely more than 8."""

KEEP_BYTES = 1 << 29
"""Most bytes of files that are kept between header and pixels; a larger input is read by its headers first, and then
the files of the chosen series."""

FILES_AHEAD = 2
"""Files read and hashed ahead of the one whose header is parsed."""

LOSSY = {"1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless", "1.2.840.10008.1.2.4.91": "JPEG 2000"}
"""Transfer syntaxes that may have changed values."""


@dataclass(eq=False)
class KeptFiles:
    """Files that were read whole: the digest of each, and its walked content while `KEEP_BYTES` suffice."""

    digests: dict[str, str] = field(default_factory=dict)
    """Hex sha256 by file name."""
    contents: dict[str, DicomContent] = field(default_factory=dict)
    n_bytes: int = 0

    def add(self, name: str, digest: str, content: DicomContent) -> None:
        """Record a file."""
        self.digests[name] = digest
        if self.n_bytes + len(content.content) <= KEEP_BYTES:
            self.contents[name] = content
            self.n_bytes += len(content.content)

    def keep_only(self, names: Mapping[str, object]) -> None:
        """Drop the contents of all other files."""
        self.contents = {name: content for name, content in self.contents.items() if name in names}
        self.n_bytes = sum(len(content.content) for content in self.contents.values())


@dataclass(frozen=True, eq=False)
class Survey:
    """Every file of an input, exactly once: in a stack, without images, or damaged."""

    files: dict[str, InputFile]
    """By name."""
    stacks: tuple[Stack, ...]
    without_images: tuple[tuple[str, str], ...]
    """(file, what it is): not DICOM, or DICOM without an image."""
    damaged: tuple[tuple[str, InputError], ...]
    """(file, why it cannot be read)."""


def survey(files: Sequence[InputFile], keep: KeptFiles | None = None) -> Survey:
    """What the files hold, by their headers; pixels are read only if two images share a position.

    With `keep`, files are read whole, once, into it, provided that all together fit into `KEEP_BYTES`.

    Raises:
        MachineError: the machine cannot read a file.
    """
    images: list[ImageHeader] = []
    without: list[tuple[str, str]] = []
    damaged: list[tuple[str, InputError]] = []
    is_kept = keep is not None and sum(file.n_bytes for file in files) <= KEEP_BYTES
    for file, headers in _read_whole(files, keep) if keep is not None and is_kept else _read_heads(files):
        if isinstance(headers, InputError):
            damaged.append((file.name, headers))
        elif headers:
            images += headers
        else:
            without.append((file.name, "not DICOM" if headers is None else "DICOM without an image"))
    by_name = {file.name: file for file in files}
    contents = {} if keep is None else keep.contents
    stacks = assemble(images, partial(same_pixels, by_name, kept=contents))
    return Survey(by_name, stacks, tuple(without), tuple(damaged))


Headers = tuple[ImageHeader, ...] | InputError | None


def _read_heads(files: Sequence[InputFile]) -> Iterator[tuple[InputFile, Headers]]:
    for file in files:
        try:
            yield file, read_file_headers(file)
        except InputError as error:
            yield file, error


def _read_whole(files: Sequence[InputFile], keep: KeptFiles) -> Iterator[tuple[InputFile, Headers]]:
    with closing(read_ahead(map(_read_and_hash, files), FILES_AHEAD)) as read:
        for file, content, digest in read:
            if content is None or isinstance(content, InputError):
                yield file, content
                continue
            try:
                found = read_structure(content, file.name)
                headers = None if found is None else _checked_headers(found, file.name)
            except InputError as error:
                yield file, error
                continue
            if found is not None:
                keep.add(file.name, digest, found)
            yield file, headers


def _read_and_hash(file: InputFile) -> tuple[InputFile, bytes | InputError | None, str]:
    """(the file, its bytes, None if it is not DICOM or why it cannot be read, hex sha256)."""
    try:
        content = file.read_if(begins_as_dicom, HEAD_BYTES)
        if content is not None:
            _require_length(file, len(content), file.n_bytes)
    except InputError as error:
        return file, error, ""
    return file, content, "" if content is None else sha256(content).hexdigest()


def read_file_headers(file: InputFile) -> tuple[ImageHeader, ...] | None:
    """The headers of the images in a file, one per frame; None if it is not DICOM. Native pixels are not read.

    Raises:
        CorruptInput: damaged, or native pixel data of another length than the header declares.
        InputError, MachineError: as `InputFile.read`.
    """
    content = _content_by_head(file)
    return None if content is None else _checked_headers(content, file.name)


def _content_by_head(file: InputFile) -> DicomContent | None:
    """The walked file; for a native image longer than `HEAD_BYTES`, with zeros in place of what follows its head.

    The walk skips native pixels by their length, so the result is that of the whole file. If the walk would meet the
    zeros (a longer header, compressed pixels, elements after the pixels), the whole file is read.
    """
    if file.n_bytes > HEAD_BYTES:
        head = file.head(HEAD_BYTES)
        _require_length(file, len(head), HEAD_BYTES)
        if not begins_as_dicom(head):
            return None
        file.require_readable_size()
        with suppress(CorruptInput):
            found = read_structure(head + bytes(file.n_bytes - len(head)), file.name)
            if found is None or _ends_with_pixels(found, len(head), file.n_bytes):
                return found
    content = file.read()
    _require_length(file, len(content), file.n_bytes)
    return read_structure(content, file.name)


def _require_length(file: InputFile, n_found: int, n_expected: int) -> None:
    if n_found < n_expected:
        raise CorruptInput(f"{file.name} has shrunk below {file.n_bytes} bytes since it was listed; read it again")


def _ends_with_pixels(found: DicomContent, n_head: int, n_bytes: int) -> bool:
    pixels = found.pixel_data
    return (
        pixels is not None
        and pixels.length is not None
        and pixels.offset <= n_head
        and pixels.offset + pixels.length == n_bytes == len(found.content)
    )


def _checked_headers(content: DicomContent, name: str) -> tuple[ImageHeader, ...]:
    headers = headers_of(content, name)
    is_slice = any(not role_fault(header) for header in headers)  # other images are never decoded
    if is_slice and content.pixel_data is not None and content.transfer_syntax in NATIVE_SYNTAXES:
        require_length(content.pixel_data, headers[0].pixels, name)
    return headers


def same_pixels(
    files: Mapping[str, InputFile],
    first: ImageHeader,
    second: ImageHeader,
    kept: Mapping[str, DicomContent] | None = None,
) -> bool:
    """Whether two images have the same stored pixels and HU scaling; an image that cannot be decoded equals none."""
    if (first.pixels, first.rescale, first.padding) != (second.pixels, second.rescale, second.padding):
        return False
    try:
        contents = [(kept or {}).get(image.file) or walked(files[image.file])[0] for image in (first, second)]
        if first.frame == second.frame and contents[0].content == contents[1].content:
            return True
        frames = [
            decode_frame(content, image.pixels, image.frame or 0, image.file)
            for content, image in zip(contents, (first, second), strict=True)
        ]
    except InputError:
        return False
    return frames[0].tobytes() == frames[1].tobytes()


def walked(file: InputFile) -> tuple[DicomContent, str]:
    """(the walked content of a file whose header was read before, hex sha256 of its bytes).

    Raises:
        CorruptInput: it is not DICOM any more.
        InputError, MachineError: as `InputFile.read`.
    """
    content = file.read()
    found = read_structure(content, file.name)
    if found is None:
        raise CorruptInput(f"{file.name} changed while it was read; read it again")
    return found, sha256(content).hexdigest()


def warnings_about(found: Survey, stack: Stack) -> tuple[str, ...]:
    """What of the input is not in the volume of `stack`, then what is unusual about the stack itself."""
    return (*_left_out(found, stack), *_about(stack))


def _left_out(found: Survey, stack: Stack) -> Iterator[str]:
    if stack.set_aside:
        n_copies = _counted(len(stack.set_aside), "duplicate image was", "duplicate images were")
        yield f"{n_copies} left out (inspect lists them)"
    others = [other for other in found.stacks if other is not stack]
    n_rest = sum(len(other.images) for other in others if _is_of_same_series(other, stack))
    if n_rest:
        yield (
            f"only {len(stack.images)} of the {len(stack.images) + n_rest} slices of this series are read: the others "
            "differ in acquisition, kernel, size, orientation or kind"
        )
    reasons: Counter[str] = Counter()
    for other in others:
        if not _is_of_same_series(other, stack):
            reasons[other.reason or "another usable series"] += len(other.images)
    if reasons:
        listed = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        n_others = _counted(sum(reasons.values()), "other image was", "other images were")
        yield f"{n_others} set aside: {listed}"
    n_not_dicom = sum(what == "not DICOM" for _, what in found.without_images)
    if n_not_dicom:
        n_files = _counted(n_not_dicom, "file is not DICOM and was", "files are not DICOM and were")
        yield f"{n_files} set aside (inspect lists them)"


def _is_of_same_series(other: Stack, stack: Stack) -> bool:
    return other.verdict == "usable" and other.series_instance_uid == stack.series_instance_uid


def _counted(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _about(stack: Stack) -> Iterator[str]:
    """Warnings about the stack's geometry, scaling, compression and contrast."""
    yield from layout_of(stack).notes
    scalings = {(image.rescale.slope, image.rescale.intercept) for image in stack.images}
    if len(scalings) > 1:
        yield f"{len(scalings)} pairs of slope and intercept in one series; each slice is scaled by its own"
    if not all(image.rescale.is_stated or image.has_modality_lut for image in stack.images):
        yield "no rescale slope or intercept in the header; stored values are taken as HU"
    if stack.first.transfer_syntax in LOSSY:
        yield f"compressed with {LOSSY[stack.first.transfer_syntax]}, which may have changed values"
    hint = contrast_hint(stack)
    if hint:
        where = hint.split(" ", 1)[0]
        yield f"the {where} in the headers suggests contrast (see inspect); this model is for non-contrast CT"
