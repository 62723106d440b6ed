from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from meddinov3_stroke import cli
from meddinov3_stroke.backbone import load_backbone
from meddinov3_stroke.errors import CheckpointError, UsageError
from meddinov3_stroke.ich_infer import Args, main, run
from meddinov3_stroke.predictor import ICHPredictor
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.types import LABELS

FILES = {
    *("summary.json", "similarity_map.png", "similarity_map.npy", "slice_probs.npy"),
    *("slice_embeddings.npy", "volume_embedding.npy", "slice_indices.npy"),
}


@pytest.fixture
def make_args(
    head_nifti: Callable[..., Path],
    random_weights: Callable[..., Path],
    random_head: Callable[..., Path],
    tmp_path: Path,
) -> Callable[..., Args]:
    """Flags of a run; `pool_mode` is that of the head, `weights` the name of the weights file."""

    def make(pool_mode: str = "mean", weights: str = "model.pth", **changes: Any) -> Args:
        path = random_weights(weights)
        head = random_head(load_backbone(path, device="cpu"), pool_mode)
        flags = {"input": head_nifti(), "checkpoint": head, "backbone": str(path), "output_dir": tmp_path / "out"}
        return Args(**(flags | {"device": "cpu", "quiet": True} | changes))

    return make


def words(args: Args) -> list[str]:
    """The command line of a run."""
    named = {
        "input": args.input[0],
        "checkpoint": args.checkpoint[0],
        "backbone": args.backbone,
        "output-dir": args.output_dir,
    }
    return [word for name, value in named.items() for word in (f"--{name}", str(value))] + ["--device", "cpu"]


def summary_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("pool_mode", ["slice", "mean", "max"])
def test_it_writes_every_promised_file(make_args, tmp_path, pool_mode) -> None:
    run(make_args(pool_mode))
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_a_head_of_mean_max_gives_no_slice_probs(make_args, tmp_path) -> None:
    run(make_args("mean_max"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - {"slice_probs.npy"}


def test_the_summary_is_that_of_the_predictor(make_args, tmp_path) -> None:
    args = make_args(top_k=3)
    run(args)
    case = ICHPredictor.load(args.checkpoint, backbone=args.backbone, device="cpu", top_k=3)(args.input[0])
    summary = summary_in(tmp_path / "out")
    assert summary["probabilities"] == case.probabilities
    assert summary["decisions"] == case.decisions
    assert [one["slice_index"] for one in summary["top_slices"]] == [one.slice_index for one in case.top_slices]
    assert tuple(summary["probabilities"]) == LABELS


def test_stride_and_max_slices_choose_the_slices(make_args, tmp_path) -> None:
    run(make_args(stride=2, max_slices=2))
    summary = summary_in(tmp_path / "out")
    assert summary["slice_probs"]["slice_indices"] == [2, 6]
    assert summary["selection"] == {"stride": 2, "max_slices": 2}
    assert np.load(tmp_path / "out" / "slice_probs.npy").shape == (2, 6)


def test_the_picture_is_a_picture(make_args, tmp_path) -> None:
    run(make_args())
    assert imread(tmp_path / "out" / "similarity_map.png").std() > 0.1


def test_the_heads_resize_may_be_named(make_args) -> None:
    assert run(make_args(resize=64)).findings.embeddings.resize == 64


def test_another_resize_is_a_checkpoint_error(make_args, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="resize"):
        run(make_args(resize=224))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        *({"top_k": 0}, {"stride": 0}, {"max_slices": -1}, {"batch": 0}),
        *({"threshold": 1.1}, {"sim_slice": 8}, {"sim_patch": "9,9"}),
    ],
    ids=str,
)
def test_a_flag_out_of_range_is_a_usage_error_and_nothing_is_written(make_args, tmp_path, changes) -> None:
    with pytest.raises(UsageError):
        run(make_args(**changes))
    assert not (tmp_path / "out").exists()


def test_a_given_threshold_beats_the_checkpoints_and_says_so(make_args, tmp_path, capsys) -> None:
    assert main([*words(make_args()), "--threshold", "0.01", "--quiet"]) == 0
    summary = summary_in(tmp_path / "out")
    assert summary["thresholds"] == dict.fromkeys(LABELS, 0.01)
    assert summary["threshold"] == 0.01
    assert set(summary["threshold_origins"].values()) == {"given by --threshold"}
    assert summary["predicted"] == dict.fromkeys(LABELS, 1)
    assert any("--threshold 0.01 replaces" in warning for warning in summary["warnings"])
    assert "warning: --threshold 0.01 replaces the checkpoint's thresholds" in capsys.readouterr().err


