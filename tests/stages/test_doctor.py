"""`doctor` states what the machine lacks and the fix of it, and changes nothing."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke.cli import main
from meddinov3_stroke.commands import doctor
from meddinov3_stroke.download import Limits
from meddinov3_stroke.system.devices import cpu_flags

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[], tuple[int, dict[str, dict[str, Any]]]]:
    """Exit code and checks by name of `doctor --json` in an empty folder, with a models folder of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (*doctor.SWITCHES, *map(str.lower, doctor.SWITCHES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("meddinov3_stroke.commands.download._limits", lambda *given: Limits(least_bytes=1000))

    def run() -> tuple[int, dict[str, dict[str, Any]]]:
        capfd.readouterr()
        code = main(["doctor", "--json"])
        document = json.loads(capfd.readouterr().out)
        assert document["ok"] is (code == 0)
        return code, {one["name"]: one for one in document["checks"]}

    return run


@pytest.fixture
def with_weights(examined: Any, random_weights: Callable[..., Path], tmp_path: Path) -> Path:
    """Weights at their place, downloaded."""
    assert main(["download", "--from-file", str(random_weights())]) == 0
    return tmp_path / "models" / "model.pth"


def test_a_machine_with_everything_passes_and_is_left_as_it_was(
    examined: Any, with_weights: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, found = examined()
    assert code == 0
    assert {one["status"] for one in found.values()} <= {"ok", "note"}
    assert found["weights"]["found"].endswith("as recorded")
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_weights_exit_with_7_and_following_the_fix_gives_0(
    examined: Any, random_weights: Callable[..., Path]
) -> None:
    code, found = examined()
    assert code == 7
    assert [name for name, one in found.items() if one["status"] == "missing"] == ["weights"]
    fix = found["weights"]["fix"]
    assert fix.startswith("meddinov3-stroke download; without a network, add --from-file FILE")
    assert main(["download", "--from-file", str(random_weights())]) == 0
    assert examined()[0] == 0


def test_weights_copied_by_hand_are_noted_until_download_records_them(
    examined: Any, random_weights: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(random_weights(), tmp_path / "models" / "model.pth")
    code, found = examined()
    assert (code, found["weights"]["status"], found["weights"]["fix"]) == (
        0,
        "note",
        "meddinov3-stroke download records it",
    )
    assert main(["download"]) == 0
    assert examined()[1]["weights"]["status"] == "ok"


def test_weights_that_are_not_those_recorded_are_named_with_the_way_out(examined: Any, with_weights: Path) -> None:
    with_weights.write_bytes(with_weights.read_bytes()[:-1] + b"x")
    code, found = examined()
    assert (code, found["weights"]["fix"]) == (7, "meddinov3-stroke download --force")
    with_weights.write_text("<html>log in</html>")
    found = examined()[1]["weights"]
    assert "is an HTML page" in found["found"]
    assert "fetch it again" in found["fix"]


@pytest.mark.parametrize(
    ("target", "value", "name", "status", "fix"),
    [
        ("shutil.disk_usage", lambda path: Usage(9, 9, 1e9), "disk", "missing", "free at least 2 GB"),
        ("shutil.disk_usage", lambda path: Usage(9, 9, 4e9), "disk", "note", "--cache-dir"),
        ("_available_memory_gb", lambda: 1.0, "memory", "missing", "2 GB are needed"),
        ("_available_memory_gb", lambda: None, "memory", "note", "2 GB"),
        ("find_spec", lambda name: None, "torch", "note", "pip install 'meddinov3-stroke[torch]'"),
        ("gpu_may_exist", lambda: True, "GPU", "note", "pytorch.org"),
        ("LEAST_PYTHON", (9, 0), "Python", "missing", "install Python"),
    ],
)
def test_what_is_lacking_is_named_with_its_fix(
    examined: Any,
    with_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    value: object,
    name: str,
    status: str,
    fix: str,
) -> None:
    monkeypatch.setattr(f"meddinov3_stroke.commands.doctor.{target}", value)
    monkeypatch.setattr(doctor, "resolve_device", lambda name: "cpu")
    code, found = examined()
    assert found[name]["status"] == status
    assert fix in found[name]["fix"]
    assert code == (7 if status == "missing" else 0)


def test_an_absent_decoder_is_named_with_the_package_that_brings_it(
    examined: Any, with_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meddinov3_stroke.ct.dicom import decoders

    monkeypatch.setattr(decoders, "PLUGINS", {"1.2.840.10008.1.2.4.90": ("pylibjpeg", "pyjpegls")})
    code, found = examined()  # JPEG 2000 can still be decoded by the other one
    assert (code, found["DICOM codecs"]["status"]) == (0, "note")
    monkeypatch.setattr(decoders, "PLUGINS", {"1.2.840.10008.1.2.4.90": ("pyjpegls",)})
    code, found = examined()
    assert (code, found["DICOM codecs"]["status"]) == (7, "missing")
    assert found["DICOM codecs"]["fix"] == "pip install --force-reinstall pyjpegls"


@pytest.mark.parametrize("blocked", ["outputs", "checkpoints", "cache"])
def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(
    examined: Any, with_weights: Path, tmp_path: Path, blocked: str
) -> None:
    (tmp_path / blocked if blocked == "cache" else Path(blocked)).write_text("a file where a folder should be")
    code, found = examined()
    fixes = {
        "outputs": {"outputs": "--output-dir", "feature cache": "--cache-dir"},
        "cache": {"engine cache": "XDG_CACHE_HOME"},
        "checkpoints": {"checkpoints": "--checkpoints-dir"},
    }[blocked]
    assert {name for name, one in found.items() if "cannot write" in one["found"]} == set(fixes)
    assert all(fix in found[name]["fix"] for name, fix in fixes.items())
    assert code == (0 if blocked == "cache" else 7)


def test_network_switches_are_named_without_their_secrets(
    examined: Any, with_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.example:8080/x")
    monkeypatch.setenv("HF_MIRROR", "https://mirror.example")
    found = examined()[1]["network"]
    assert (found["status"], found["found"]) == (
        "ok",
        "HTTPS_PROXY http://proxy.example:8080, HF_MIRROR https://mirror.example",
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = examined()[1]["network"]
    assert found["status"] == "note"
    assert found["fix"].startswith("unset HF_HUB_OFFLINE")


def test_the_table_fits_80_columns_and_names_each_fix(
    examined: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["doctor"]) == 7
    out, error = capfd.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    assert "fix: meddinov3-stroke download" in out
    assert error.startswith("E-MACHINE: missing: weights; ")


def test_the_flags_of_a_cpu_are_those_linux_lists(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor: 0\nflags\t\t: fpu avx2 avx512f\nprocessor: 1\nflags: fpu\n")
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx2", "avx512f"}
    assert cpu_flags(tmp_path / "absent") == frozenset()
