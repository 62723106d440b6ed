"""From a file to a head CT in canonical orientation whose container has proved itself."""

from meddinov3_stroke.volume.reader import input_digest, read_volume

__all__ = ["input_digest", "read_volume"]
