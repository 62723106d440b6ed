"""The quickest benchmarks run from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks`, in a process of its own: it sets threads and imports what it likes."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def test_quick_benchmarks_print_tables_and_write_json(tmp_path: Path) -> None:
    done = run("pipeline", "cached", "--quick", "--output-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for name, title in (("pipeline", "The pipeline around the engine"), ("cached", "A cohort that is cached")):
        document = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert f"## {title}" in done.stdout
        assert document["rows"]
        assert document["machine"]["cpu_model"]
        assert document["quick"] is True


def test_an_unknown_benchmark_names_the_known_ones() -> None:
    done = run("speed")
    assert done.returncode == 2
    assert "engines" in done.stderr


@pytest.mark.parametrize("name", ["cached", "cold_start", "memory"])
def test_modules_whose_child_times_its_imports_import_no_engine(name: str) -> None:
    code = f"import sys, benchmarks.{name}; assert not {{'torch', 'openvino'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
