"""The download stage and its script as a user runs them, against the loopback."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke import config
from meddinov3_stroke.commands import download as download_models
from meddinov3_stroke.commands.download import Args
from meddinov3_stroke.errors import DownloadError, UsageError

SCRIPT = Path(__file__).resolve().parents[2] / "script" / "download_models.py"
NOWHERE = "http://127.0.0.1:1"
"""A proxy that refuses at once: what is not on the loopback is out of reach."""
OURS = ("HF_", "MEDDINOV3_", "MODELS_DIR", "DATASETS_DIR", "DOWNLOAD_", "CT_MODEL_DEVICE", "HUGGING")
"""Beginnings of the variables that steer the stage."""


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    home = str(tmp_path / "hf")
    for name, value in {
        "HTTPS_PROXY": NOWHERE,
        "NO_PROXY": "127.0.0.1",
        "HF_HOME": home,
        "DOWNLOAD_BACKOFF": "0",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", home)
    monkeypatch.chdir(tmp_path)


HUB_PATH = f"/{config.HF_REPO}/resolve/main/model.pth"


@pytest.fixture
def hub(server: Any, monkeypatch: pytest.MonkeyPatch, weights: bytes) -> Any:
    """The server as this process's Hugging Face, with a file under the published name."""
    monkeypatch.setenv("HF_MIRROR", server.url)
    server.put(weights, path=HUB_PATH)
    return server


def test_the_users_command_fetches_the_weights_to_where_the_backbone_looks(
    server: Any, tmp_path: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put(weights, path=HUB_PATH)
    pin = hashlib.sha256(weights).hexdigest()
    (tmp_path / ".env").write_text(f"MEDDINOV3_CKPT_PATH=weights here/model.pth\nMEDDINOV3_SHA256={pin}\n")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    result = subprocess.run(
        [sys.executable, SCRIPT, "--package", "meddinov3", "--package", "meddinov3"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "weights here" / "model.pth").read_bytes() == weights
    asked = next(request for request in server.requests if HUB_PATH in request.path)
    assert asked.headers["authorization"] == "Bearer hf_canary"
    for phrase in ("DINOv3 License", "fetched from Hugging Face", pin, "research use only"):
        assert phrase in result.stdout
    assert "canary" not in result.stdout + result.stderr


def test_offline_the_command_leaves_the_hub_alone_and_exits_with_6(
    server: Any, weights: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.put(weights, path=HUB_PATH)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert download_models.main(["--retries", "0"]) == 6
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("E-DOWNLOAD: no source gave the weights")
    assert "HF_HUB_OFFLINE is set" in last
    assert server.requests == []


def test_a_second_run_verifies_and_fetches_nothing(
    hub: Any, weights: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    args = Args(sha256=hashlib.sha256(weights).hexdigest(), quiet=True)
    download_models.run(args)
    assert capsys.readouterr().err == ""  # nor a bar of a library
    asked = len(hub.requests)
    download_models.run(args)
    assert "already there, verified" in capsys.readouterr().out
    assert len(hub.requests) == asked


def test_force_downloads_again(hub: Any, weights: bytes, make_weights: Any) -> None:
    download_models.run(Args(sha256=hashlib.sha256(weights).hexdigest(), quiet=True))
    hub.put(make_weights(7), path=HUB_PATH, etag='"v7"')
    got = download_models.run(Args(sha256=hashlib.sha256(make_weights(7)).hexdigest(), force=True, quiet=True))
    assert got.fetched  # type: ignore[union-attr]
    assert (Path.cwd() / "modelsweights" / "model.pth").read_bytes() == make_weights(7)


def test_sizes_are_reported_and_nothing_is_downloaded(
    hub: Any, tmp_path: Path, weights: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    download_models.run(Args(check_size=True, retries=0))
    printed = capsys.readouterr().out
    assert f"/model.pth): {len(weights)} bytes" in printed
    assert "Google Drive (https://drive.google.com/uc): not available" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_url_is_asked_before_the_hub(hub: Any, weights: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDINOV3_URL", hub.put(weights, path="/mine.pth").url)
    download_models.run(Args(sha256=hashlib.sha256(weights).hexdigest(), quiet=True))
    assert {request.path for request in hub.requests} == {"/mine.pth"}


def test_several_urls_are_tried_until_one_gives_the_file(
    hub: Any, weights: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    urls = [hub.put(body, path=f"/{k}.pth").url for k, body in enumerate([b"<html>" + bytes(999), weights])]
    monkeypatch.setenv("MEDDINOV3_URL", ", ".join(urls))
    got = download_models.run(Args(sha256=hashlib.sha256(weights).hexdigest(), quiet=True))
    assert got.source == "URL"  # type: ignore[union-attr]
    assert "/0.pth): it is an HTML page" in caplog.text


def test_a_file_fetched_by_other_means_is_taken_without_asking_a_server(
    hub: Any, tmp_path: Path, weights: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "got.pth").write_bytes(weights)
    download_models.run(Args(from_file=tmp_path / "got.pth", sha256=hashlib.sha256(weights).hexdigest(), quiet=True))
    assert (tmp_path / "modelsweights" / "model.pth").read_bytes() == weights
    assert "fetched from file" in capsys.readouterr().out
    assert hub.requests == []


def test_a_digest_given_as_a_flag_wins_over_the_environments(
    hub: Any, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDDINOV3_SHA256", "0" * 64)
    digest = hashlib.sha256(weights).hexdigest()
    got = download_models.run(Args(sha256=digest, quiet=True))
    assert got.sha256 == digest  # type: ignore[union-attr]


def test_too_small_a_file_is_not_meddinov3(hub: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="too small for the weights"):
        download_models.run(Args(retries=0, quiet=True))
    assert not (tmp_path / "modelsweights" / "model.pth").exists()


@pytest.mark.parametrize(
    "flags", [{"timeout": 0.0}, {"retries": -1}, {"lock_wait": -1.0}, {"sha256": "abc"}], ids=lambda f: next(iter(f))
)
def test_flags_out_of_range_are_usage_errors(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(flags)).replace('_', '-')}"):
        download_models.run(Args(**flags))


def test_importing_the_package_imports_no_http_library_and_downloading_needs_no_torch() -> None:
    heavy = "{'requests', 'gdown', 'huggingface_hub', 'filelock', 'safetensors'}"
    modules = "meddinov3_stroke.commands.download, meddinov3_stroke.download"
    probe = f"import sys, {modules}; print({heavy} & {{*sys.modules}}); import gdown, huggingface_hub"
    code = f"{probe}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=True)
    assert result.stdout.split("\n")[:2] == ["set()", "False"]
