"""Ground floor: devices, progress, statistics, seeds, digests and atomic files."""
