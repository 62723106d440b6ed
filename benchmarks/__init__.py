"""What docs/performance.md quotes: `uv run python -m benchmarks` measures it again on this machine."""
