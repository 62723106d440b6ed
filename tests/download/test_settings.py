"""Settings that users' existing .env files carry."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke import config
from meddinov3_stroke.commands import download as download_models
from meddinov3_stroke.commands.download import Args
from meddinov3_stroke.config import Settings, load_settings
from meddinov3_stroke.download import configured_sources
from meddinov3_stroke.errors import UsageError

KEYS = {name.upper() for name in Settings.__dataclass_fields__} | {"MEDDINOV3_CKPT_PATH", "DOWNLOAD_CHUNK_MB"}


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper() in KEYS]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Settings of a `.env` with these keys."""

    def write(**keys: str) -> Settings:
        (tmp_path / ".env").write_text("".join(f"{key}={value}\n" for key, value in keys.items()))
        return load_settings()

    return write


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("CT_MODEL_DEVICE", "ct_model_device", "cuda:1"),
        ("HF_MIRROR", "hf_mirror", "https://m.example"),
        ("HF_ENDPOINT", "hf_endpoint", "https://m.example"),
        ("HUGGINGFACE_TOKEN", "huggingface_token", "hf_x"),
        ("DOWNLOAD_CONNECT_TIMEOUT", "download_connect_timeout", 7.0),
        ("DOWNLOAD_READ_TIMEOUT", "download_read_timeout", 120.0),
        ("DOWNLOAD_RETRIES", "download_retries", 9),
        ("DOWNLOAD_BACKOFF", "download_backoff", 0.5),
        ("MEDDINOV3_GDRIVE_URL", "meddinov3_gdrive_url", "https://drive.google.com/uc?id=x"),
    ],
)
def test_a_key_of_the_file_is_read_and_the_environment_wins(
    key: str, field: str, value: Any, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert getattr(written(**{key: str(value)}), field) == value
    assert getattr(written(**{key.lower(): str(value)}), field) == value
    monkeypatch.setenv(key, "1")
    assert getattr(written(**{key: str(value)}), field) == type(value)("1")
    monkeypatch.setenv(key, "")
    assert getattr(written(**{key: str(value)}), field) == value


def test_relative_paths_in_the_file_start_at_its_folder(
    written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert written(MODELS_DIR="m").meddinov3_ckpt_path == tmp_path / "m" / "model.pth"
    assert written(MEDDINOV3_CKPT_PATH="w.pth").meddinov3_ckpt_path == tmp_path / "w.pth"
    monkeypatch.setenv("MEDDINOV3_CKPT_PATH", "here.pth")
    assert load_settings().meddinov3_ckpt_path == Path("here.pth")


def test_a_number_that_cannot_be_read_is_a_usage_error(written: Any) -> None:
    with pytest.raises(UsageError, match="DOWNLOAD_RETRIES: found 'many', expected a number"):
        written(DOWNLOAD_RETRIES="many")


@pytest.mark.parametrize("key", ["DOWNLOAD_CONNECT_TIMEOUT", "DOWNLOAD_READ_TIMEOUT", "DOWNLOAD_RETRIES"])
def test_a_number_out_of_range_is_a_usage_error_of_download(key: str, written: Any) -> None:
    written(**{key: "-1"})
    with pytest.raises(UsageError, match=key):
        download_models.run(Args(check_size=True))


def test_limits_are_those_of_the_settings_unless_a_flag_is_given(written: Any) -> None:
    settings = written(
        DOWNLOAD_CONNECT_TIMEOUT="7", DOWNLOAD_READ_TIMEOUT="120", DOWNLOAD_RETRIES="9", DOWNLOAD_BACKOFF="0.5"
    )
    limits = download_models._limits(Args(), settings)
    assert (limits.connect_s, limits.read_s, limits.retries, limits.backoff_s) == (7.0, 120.0, 9, 0.5)
    limits = download_models._limits(Args(timeout=3.0, retries=0), settings)
    assert (limits.connect_s, limits.read_s, limits.retries) == (7.0, 3.0, 0)


def test_a_key_without_meaning_is_named_once_by_download(
    written: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO", logger="meddinov3_stroke")
    (tmp_path / "got.pth").write_bytes(b"PK\x03\x04")
    written(DOWNLOAD_CHUNK_MB="4")
    download_models.run(Args(check_size=True, from_file=tmp_path / "got.pth"))
    assert caplog.text.count("DOWNLOAD_CHUNK_MB") == 1
    assert "not used: DOWNLOAD_CHUNK_MB" in caplog.text


def test_the_token_of_the_file_goes_to_the_hub(written: Any) -> None:
    hub = next(source for source in configured_sources(written(HUGGINGFACE_TOKEN="hf_x")) if source.token)
    assert (hub.name, hub.token) == ("Hugging Face", "hf_x")


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({}, "modelsweights/meddinov3/MedDINOv3-ViTB-16-CT-3M/model.pth"),
        ({}, "modelsweights/meddinov3/MedDINOv3-ViTB-16-CT-3M/meddinov3_vitb16_ct3m.pth"),
        ({"MODELS_DIR": "m"}, "m/meddinov3/MedDINOv3-ViTB-16-CT-3M/model.pth"),
        ({"MEDDINOV3_SUBDIR": "s"}, "modelsweights/meddinov3/s/model.pth"),
        ({"MEDDINOV3_FILENAME": "f.pth"}, "modelsweights/meddinov3/MedDINOv3-ViTB-16-CT-3M/f.pth"),
        ({"MEDDINOV3_GDRIVE_FILENAME": "g.pth"}, "modelsweights/meddinov3/MedDINOv3-ViTB-16-CT-3M/g.pth"),
    ],
)
def test_weights_of_an_earlier_script_are_found_and_the_log_says_so(
    keys: dict[str, str], place: str, written: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="meddinov3_stroke")
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(b"weights")
    found = written(**keys).meddinov3_ckpt_path
    assert found.resolve() == tmp_path / place
    assert f"weights found at {found}" in caplog.text


@pytest.mark.parametrize("given", ["default", "setting"])
def test_the_default_place_and_the_setting_win_over_the_old_place(given: str, written: Any, tmp_path: Path) -> None:
    old = tmp_path / "modelsweights" / "meddinov3" / "MedDINOv3-ViTB-16-CT-3M" / "model.pth"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    if given == "default":
        (tmp_path / "modelsweights" / "model.pth").write_bytes(b"new")
        assert written().meddinov3_ckpt_path == config.MODELS_DIR / "model.pth"
    else:
        assert written(MEDDINOV3_CKPT_PATH="w.pth").meddinov3_ckpt_path == tmp_path / "w.pth"


@pytest.mark.parametrize(
    ("program", "place", "in_cache"),
    [
        ("/usr/bin/meddinov3-stroke", "", True),
        ("C:/Scripts/meddinov3-stroke.exe", "", True),
        ("/site-packages/meddinov3_stroke/__main__.py", "", True),
        ("/usr/bin/meddinov3-stroke", ".env", False),
        ("/usr/bin/meddinov3-stroke", "modelsweights/old.txt", False),
        ("/usr/bin/meddinov3-stroke", "../script/download_models.py", False),
        ("script/run_meddinov3_infer.py", "", False),
        ("/home/me/own.py", "", False),
        ("/site-packages/pytest/__main__.py", "", False),
    ],
)
def test_only_the_command_outside_a_checkout_keeps_weights_in_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, place: str, in_cache: bool
) -> None:
    work = tmp_path / "repository" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.delenv("MODELS_DIR", raising=False)
    monkeypatch.delenv("MEDDINOV3_CKPT_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", [program])
    if place:
        (work / place).parent.mkdir(exist_ok=True)
        (work / place).touch()
    found = config.load_settings().meddinov3_ckpt_path
    cached = tmp_path / "cache" / "meddinov3-stroke" / "modelsweights" / "model.pth"
    assert found == (cached if in_cache else Path("modelsweights/model.pth"))
    monkeypatch.setenv("MODELS_DIR", "given")
    assert config.load_settings().meddinov3_ckpt_path == Path("given/model.pth")
