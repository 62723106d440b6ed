"""What a run needs is tested before any input is read: places to write to, and values that make sense."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from meddinov3_stroke.cli import VERBS, main
from meddinov3_stroke.errors import StorageError, UsageError
from meddinov3_stroke.system.atomic import require_writable

WRITES = {
    "demo": ["--output-dir OUT"],
    "predict": ["--input absent.nii.gz --checkpoint absent.pt --backbone demo --output-dir OUT"],
    "embed": ["--input absent.nii.gz --backbone demo --output-dir OUT"],
    "inspect": ["absent.zip --output-json OUT/facts.json"],
    "convert": ["--input absent.nii.gz --output OUT/case.nii.gz"],
    "prepare-rsna": ["--root absent --output-dir OUT"],
    "prepare-cohort": ["cq500 --root absent --output-dir OUT"],
    "extract": [
        "--series-csv absent.csv --output-dir OUT --cache-dir fine",
        "--series-csv absent.csv --output-dir fine --cache-dir OUT",
    ],
    "sweep": [
        "--series-csv absent.csv --backbone demo --output-dir OUT --cache-dir cache",
        "--series-csv absent.csv --backbone demo --output-dir out --cache-dir OUT",
    ],
    "train-rsna": [
        "--series-csv absent.csv --output-dir OUT --cache-dir fine --checkpoints-dir fine",
        "--series-csv absent.csv --output-dir fine --cache-dir OUT --checkpoints-dir fine",
        "--series-csv absent.csv --output-dir fine --cache-dir fine --checkpoints-dir OUT",
    ],
    "split": ["--series-csv absent.csv --output-dir OUT"],
    "train-head": ["--train-embeddings absent.npy --train-labels absent.npy --output-dir OUT"],
    "test-head": [
        "--embeddings absent.npy --labels absent.npy --checkpoint absent.pt --output-json OUT/a --output-probs fine/b",
        "--embeddings absent.npy --labels absent.npy --checkpoint absent.pt --output-json fine/a --output-probs OUT/b",
    ],
    "evaluate": ["--table absent.csv --output-dir OUT"],
    "phantom": ["--output-dir OUT"],
    "download": ["--from-file absent.pth --output OUT/model.pth"],
    "convert-weights": ["--input absent.pth --output OUT/model.safetensors"],
}
"""Verb -> commands whose inputs are absent, one for each place it writes to."""

COMMANDS = [(verb, words) for verb, commands in WRITES.items() for words in commands]


@pytest.fixture
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_every_verb_that_writes_is_tried() -> None:
    others = {"doctor", "status", "calibrate", "store"}  # the last two write into a cache folder
    assert set(WRITES) | others >= set(VERBS)


@pytest.mark.parametrize(("verb", "words"), COMMANDS)
@pytest.mark.parametrize("place", ["file/out", "/proc/out"])
def test_a_place_that_cannot_be_written_ends_the_run_before_its_inputs_are_opened(
    at_work: Path, capfd: pytest.CaptureFixture[str], verb: str, words: str, place: str
) -> None:
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    (at_work / "file").touch()
    assert main([verb, *shlex.split(words.replace("OUT", place)), "--quiet"]) == 7
    error = capfd.readouterr().err
    assert error.startswith(f"E-STORAGE: cannot write {place}")
    assert "choose a writable folder" in error
    assert [path.name for path in at_work.iterdir()] == ["file"]


@pytest.mark.parametrize(("verb", "words"), [one for one in COMMANDS if one[0] not in ("demo", "phantom", "download")])
def test_the_test_for_writing_leaves_nothing_behind(
    at_work: Path, capfd: pytest.CaptureFixture[str], verb: str, words: str
) -> None:
    assert main([verb, *shlex.split(words.replace("OUT", "new/out")), "--quiet"]) in (3, 5, 6)
    assert "absent" in capfd.readouterr().err
    assert list(at_work.iterdir()) == []


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.json").write_text("old")
    require_writable(tmp_path / "a" / "b", tmp_path / "full", files=[tmp_path / "full" / "old.json"])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "old.json"]
    assert (tmp_path / "full" / "old.json").read_text() == "old"


def test_a_full_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: full.open("wb", buffering=0))
    with pytest.raises(StorageError, match="No space left on device; free space"):
        require_writable(tmp_path)


def test_a_link_to_nowhere_and_a_name_too_long_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "gone")
    for place in (tmp_path / "link", tmp_path / ("x" * 300) / "out"):
        with pytest.raises(StorageError, match="cannot write"):
            require_writable(place)


def test_an_output_file_is_no_folder_no_input_and_named_once(tmp_path: Path) -> None:
    case, output = tmp_path / "case.nii.gz", tmp_path / "out.json"
    for files in ([tmp_path], [case], [output, output], [tmp_path / "sub" / ".." / "case.nii.gz"]):
        with pytest.raises(UsageError, match=r"cannot write .*; name a"):
            require_writable(files=files, inputs=[case])


def test_convert_and_inspect_never_replace_their_input(
    at_work: Path, head_nifti: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    case = head_nifti("case.nii.gz")
    before = case.read_bytes()
    assert main(["convert", "--input", str(case), "--output", str(case)]) == 2
    assert main(["inspect", str(case), "--output-json", str(case)]) == 2
    assert capfd.readouterr().err.count("named twice in this command; name another file") == 2
    assert case.read_bytes() == before


IMPOSSIBLE = [
    "predict --checkpoint c.pt --input ''",
    "predict --checkpoint c.pt --input=",
    "predict --checkpoint '' --input a.nii",
    "predict --checkpoint c.pt --output-dir ' '",
    "predict --checkpoint c.pt --backbone ''",
    "predict --checkpoint c.pt --batch -1",
    "predict --checkpoint c.pt --batch 0",
    "predict --checkpoint c.pt --stride -1",
    "predict --checkpoint c.pt --stride 0",
    "predict --checkpoint c.pt --max-slices -1",
    "predict --checkpoint c.pt --top-k 0",
    "predict --checkpoint c.pt --resize 0",
    "predict --checkpoint c.pt --threshold 1.5",
    "predict --checkpoint c.pt --threshold nan",
    "predict --checkpoint c.pt --sim-slice -2",
    "embed --sim-slice -7",
    "embed --stride 0",
    "embed --resize -16",
    "inspect ''",
    "inspect x.zip --output-json ''",
    "convert --input a.nii --output b.nii.gz --spacing 0 1 1",
    "convert --input a.nii --output b.nii.gz --spacing 1 1 nan",
    "convert --input a.nii --output b.nii.gz --orientation XYZ",
    "prepare-rsna --root r --workers -1",
    "extract --series-csv a.csv --max-invalid 2",
    "extract --series-csv a.csv --max-invalid nan",
    "extract --series-csv a.csv --batch 0",
    "extract --series-csv '' --batch 2",
    "train-rsna --series-csv a.csv --eval-threshold -0.1",
    "train-rsna --series-csv a.csv --epochs 0",
    "train-rsna --series-csv a.csv --train-ratio 0.9",
    "train-rsna --series-csv a.csv --seed -1",
    "split --series-csv a.csv --seed -1",
    "split --series-csv a.csv --train-ratio nan",
    "train-head --train-embeddings a.npy --train-labels b.npy --lr 0",
    "test-head --embeddings a.npy --labels b.npy --checkpoint c.pt --threshold 7",
    "test-head --embeddings a.npy --labels b.npy --checkpoint c.pt --output-json o --output-probs o",
    "phantom --patients 0",
    "phantom --patients 2 --seed -1",
    "demo --patients -5",
    "download --retries -1",
    "download --timeout 0",
    "download --sha256 xyz",
    "calibrate --input a.nii b.nii --batch 0",
    "calibrate --input a.nii b.nii --check-share 1",
    "calibrate --input a.nii b.nii --seed -1",
]


@pytest.mark.parametrize("command", IMPOSSIBLE)
def test_an_empty_or_impossible_value_is_a_usage_error_that_names_the_flag(
    at_work: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    verb, *words = shlex.split(command)
    assert main([verb, *words]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("E-USAGE: ")
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert any(flag in last for flag in flags) or "ratios" in last or "cannot write o" in last or "argument" in last
    assert list(at_work.iterdir()) == []


def test_a_side_that_the_backbone_cannot_take_is_a_usage_error_before_a_volume_is_read(
    at_work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (at_work / "t.csv").write_text("nifti_path,study_uid,any,epidural,intraparenchymal,intraventricular,subarachnoid,"
                                   "subdural\nabsent.nii.gz,s1,0,0,0,0,0,0\n")  # fmt: skip
    for command in ("embed --input absent.nii.gz", "extract --series-csv t.csv"):
        assert main([*command.split(), "--backbone", "demo", "--resize", "100", "--quiet"]) == 2
        assert "--resize 100: found 100, expected a multiple of 16; the nearest is 96" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("typed", "near"), [("predct", "predict"), ("train_rsna", "train-rsna"), ("tst-head", "test-head")]
)
def test_an_unknown_verb_names_the_nearest(capfd: pytest.CaptureFixture[str], typed: str, near: str) -> None:
    assert main([typed]) == 2
    assert f"no verb '{typed}'; did you mean {near}" in capfd.readouterr().err


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_an_unknown_option_lists_the_nearest(capfd: pytest.CaptureFixture[str], verb: str) -> None:
    stage = importlib.import_module(f"meddinov3_stroke.{VERBS[verb][0]}")
    others = {"calibrate": ["--input a.nii b.nii"], "status": ["folder"], "doctor": [""], "store": ["verify"]}
    command = (WRITES | others)[verb][0]
    with pytest.raises(SystemExit) as stop:
        stage.main([*shlex.split(command), "--quite"])
    assert stop.value.code == 2
    assert "--quiet" in capfd.readouterr().err


def test_calibrate_tests_the_users_cache_folder_before_it_opens_a_volume(
    at_work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (at_work / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(at_work / "file"))
    words = ["calibrate", "--input", "absent.nii", "gone.nii", "--backbone", "demo"]
    assert main(words) == 7
    error = capfd.readouterr().err
    assert error.startswith(f"E-STORAGE: cannot write {at_work / 'file' / 'meddinov3-stroke' / 'engine_cache'}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(at_work / "new"))
    assert main(words) == 3
    assert "absent.nii" in capfd.readouterr().err