def test_the_map_is_of_the_slice_and_patch_that_were_asked_for(make_args, tmp_path, capsys) -> None:
    assert main([*words(make_args()), "--sim-slice", "-1", "--sim-patch", "1,3", "--quiet"]) == 0
    similarity = summary_in(tmp_path / "out")["similarity"]
    assert (similarity["slice_indices"], similarity["reference_patches"]) == ([4], [[1, 3]])
    assert "not a lesion map" in similarity["note"]
    assert "not a lesion map" in capsys.readouterr().out
    found = np.load(tmp_path / "out" / "similarity_map.npy")
    assert (found.shape, found[0, 1, 3]) == ((1, 4, 4), 1.0)


def test_the_default_folder_is_named_after_the_content(make_args, head_nifti, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = head_nifti("_1530143486.nii.gz")
    run(make_args(input=path, output_dir=None))
    assert (tmp_path / "outputs" / f"ich_{sha256_of_file(path)[:12]}" / "summary.json").is_file()


def test_a_chinese_file_name_is_no_trouble(make_args, head_nifti, tmp_path, capsys) -> None:
    assert main(words(make_args(input=head_nifti("病例 $x_1$ [1].nii.gz")))) == 0
    assert "病例 $x_1$ [1].nii.gz" in summary_in(tmp_path / "out")["input"]
    assert "Error" not in capsys.readouterr().err


def test_two_runs_write_equal_bytes_but_for_time_and_memory(make_args, tmp_path) -> None:
    args = make_args()
    run(args)
    first = {name: (tmp_path / "out" / name).read_bytes() for name in FILES - {"summary.json"}}
    before = summary_in(tmp_path / "out")
    run(args)
    assert first == {name: (tmp_path / "out" / name).read_bytes() for name in FILES - {"summary.json"}}
    after, measured = summary_in(tmp_path / "out"), ("timings", "elapsed_s", "memory")
    assert {k: v for k, v in before.items() if k not in measured} == {
        k: v for k, v in after.items() if k not in measured
    }


def test_a_demonstration_backbone_is_named_on_standard_error_and_in_the_summary(make_args, tmp_path, capsys) -> None:
    assert main([*words(make_args(weights="demo")), "--quiet"]) == 0
    assert "warning: demonstration backbone" in capsys.readouterr().err
    assert any("demonstration" in warning for warning in summary_in(tmp_path / "out")["warnings"])


def test_standard_output_holds_the_result_and_standard_error_the_progress(make_args, capsys) -> None:
    assert main(words(make_args())) == 0
    captured = capsys.readouterr()
    assert "Haemorrhage" in captured.out
    assert "ETA" not in captured.out
    assert "ETA" in captured.err


def test_a_corrupt_volume_exits_with_3_and_writes_nothing(make_args, tmp_path, capsys) -> None:
    args = make_args()
    args.input[0].write_bytes(args.input[0].read_bytes()[:-9])
    assert main([*words(args), "--quiet"]) == 3
    assert capsys.readouterr().err.startswith("E-INPUT-CORRUPT: ")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_none_exits_with_6(make_args, capsys) -> None:
    args = make_args()
    args.checkpoint[0].write_bytes(b"<html>")
    assert main(words(args)) == 6
    assert "HTML page" in capsys.readouterr().err


def test_the_verb_predict_runs_this_stage(make_args, tmp_path) -> None:
    assert cli.main(["predict", *words(make_args()), "--quiet"]) == 0
    assert (tmp_path / "out" / "summary.json").is_file()


def test_head_of_another_implementation_exits_6_and_names_the_way_out(
    tmp_path: Path, random_weights: Callable[..., Path], head_nifti: Callable[..., Path], capsys: Any
) -> None:
    document = {"model_state_dict": torch.nn.Linear(64, 6).state_dict(), "input_dim": 64, "num_classes": 6}
    torch.save({**document, "hidden_dim": 0, "dropout": 0.0, "epoch": 3, "score": 0.8}, tmp_path / "old.pt")
    flags = {"--input": head_nifti(), "--checkpoint": tmp_path / "old.pt", "--backbone": random_weights()}
    arguments = [text for flag, value in flags.items() for text in (flag, str(value))]
    assert main([*arguments, "--output-dir", str(tmp_path / "out"), "--device", "cpu", "--quiet"]) == 6
    assert "meddinov3-stroke train-rsna" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
