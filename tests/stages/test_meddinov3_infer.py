from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import MissingInput, NonFiniteEmbedding, UsageError
from meddinov3_stroke.explain import patch_similarity, sim_slice_index
from meddinov3_stroke.meddinov3_infer import Args, main, run
from meddinov3_stroke.system.digest import sha256_of_file

FILES = {
    *("meddinov3_slice_embeddings.npy", "slice_indices.npy", "embedding_mean.npy", "similarity_map.npy"),
    *("similarity_map.png", "summary.json"),
}


@pytest.fixture
def make_args(
    head_nifti: Callable[..., Path], random_weights: Callable[..., Path], tmp_path: Path
) -> Callable[..., Args]:
    def make(**changes: Any) -> Args:
        flags = {"output_dir": tmp_path / "out", "resize": 64, "device": "cpu", "quiet": True}
        flags |= {"engine": "torch", "precision": "fp32"}
        inputs = {"input": head_nifti(), "backbone": str(random_weights())}
        return Args(**(inputs | flags | changes))

    return make


def test_it_writes_every_promised_file(make_args, tmp_path) -> None:
    run(make_args())
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_the_arrays_are_what_the_backbone_says(make_args, tmp_path) -> None:
    args = make_args(stride=2, max_slices=3)
    summary = run(args)
    volume, backbone = (
        read_volume(args.input[0]),
        load_backbone(args.backbone, engine="torch", precision="fp32", device="cpu"),
    )
    indices = np.load(tmp_path / "out" / "slice_indices.npy")
    found = np.load(tmp_path / "out" / "meddinov3_slice_embeddings.npy")
    assert len(indices) == 3 == summary["n_slices_embedded"]
    assert (indices % 2 == 0).all()
    np.testing.assert_allclose(found, backbone.embed(volume.hu[indices], 64).cls, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "embedding_mean.npy"), found.mean(axis=0), atol=1e-6)
    assert (found.dtype, indices.dtype) == (np.float32, np.int64)


def test_the_map_is_that_of_the_named_slice_and_patch(make_args, tmp_path) -> None:
    args = make_args(sim_slice=6, sim_patch="1,3")
    run(args)
    tokens = load_backbone(args.backbone, engine="torch", precision="fp32", device="cpu").embed(
        read_volume(args.input[0]).hu[[6]], 64, patches=True
    )
    expected = patch_similarity(tokens.patches[0], (4, 4), (1, 3))
    found = np.load(tmp_path / "out" / "similarity_map.npy")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32


def test_by_default_the_map_is_of_the_middle_slice_and_the_central_patch(make_args) -> None:
    similar = run(make_args())["similarity"]
    assert (similar["slice_index"], similar["patch"], similar["grid"]) == (4, [2, 2], [4, 4])


def test_the_slice_of_the_map_need_not_be_among_the_embedded(make_args) -> None:
    summary = run(make_args(max_slices=1, sim_slice=7))
    assert summary["similarity"]["slice_index"] == 7
    assert summary["n_slices_embedded"] == 1


def test_the_picture_is_a_picture(make_args, tmp_path) -> None:
    run(make_args())
    assert imread(tmp_path / "out" / "similarity_map.png").std() > 0.1


def test_the_summary_holds_what_readers_rely_on(make_args, tmp_path) -> None:
    args = make_args()
    returned = run(args)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == returned
    assert summary["input"] == str(args.input[0])
    assert (summary["n_slices"], summary["embedding_dim"]) == (8, 64)
    assert summary["elapsed_s"] >= summary["embed_s"] > 0
    assert summary["slices_per_s"] == pytest.approx(8 / summary["embed_s"], rel=0.01)
    assert summary["memory"]["cpu_peak_mib"] > 0
    assert summary["memory"]["gpu_peak_mib"] is None


def test_the_similarity_map_is_labelled_a_viewing_aid(make_args, capsys) -> None:
    assert "not a lesion map" in run(make_args())["similarity"]["note"]
    assert "not a lesion map" in capsys.readouterr().out


def test_the_summary_says_where_everything_came_from(make_args) -> None:
    args = make_args()
    summary = run(args)
    assert summary["disclaimer"] == "research use only, not for clinical diagnosis"
    assert summary["input_sha256"] == sha256_of_file(args.input[0])
    assert summary["weights_sha256"] == summary["backbone"]["weights_sha256"]
    assert summary["pool_mode"] == "slice"
    assert (summary["engine"], summary["precision"], summary["device"]) == ("torch", "fp32", "cpu")
    assert summary["preprocessing_version"] == "meddinov3-1"


