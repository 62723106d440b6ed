"""The `convert-weights` command."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from meddinov3_stroke.backbone import VisionTransformer, load_backbone
from meddinov3_stroke.commands.convert_weights import main


@pytest.fixture
def mixed_file(tmp_path: Path) -> Path:
    vit = VisionTransformer(embed_dim=64, depth=1, num_heads=1, n_storage_tokens=4, qkv_bias=False, layerscale_init=0.1)
    teacher = {f"backbone.{name}": tensor for name, tensor in vit.state_dict().items()}
    torch.save({"teacher": teacher, "args": argparse.Namespace(lr=1.0)}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_the_command_writes_weights_that_load_and_says_what_it_left_out(
    mixed_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.safetensors"
    assert main(["--input", str(mixed_file), "--output", str(output)]) == 0
    told = capsys.readouterr().out
    assert str(output) in told
    assert "argparse.Namespace" in told
    assert "left out args" in told
    assert load_backbone(output, device="cpu").identity.weights_sha256 in told


def test_a_file_that_is_no_backbone_exits_with_6_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pth")
    assert main(["-i", str(tmp_path / "x.pth"), "--output", str(tmp_path / "x.safetensors")]) == 6
    error = capsys.readouterr().err
    assert error.startswith("E-WEIGHTS-MISMATCH: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "x.safetensors").exists()


def test_another_ending_exits_with_2(mixed_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-i", str(mixed_file), "--output", str(tmp_path / "x.bin")]) == 2
    assert "expected .safetensors" in capsys.readouterr().err
