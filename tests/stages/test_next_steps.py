"""Messages about weights and heads name the next step, and taking it works."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meddinov3_stroke import config
from meddinov3_stroke.backbone import load_backbone
from meddinov3_stroke.cli import main
from meddinov3_stroke.download import Limits
from meddinov3_stroke.system.command import SCRIPTS, command_of

ROOT = Path(__file__).resolve().parents[2]


def advised(error: str) -> list[str]:
    """The words of the download command that a message about missing weights names."""
    found = re.search(r"fetch them with: (.*?) \(without a network", error)
    assert found is not None, error
    return shlex.split(found[1])


def test_a_script_of_a_checkout_names_the_script_that_downloads(tmp_path: Path) -> None:
    absent = tmp_path / "my weights" / "model.pth"
    script = ROOT / "script" / "run_meddinov3_infer.py"
    command = [sys.executable, str(script), "--input", "x.nii", "--backbone", str(absent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert result.returncode == 6
    program, named, *flags = advised(result.stderr)
    assert program == "python"
    assert Path(named) == ROOT / "script" / "download_models.py"
    assert flags == ["--package", "meddinov3", "--output", str(absent)]
    offer = [sys.executable, named, *flags, "--check-size", "--from-file", str(script)]
    assert subprocess.run(offer, capture_output=True, timeout=60, check=False).returncode == 0


def test_the_command_names_its_own_verb_and_its_offline_ways_work(
    random_weights: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("meddinov3_stroke.commands.download._limits", lambda *given: Limits(least_bytes=1000))
    fetched = random_weights()
    for name, by_hand in (("by_hand.pth", True), ("registered.pth", False)):
        assert main(["embed", "--input", "absent.nii", "--backbone", name]) == 6
        program, *words = advised(capfd.readouterr().err)
        assert program == "meddinov3-stroke"
        if by_hand:
            shutil.copy(fetched, name)
        else:
            assert main([*words, "--from-file", str(fetched)]) == 0
        assert load_backbone(tmp_path / name, device="cpu").identity.name == name


def test_a_missing_checkpoint_names_what_writes_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--input", "x.nii", "--checkpoint", "absent/best.pt", "--backbone", "demo"]) == 6
    error = capfd.readouterr().err
    assert "no head checkpoint at absent/best.pt" in error
    assert f"train-rsna --series-csv TABLE.csv trains one and writes {config.RSNA_CHECKPOINTS_DIR}/best.pt" in error
    assert f"demo writes {config.DEMO_DIR}/checkpoints/best.pt, which needs --backbone demo" in error


def test_a_head_of_another_backbone_names_the_one_to_pass_and_passing_it_works(
    random_weights: Callable[..., Path],
    random_head: Callable[..., Path],
    head_nifti: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    other = random_weights("other.pth")
    case = ["predict", "--input", str(head_nifti()), "--output-dir", str(tmp_path / "out"), "--resize", "64"]
    for source, named in (("demo", "demo"), (random_weights("mine.pth", seed=3), "PATH/mine.pth")):
        backbone = load_backbone(source, device="cpu")
        words = [*case, "--checkpoint", str(random_head(backbone)), "--device", "cpu"]
        assert main([*words, "--backbone", str(other)]) == 6
        digest = backbone.identity.weights_sha256[:12]
        assert (
            f"compute embeddings with --backbone {named} (weights {digest}) and --resize 64" in capfd.readouterr().err
        )
        assert main([*words, "--backbone", str(source)]) == 0


@pytest.mark.parametrize("verb", sorted(SCRIPTS))
def test_the_command_of_a_verb_follows_how_the_program_was_started(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "script" / "infer_meddinov3_ich.py")])
    assert command_of(verb) == f"python {ROOT / 'script'}/{SCRIPTS[verb]}"
    for program in (
        "/usr/bin/meddinov3-stroke",
        "/site-packages/meddinov3_stroke/__main__.py",
        "-c",
        "/home/me/own.py",
    ):
        monkeypatch.setattr(sys, "argv", [program])
        assert command_of(verb) == f"meddinov3-stroke {verb}"