def test_the_head_scripts_can_read_what_it_wrote(make_args, tmp_path) -> None:
    from meddinov3_stroke.heads import read_origin

    args = make_args()
    run(args)
    origin = read_origin(tmp_path / "out" / "meddinov3_slice_embeddings.npy", 64)
    assert origin.warnings == ()
    assert (origin.pool_mode, origin.resize) == ("slice", 64)
    assert origin.identity == load_backbone(args.backbone, engine="torch", precision="fp32", device="cpu").identity


def test_without_an_input_the_first_volume_in_input_is_taken(make_args, head_nifti, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("input/b.nii.gz", "input/a.nii.gz"):
        head_nifti(name)
    (tmp_path / "input" / "0.txt").write_text("no volume")
    summary = run(make_args(input=None, output_dir=None))
    assert summary["input"] == "input/a.nii.gz"
    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name == f"meddinov3_{summary['input_sha256'][:12]}"
    assert {path.name for path in folder.iterdir()} == FILES


def test_without_an_input_and_without_a_volume_the_error_says_where_it_looked(make_args, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInput, match="in input/; name the volume with --input"):
        run(make_args(input=None))


@pytest.mark.parametrize(("sim_slice", "expected"), [(-1, 4), (0, 0), (7, 7)])
def test_sim_slice_counts_from_zero_and_minus_one_is_the_middle(sim_slice, expected) -> None:
    assert sim_slice_index(sim_slice, 8) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"sim_slice": 8},
        {"sim_slice": -2},
        {"sim_patch": "4,0"},
        {"sim_patch": "corner"},
        {"resize": 70},
        {"resize": 0},
        {"stride": 0},
        {"max_slices": -1},
        {"batch": 0},
    ],
    ids=str,
)
def test_a_flag_out_of_range_is_a_usage_error_and_nothing_is_written(make_args, tmp_path, changes) -> None:
    with pytest.raises(UsageError):
        run(make_args(**changes))
    assert not (tmp_path / "out").exists()


def test_a_slice_that_does_not_exist_costs_no_forward_pass(make_args, monkeypatch) -> None:
    passes: list[int] = []
    monkeypatch.setattr(Backbone, "class_tokens", lambda backbone, pixels: passes.append(len(pixels)))
    with pytest.raises(UsageError, match="--sim-slice 8"):
        run(make_args(sim_slice=8))
    assert passes == []


def test_a_demonstration_backbone_is_named_on_standard_error_and_in_the_summary(
    make_args, random_weights, tmp_path, capsys
) -> None:
    args = make_args(backbone=str(random_weights("demo")))
    flags = ["--input", str(args.input[0]), "--backbone", str(args.backbone), "--output-dir", str(args.output_dir)]
    assert main([*flags, "--resize", "64", "--device", "cpu", "--quiet"]) == 0
    assert "warning: demonstration backbone" in capsys.readouterr().err
    assert any(
        "demonstration" in one for one in json.loads((tmp_path / "out" / "summary.json").read_text())["warnings"]
    )


def test_standard_output_names_files_figures_and_the_disclaimer(make_args, capsys, tmp_path) -> None:
    run(make_args())
    text = capsys.readouterr().out
    assert "8 of 8 slices, 64-dimensional embeddings" in text
    assert "slices/s" in text
    for name in FILES:
        assert f"wrote {tmp_path / 'out' / name}" in text
    assert text.endswith(f"not for clinical diagnosis\n8 slices embedded · {tmp_path / 'out'}\n")


def test_progress_shows_rate_and_eta(make_args, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("meddinov3_stroke"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="meddinov3_stroke"):
        run(make_args(quiet=False, batch=4))
    assert "embedding 8 slices" in caplog.text
    assert "slices/s, ETA" in caplog.text


def test_a_corrupt_volume_exits_with_3_and_one_line(make_args, head_nifti, tmp_path, capsys) -> None:
    path = head_nifti()
    path.write_bytes(path.read_bytes()[:-9])
    flags = ["--output-dir", str(tmp_path / "out"), "--backbone", "demo", "--quiet"]
    assert main(["--input", str(path), *flags]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("E-INPUT-CORRUPT: ")
    assert not (tmp_path / "out").exists()


def test_an_embedding_that_is_no_number_names_the_file_and_nothing_is_written(make_args, tmp_path, monkeypatch) -> None:
    bad = np.full((8, 64), np.nan, np.float32)
    monkeypatch.setattr(Backbone, "class_tokens", lambda self, pixels: bad)
    with pytest.raises(NonFiniteEmbedding, match=r"case\.nii\.gz: backbone"):
        run(make_args())
    assert not (tmp_path / "out").exists()


def test_missing_weights_exit_with_6_and_name_the_download(
    make_args, head_nifti, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDDINOV3_CKPT_PATH", str(tmp_path / "none.pth"))
    assert main(["--input", str(head_nifti()), "--device", "cpu"]) == 6
    assert "meddinov3-stroke download --output" in capsys.readouterr().err
