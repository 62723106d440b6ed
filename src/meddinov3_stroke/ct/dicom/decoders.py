"""Compressed frames, decoded in one child process that may die without harm.

The codecs are C, C++ and Rust code that reads untrusted bytes. One child with limits on memory and processor time
decodes frame after frame. If it dies, hangs or returns something unexpected it is killed, that frame is refused, and
the next frame gets a new child.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from meddinov3_stroke.ct.dicom.header import PixelFormat
from meddinov3_stroke.errors import CorruptInput, MachineError, UnsupportedInput
from meddinov3_stroke.system.children import ChildContext, end_with_parent, how_it_died

RLE_LOSSLESS = "1.2.840.10008.1.2.5"
"""The one compressed syntax that keeps unused bits."""

JPEG_2000_SYNTAXES = frozenset(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"))
"""JPEG 2000, lossless and lossy; the others except RLE are JPEG or JPEG-LS."""

PLUGINS: dict[str, tuple[str, ...]] = {
    RLE_LOSSLESS: ("pylibjpeg",),
    "1.2.840.10008.1.2.4.57": ("gdcm",),
    "1.2.840.10008.1.2.4.70": ("gdcm",),
    "1.2.840.10008.1.2.4.80": ("gdcm", "pyjpegls"),
    "1.2.840.10008.1.2.4.81": ("gdcm", "pyjpegls"),
    "1.2.840.10008.1.2.4.90": ("pylibjpeg", "gdcm"),
    "1.2.840.10008.1.2.4.91": ("pylibjpeg", "gdcm"),
}
"""The supported compressed transfer syntaxes (RLE; JPEG Lossless; JPEG-LS; JPEG 2000) and pydicom's names of their
decoders, in order."""

FRAME_DEADLINE_S, START_DEADLINE_S = 20.0, 120.0
"""Time limits for a frame (512 x 512 takes about 10 ms), and for the child to load its decoders (usually 1 s)."""

MAX_GROWTH_BYTES = 2 << 30
"""Address space that the child may use beyond its initial size; a frame of 2^26 pixels needs less."""

MIN_PROCESSOR_S, PROCESSOR_S_PER_PIXEL = 0.75, 3e-6
"""Processor time allowed for a frame: 1.5 s for 512 x 512, which needs 0.01 to 0.05 s. Some damage makes CharLS loop
for seconds; unlike a deadline, this limit does not depend on the load of the machine."""

_PYDICOM_PREFIX = "Unable to decode as exceptions were raised by all available plugins: "
_GDCM_NOTHING = "'NoneType' object has no attribute 'encode'"
"""What pydicom puts before a decoder's own message, and its error if gdcm returns no pixels and no reason."""

_MAX_WORDS = 300  # length to which a codec's message is cut

_is_posix = hasattr(signal, "setitimer") and hasattr(signal, "pthread_sigmask")


class UnsupportedFrame(Exception):
    """No decoder is installed."""


class RefusedFrame(Exception):
    """Every decoder refuses the frame."""


@dataclass(frozen=True, eq=False)
class EncodedFrame:
    """A compressed frame and its expected format."""

    transfer_syntax: str
    """UID, one of `PLUGINS`."""
    codestream: bytes
    pixels: PixelFormat


Decode = Callable[[EncodedFrame], Any]


def decode(frame: EncodedFrame) -> Any:
    """The array of a frame, by the first decoder that accepts it; runs in the child."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    decoder, source = get_decoder(frame.transfer_syntax), encapsulate([frame.codestream], has_bot=False)
    options = {name: getattr(frame.pixels, name) for name in ("rows", "columns", "bits_allocated", "bits_stored")} | {
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",  # values are not inverted for MONOCHROME1
        "pixel_representation": int(frame.pixels.is_signed),
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    if frame.transfer_syntax == RLE_LOSSLESS:
        options["correct_unused_bits"] = False  # `pixels` removes them by the actual high bit, pydicom assumes one
    refusals = []
    for plugin in [one for one in PLUGINS[frame.transfer_syntax] if one in decoder.available_plugins]:
        try:
            return decoder.as_array(source, index=0, raw=True, decoding_plugin=plugin, **options)[0]
        except MemoryError:
            raise
        except BaseException as error:  # decoders raise errors of any type; a Rust panic is not an Exception
            words = " ".join(str(error).split()).removeprefix(_PYDICOM_PREFIX)
            refusals.append(words.replace(_GDCM_NOTHING, "no pixels"))
    if not refusals:
        raise UnsupportedFrame("its decoder is not installed")
    raise RefusedFrame("; ".join(refusals))


def _answer(decode: Decode, frame: EncodedFrame) -> Any:
    """The values of a frame in its dtype; runs in the child, and raises no error that could not be sent."""
    _limit_processor_time(MIN_PROCESSOR_S + frame.pixels.rows * frame.pixels.columns * PROCESSOR_S_PER_PIXEL)
    try:
        values = decode(frame)
        # a codec's precision may fit into fewer bytes than are allocated, and never needs more
        return values.astype(frame.pixels.dtype, order="C", casting="safe", copy=False)
    except UnsupportedFrame:
        raise
    except Exception as error:
        is_memory = isinstance(error, MemoryError)
        words = "needs more memory than a frame may take" if is_memory else str(error)[:_MAX_WORDS]
        raise RefusedFrame(words) from None
    finally:
        _limit_processor_time(0)


def _limit_processor_time(seconds: float) -> None:
    if _is_posix:  # SIGPROF ends the process after so much processor time; 0: never
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _prepare_child(loads_decoders: bool) -> None:
    """Detach the child from the terminal, load decoders, limit memory, and let it end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which finishes its case
    if _is_posix:
        os.setsid()
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # may be inherited as ignored
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # decoders print
        os.dup2(nowhere, standard)
    if loads_decoders:
        import pydicom.pixels.decoders  # noqa: F401  before memory is limited
    threading.Thread(target=end_with_parent, daemon=True).start()
    with suppress(ImportError, OSError, ValueError):  # where there are no limits, the deadline and the checks remain
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        n_pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = n_pages * resource.getpagesize() + MAX_GROWTH_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


