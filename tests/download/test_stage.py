"""`download_models.py` as a user runs it, against the loopback."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke import config, download_models
from meddinov3_stroke.download_models import Args
from meddinov3_stroke.errors import UsageError

SCRIPT = Path(__file__).resolve().parents[2] / "script" / "download_models.py"
NOWHERE = "http://127.0.0.1:1"
"""A proxy that refuses at once: what is not on the loopback is out of reach."""


def run(folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    mine = ("HF_", "MEDDINOV3_", "MODELS_DIR", "DATASETS_DIR")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    environment |= {"HTTPS_PROXY": NOWHERE, "NO_PROXY": "127.0.0.1", "HF_HOME": str(folder / "hf")} | variables
    return subprocess.run(
        [sys.executable, SCRIPT, "--retries", "0", *flags],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def hub_file(server: Any, body: bytes, **fields: Any) -> None:
    server.put(body, path=f"/{config.HF_REPO}/resolve/main/model.pth", **fields)


def test_the_users_command_fetches_the_weights_to_where_the_backbone_looks(
    server: Any, tmp_path: Path, weights: bytes
) -> None:
    hub_file(server, weights)
    pin = hashlib.sha256(weights).hexdigest()
    (tmp_path / ".env").write_text(f"MEDDINOV3_CKPT_PATH=weights here/model.pth\nMEDDINOV3_SHA256={pin}\n")
    result = run(tmp_path, "--package", "meddinov3", HF_ENDPOINT=server.url, HF_TOKEN="hf_canary")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "weights here" / "model.pth").read_bytes() == weights
    assert server.requests[0].headers["authorization"] == "Bearer hf_canary"
    for told in ("DINOv3 License", "fetched from Hugging Face", pin, "research use only"):
        assert told in result.stdout
    assert "canary" not in result.stdout + result.stderr


def test_a_second_run_verifies_and_fetches_nothing(server: Any, tmp_path: Path, weights: bytes) -> None:
    hub_file(server, weights)
    flags = ("--sha256", hashlib.sha256(weights).hexdigest())
    for _ in range(2):
        result = run(tmp_path, *flags, HF_ENDPOINT=server.url)
    assert result.returncode == 0, result.stderr
    assert "already there, verified" in result.stdout
    assert len(server.requests) == 1


def test_sizes_are_told_and_nothing_is_downloaded(server: Any, tmp_path: Path, weights: bytes) -> None:
    hub_file(server, weights)
    result = run(tmp_path, "--package", "meddinov3", "--check-size", HF_ENDPOINT=server.url)
    assert result.returncode == 0, result.stderr
    assert f"{len(weights)} bytes" in result.stdout
    assert "Google Drive (https://drive.google.com/uc): no answer that can be used" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_url_is_asked_before_the_hub(server: Any, tmp_path: Path, weights: bytes) -> None:
    hub_file(server, b"")
    url = server.put(weights, path="/mine.pth").url
    digest = hashlib.sha256(weights).hexdigest()
    result = run(tmp_path, "--sha256", digest, HF_ENDPOINT=server.url, MEDDINOV3_URL=url)
    assert result.returncode == 0, result.stderr
    assert [request.path for request in server.requests] == ["/mine.pth"]


def test_offline_the_hub_is_left_alone_and_the_exit_code_is_6(server: Any, tmp_path: Path, weights: bytes) -> None:
    hub_file(server, weights)
    result = run(tmp_path, HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1")
    assert result.returncode == 6
    assert "HF_HUB_OFFLINE is set" in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("E-DOWNLOAD: no source gave the weights")
    assert server.requests == []


def test_too_small_a_file_is_not_meddinov3(server: Any, tmp_path: Path, weights: bytes) -> None:
    hub_file(server, weights)
    result = run(tmp_path, HF_ENDPOINT=server.url)
    assert result.returncode == 6
    assert "too small for meddinov3" in result.stderr
    assert not (tmp_path / "modelsweights" / "model.pth").exists()


@pytest.mark.parametrize(
    "flags",
    [{"timeout": 0.0}, {"retries": -1}, {"lock_wait": -1.0}, {"sha256": "abc"}],
    ids=lambda flags: next(iter(flags)),
)
def test_flags_out_of_range_are_usage_errors(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"--{next(iter(flags)).replace('_', '-')}"):
        download_models.run(Args(**flags))


def test_downloading_needs_no_torch() -> None:
    probe = "import sys, meddinov3_stroke.download, gdown, huggingface_hub; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], timeout=60, check=False).returncode == 0
