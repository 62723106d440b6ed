"""From a file to a head CT in canonical orientation whose container was checked to the last byte."""

from meddinov3_stroke.ct.contents import OpenedInput
from meddinov3_stroke.ct.reader import Reader, Source, open_input, read_volume, source_path

__all__ = ["OpenedInput", "Reader", "Source", "open_input", "read_volume", "source_path"]
