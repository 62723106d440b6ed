"""Device choice, settings and statistics under the name users import; the package itself does not use it."""

from __future__ import annotations

from meddinov3_stroke.config import Settings, load_settings
from meddinov3_stroke.system.devices import available_cpus, resolve_device
from meddinov3_stroke.system.provenance import Stopwatch, memory_statistics

__all__ = ["Settings", "Stopwatch", "available_cpus", "load_settings", "memory_statistics", "resolve_device"]
