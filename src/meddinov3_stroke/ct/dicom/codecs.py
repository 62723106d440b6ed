"""Compressed frames, decoded in one child process that may die without harm.

The codecs are C, C++ and Rust that read whatever a file holds. A child with limits on memory and time decodes one frame
after the other; where it dies, hangs or answers with what was not asked for, it is killed, that frame is refused, and
the next one gets a new child.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from jaxtyping import Integer

from meddinov3_stroke.ct.dicom import codec_child
from meddinov3_stroke.ct.dicom.codec_process import ChildFault, ChildProcess
from meddinov3_stroke.ct.dicom.header import PixelFormat
from meddinov3_stroke.errors import CorruptInput, MachineError, UnsupportedInput

CODEC_SYNTAXES = frozenset(codec_child.PLUGINS)
"""UIDs of the compressed transfer syntaxes that are read."""

JPEG_2000_SYNTAXES = frozenset(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"))
"""JPEG 2000, lossless and either; what is neither this nor RLE is JPEG or JPEG-LS."""

FRAME_DEADLINE_S = 20.0
"""Longest that a frame may take; one of 512 x 512 takes some 10 ms."""

START_DEADLINE_S = 120.0
"""Longest that the child may take to load its decoders, from a disk that may be slow; usually 1 s."""

CHILD_COMMAND = (sys.executable, "-P", str(Path(codec_child.__file__)))
"""The child's file by itself, for importing the package around it takes longer than the decoders; `-P` keeps its folder
and the working directory out of the search for modules."""


@dataclass(frozen=True, eq=False)
class EncodedFrame:
    """A frame as its codec wrote it, and what shall come out of it."""

    transfer_syntax: str
    """UID, one of `CODEC_SYNTAXES`."""
    codestream: bytes
    pixels: PixelFormat

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pixels.rows, self.pixels.columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values, little endian as the child answers."""
        return np.dtype(f"<{'i' if self.pixels.is_signed else 'u'}{self.pixels.bits_allocated // 8}")

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the decoded frame."""
        return self.pixels.rows * self.pixels.columns * self.dtype.itemsize

    def request(self) -> bytes:
        """The message to the child."""
        options = {
            "rows": self.pixels.rows,
            "columns": self.pixels.columns,
            "samples_per_pixel": 1,
            "photometric_interpretation": "MONOCHROME2",  # values are not inverted for MONOCHROME1
            "bits_allocated": self.pixels.bits_allocated,
            "bits_stored": self.pixels.bits_stored,
            "pixel_representation": int(self.pixels.is_signed),
        }
        return codec_child.message({"syntax": self.transfer_syntax, "options": options}, self.codestream)


class Codec:
    """Decodes in a child process that starts with the first frame; may be shared by threads, and survives a fork."""

    def __init__(self, command: Sequence[str] = CHILD_COMMAND, frame_deadline_s: float = FRAME_DEADLINE_S) -> None:
        self._command, self._frame_deadline_s = tuple(command), frame_deadline_s
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None
        _codecs.add(self)

    def decode(self, frame: EncodedFrame, name: str) -> Integer[np.ndarray, "row col"]:
        """The stored values of `frame` in this machine's byte order; `name` is for messages.

        Raises:
            CorruptInput: the decoder refuses the frame, dies or hangs over it, or answers with another shape.
            UnsupportedInput: the decoder is not installed.
            MachineError: the child cannot be started.
        """
        with self._lock:
            try:
                header, payload = self._started().ask(frame.request(), frame.decoded_bytes, self._frame_deadline_s)
                return _frame_in(header, payload, frame, name)
            except ChildFault as fault:
                self._end_child()
                raise CorruptInput(
                    f"{name}: the decoder of transfer syntax {frame.transfer_syntax} {fault}; the compressed frame is "
                    "damaged; fetch it again, or export the series uncompressed"
                ) from fault
            except (CorruptInput, UnsupportedInput, MachineError):
                raise
            except BaseException:  # an interrupt inside an answer, whose rest must not meet the next frame
                self._end_child()
                raise

    def close(self) -> None:
        """End the child; the next frame would start another."""
        with self._lock:
            self._end_child()

    def forget(self) -> None:
        """Let go of a child that belongs to the process this one was forked from, and of a lock it may have held."""
        self._lock = threading.Lock()
        child, self._child = self._child, None
        if child is not None:
            child.forget()

    def _started(self) -> ChildProcess:
        if self._child is None:
            try:
                self._child = ChildProcess(self._command, START_DEADLINE_S)
            except (ChildFault, OSError) as error:
                raise MachineError(
                    f"the process that decodes compressed DICOM cannot be started ({error}); check memory and that "
                    "pydicom and its decoders are installed"
                ) from error
        return self._child

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


def shared_codec() -> Codec:
    """The codec of this process."""
    return _shared


def _frame_in(
    header: dict[str, Any], payload: bytearray, frame: EncodedFrame, name: str
) -> Integer[np.ndarray, "row col"]:
    """The array in an answer.

    Raises:
        CorruptInput, UnsupportedInput: as the child says.
        ChildFault: the answer is not what was asked for.
    """
    status, words = header.get("status"), str(header.get("words", ""))
    if status == "unsupported":
        raise UnsupportedInput(
            f"{name} cannot be decoded from transfer syntax {frame.transfer_syntax}: {words}; install it, or export "
            "the series uncompressed (Explicit VR Little Endian)"
        )
    if status == "corrupt":
        raise CorruptInput(
            f"{name}: the compressed frame cannot be decoded from transfer syntax {frame.transfer_syntax} ({words}); "
            "it is damaged, or of a kind no decoder takes; fetch it again, or export the series uncompressed"
        )
    asked_for = {"status": "done", "dtype": frame.dtype.str, "shape": list(frame.shape)}
    if header != asked_for or len(payload) != frame.decoded_bytes:
        raise ChildFault("answered with another shape, type or length than the header of the file says")
    values: Integer[np.ndarray, "row col"] = np.frombuffer(payload, frame.dtype).reshape(frame.shape)
    return values.astype(frame.dtype.newbyteorder("="), copy=False)


def _forget_after_fork() -> None:
    for codec in list(_codecs):
        codec.forget()


_codecs: WeakSet[Codec] = WeakSet()
_shared = Codec()
atexit.register(_shared.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
