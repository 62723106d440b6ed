"""From a file to a head CT in canonical orientation whose container has proved itself."""

from meddinov3_stroke.ct.reader import Source, input_digest, read_volume, source_path

__all__ = ["Source", "input_digest", "read_volume", "source_path"]