class _Child:
    """A pool of one process, ready to decode."""

    def __init__(self, loads_decoders: bool) -> None:
        self.pool = ProcessPoolExecutor(1, ChildContext(), initializer=_prepare_child, initargs=(loads_decoders,))
        try:
            pid = self.pool.submit(os.getpid).result(START_DEADLINE_S)
        except BaseException:
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise
        self.process = next(child for child in multiprocessing.active_children() if child.pid == pid)

    def end(self) -> None:
        self.process.kill()
        self.pool.shutdown(cancel_futures=True)

    def death(self) -> str:
        self.pool.shutdown()  # its own thread reaps the process too; the status is known once both are done
        self.process.join(1)
        how = how_it_died(self.process.exitcode)
        return "takes more processor time than allowed" if how == "died of SIGPROF" else how


class Codec:
    """Decodes in a child process that starts with the first frame; may be shared by threads."""

    def __init__(self, decode: Decode = decode, frame_deadline_s: float = FRAME_DEADLINE_S) -> None:
        self._decode, self._frame_deadline_s = decode, frame_deadline_s
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def decode(self, frame: EncodedFrame, name: str) -> Integer[np.ndarray, "row col"]:
        """The stored values of `frame` in this machine's byte order; `name` is for messages.

        Raises `MachineError` if the child cannot be started, other errors as `pixels.decode_frame`.
        """
        remedy = "fetch it again, or export the series uncompressed (Explicit VR Little Endian)"
        where = f"transfer syntax {frame.transfer_syntax}"
        with self._lock:
            child = self._started()
            try:
                values = child.pool.submit(_answer, self._decode, frame).result(self._frame_deadline_s)
                expected = frame.pixels.dtype, (frame.pixels.rows, frame.pixels.columns)
                if isinstance(values, np.ndarray) and (values.dtype, values.shape) == expected:
                    return values
                fault = "returned another shape or type than the header declares"
            except UnsupportedFrame as error:
                why = f"cannot be decoded from {where}: {error}"
                raise UnsupportedInput(f"{name} {why}; install it, {remedy}") from error
            except RefusedFrame as error:
                fault = f"the compressed frame cannot be decoded from {where} ({error}); it is damaged"
                raise CorruptInput(f"{name}: {fault}; {remedy}") from error
            except BrokenProcessPool:
                fault = child.death()
            except TimeoutError:
                fault = "takes longer than allowed"
            except Exception as error:  # of multiprocessing, which cannot send the answer; `_answer` raises no other
                fault = f"returned an unexpected result ({error})"
            except BaseException:  # an interrupt: the answer must not reach the next frame
                self._end_child()
                raise
            self._end_child()
        raise CorruptInput(f"{name}: the decoder of {where} {fault}; the compressed frame is damaged; {remedy}")

    def close(self) -> None:
        """End the child; the next frame starts another."""
        with self._lock:
            self._end_child()

    def _started(self) -> _Child:
        if self._child is not None and not self._child.process.is_alive():
            self._end_child()  # it died between two frames
        if self._child is None:
            try:
                self._child = _Child(loads_decoders=self._decode is decode)
            except (BrokenProcessPool, TimeoutError, OSError) as error:
                found = f"the process that decodes compressed DICOM cannot be started ({error})"
                raise MachineError(f"{found}; check memory and that pydicom and its decoders are installed") from error
        return self._child

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


def shared_codec() -> Codec:
    """The codec of this process."""
    return _shared[-1]


_shared = [Codec()]
"""The codec of this process, after those that it inherited by fork: their lock may be held, and collecting their pool
would write into the pipe that the parent uses."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _shared.append(Codec()))
