"""The process that decodes compressed frames: requests on standard input, answers on standard output.

It is started by its file, without the package around it, so it imports nothing of ours. A message is `FRAMING`, a JSON
header and a payload; the first answer says that the decoders are loaded.
"""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

FRAMING = struct.Struct("<4sII")
"""Mark, bytes of the header, bytes of the payload."""

MARK = b"DCF1"

MAX_HEADER_BYTES = 1 << 16
"""A header of more bytes is none."""

MAX_GROWTH_BYTES = 2 << 30
"""Address space that the child may take beyond its own start; a frame of 2^26 pixels needs less."""

MIN_PROCESSOR_S, PROCESSOR_S_PER_PIXEL = 0.75, 3e-6
"""Processor time that a frame may take: 1.5 s for 512 x 512, which needs 0.01 to 0.05 s. Some damage sends CharLS into
a loop of seconds; unlike a deadline, this limit does not strike on a busy machine."""

MAX_WORDS = 300
"""Characters of a codec's complaint that are passed on."""

RLE_LOSSLESS = "1.2.840.10008.1.2.5"
"""The one compressed syntax that keeps the unused bits."""

PLUGINS: dict[str, tuple[str, ...]] = {
    RLE_LOSSLESS: ("pylibjpeg",),
    "1.2.840.10008.1.2.4.57": ("gdcm",),
    "1.2.840.10008.1.2.4.70": ("gdcm",),
    "1.2.840.10008.1.2.4.80": ("gdcm", "pyjpegls"),
    "1.2.840.10008.1.2.4.81": ("gdcm", "pyjpegls"),
    "1.2.840.10008.1.2.4.90": ("pylibjpeg", "gdcm"),
    "1.2.840.10008.1.2.4.91": ("pylibjpeg", "gdcm"),
}
"""Transfer syntax UIDs (RLE; JPEG Lossless; JPEG-LS; JPEG 2000) and pydicom's names of the decoders tried, in order."""

_PLEASANTRY = "Unable to decode as exceptions were raised by all available plugins: "
"""What pydicom says before a decoder's own words."""

_GDCM_NOTHING = "'NoneType' object has no attribute 'encode'"
"""What pydicom makes of it that gdcm gives no pixels and no reason."""

Decode = Callable[[dict[str, Any], bytes], Any]


class UnsupportedFrame(Exception):
    """No decoder is at hand."""


def message(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """A request or an answer as bytes."""
    text = json.dumps(header).encode()
    return b"".join((FRAMING.pack(MARK, len(text), len(payload)), text, payload))


def decode(request: dict[str, Any], codestream: bytes) -> Any:
    """The array of a frame, by the first decoder that takes it.

    Raises:
        UnsupportedFrame: none is installed.
        ValueError: all that are installed refuse it.
    """
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    decoder, source = get_decoder(request["syntax"]), encapsulate([codestream], has_bot=False)
    options = request["options"] | {"number_of_frames": 1, "pixel_keyword": "PixelData"}
    if request["syntax"] == RLE_LOSSLESS:
        options["correct_unused_bits"] = False  # the parent knows the high bit, pydicom supposes it
    refusals = []
    for plugin in PLUGINS[request["syntax"]]:
        if plugin not in decoder.available_plugins:
            continue
        try:
            return decoder.as_array(source, index=0, raw=True, decoding_plugin=plugin, **options)[0]
        except MemoryError:
            raise
        except BaseException as error:  # the decoders raise whatever they meet; a panic of Rust is no Exception
            refusals.append(_in_short(error))
    if not refusals:
        raise UnsupportedFrame("its decoder is not installed")
    raise ValueError("; ".join(refusals))


def _in_short(error: BaseException) -> str:
    return " ".join(str(error).split()).removeprefix(_PLEASANTRY).replace(_GDCM_NOTHING, "no pixels")


def answer(request: dict[str, Any], codestream: bytes, decode: Decode = decode) -> bytes:
    """The message that answers a request."""
    import numpy as np

    options = request["options"]
    try:
        with limited_processor_time(options["rows"] * options["columns"]):
            values = decode(request, codestream)
        dtype = np.dtype(f"<{'ui'[options['pixel_representation']]}{options['bits_allocated'] // 8}")
        # a codec's precision may fit into fewer bytes than are allocated, and never needs more
        values = values.astype(dtype, order="C", casting="safe", copy=False)
    except MemoryError:
        return message({"status": "corrupt", "words": "needs more memory than a frame may take"})
    except UnsupportedFrame as error:
        return message({"status": "unsupported", "words": str(error)[:MAX_WORDS]})
    except Exception as error:
        return message({"status": "corrupt", "words": str(error)[:MAX_WORDS]})
    return message({"status": "done", "dtype": values.dtype.str, "shape": values.shape}, values.tobytes())


def serve(requests: BinaryIO, answers: BinaryIO, decode: Decode = decode) -> None:
    """Answer requests until their end."""
    answers.write(message({"status": "ready"}))
    while len(framing := requests.read(FRAMING.size)) == FRAMING.size:
        _, header_bytes, payload_bytes = FRAMING.unpack(framing)
        header = json.loads(requests.read(header_bytes))
        answers.write(answer(header, requests.read(payload_bytes), decode))


@contextmanager
def limited_processor_time(n_pixels: int) -> Iterator[None]:
    """Within it the process dies of SIGPROF once it has used the time of a frame, where the system can."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, MIN_PROCESSOR_S + n_pixels * PROCESSOR_S_PER_PIXEL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory() -> None:
    """Keep the address space to `MAX_GROWTH_BYTES` beyond its present size and write no core, where the system can."""
    try:
        import resource
        from pathlib import Path

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        n_pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = n_pages * resource.getpagesize() + MAX_GROWTH_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, OSError, ValueError):  # no such limits on this system: the deadline and the checks remain
        pass


def main(decode: Decode = decode) -> None:
    """Serve the parent, whose pipes no codec can write into by accident."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    import pydicom.pixels.decoders  # noqa: F401  loads every decoder, before memory is limited

    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it may be inherited as ignored
    limit_memory()
    serve(requests, answers, decode)


if __name__ == "__main__":
    main()
