"""Change DICOM files at random, guided by coverage, until something else than a frame or an error of ours comes out.

    uv run --with atheris python tools/fuzz_dicom.py FOLDER [-max_total_time=600] [-artifact_prefix=crashes/]

FOLDER holds sound small files to begin with, at best one of each transfer syntax, and takes the new ones that reach new
lines of code. Options are those of libFuzzer. A traceback, a warning, a file that takes over 2 s or over 2 GiB ends
the run and leaves the file that did it. Compressed frames are decoded in the child process, as always, whose limits are
its own: a child that dies is no finding.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["meddinov3_stroke.ct.dicom", "pydicom"]):
    from meddinov3_stroke.ct.dicom.container import read_structure
    from meddinov3_stroke.ct.dicom.decoders import shared_codec
    from meddinov3_stroke.ct.dicom.pixels import decode_frame
    from meddinov3_stroke.ct.dicom.survey import headers_of
    from meddinov3_stroke.errors import CorruptInput, UnsupportedInput

LIMITS = ("-timeout=4", "-rss_limit_mb=2048", "-max_len=65536")
"""Of libFuzzer. Its clock counts whole seconds and the start of a new child, hence 4 for the bar of 2."""


def one_file(content: bytes) -> None:
    """Read every frame of a file as the package does."""
    shared_codec()._started()  # so that its start is not counted as the file's time
    try:
        structure = read_structure(content, "fuzzed.dcm")
        if structure is None:
            return
        for image in headers_of(structure, "fuzzed.dcm")[:2]:
            decode_frame(structure, image.pixels, image.frame or 0, "fuzzed.dcm")
    except (CorruptInput, UnsupportedInput):
        pass


def main() -> None:
    """Fuzz until libFuzzer's limits, with every warning an error."""
    warnings.simplefilter("error")
    if not any(Path(argument).is_dir() for argument in sys.argv[1:]):
        sys.exit(f"{sys.argv[0]}: name a folder with DICOM files to begin with; see the top of this file")
    given = {argument.split("=")[0] for argument in sys.argv[1:]}
    atheris.Setup([*sys.argv, *(limit for limit in LIMITS if limit.split("=")[0] not in given)], one_file)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
