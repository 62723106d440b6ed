"""Defaults of flags that the environment sets."""

from __future__ import annotations

from pathlib import Path

import pytest
import tyro

from meddinov3_stroke import head_train, ich_infer

PREDICT = ["--checkpoint", "best.pt"]
TRAIN = ["--train-embeddings", "e.npy", "--train-labels", "l.npy"]


@pytest.mark.parametrize(("stage", "flags"), [(ich_infer, PREDICT), (head_train, TRAIN)])
def test_ct_model_device_is_the_default_of_device_and_the_flag_beats_it(
    monkeypatch: pytest.MonkeyPatch, stage: object, flags: list[str]
) -> None:
    assert tyro.cli(stage.Args, args=flags).device == "auto"
    monkeypatch.setenv("CT_MODEL_DEVICE", "cuda:1")
    assert tyro.cli(stage.Args, args=flags).device == "cuda:1"
    assert tyro.cli(stage.Args, args=[*flags, "--device", "cpu"]).device == "cpu"


def test_a_setting_that_cannot_be_read_is_a_usage_error_and_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOWNLOAD_RETRIES", "many")
    monkeypatch.chdir(tmp_path)
    assert ich_infer.main(PREDICT) == 2
    assert "DOWNLOAD_RETRIES" in capfd.readouterr().err
