"""`store compact|verify|gc`: entries in Parquet shards, read by the store and by programs that are not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from meddinov3_stroke.commands.extract import main as extract
from meddinov3_stroke.commands.store import main as store
from meddinov3_stroke.features import EmbeddingStore
from meddinov3_stroke.features import compacted as module
from meddinov3_stroke.features.compacted import Compacted, single_files
from meddinov3_stroke.features.store import Entry
from meddinov3_stroke.types import LABELS

COMPACTED = "compacted"


def entry(seed: int, n: int = 5, dim: int = 16, study: str | None = None, source: str = "") -> Entry:
    cls = np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
    origin = {"study_instance_uid": study, "series_instance_uid": None, "sha256": source or f"{seed:064x}"}
    arrays = {"cls": cls, "slice_indices": np.arange(n, dtype=np.int64)}
    return Entry(arrays, {"view": "cls", "source": origin, "warnings": ["ä"]})


def key(seed: int) -> str:
    return f"{seed * 2**250 + seed:064x}"[-64:]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Nine entries of two widths: of three studies, and of volumes without a study."""
    folder = EmbeddingStore(tmp_path / "cache")
    for seed in range(9):
        study = f"1.2.{seed % 3}" if seed < 6 else None
        folder.put(key(seed), entry(seed, n=seed + 1, dim=16 if seed < 7 else 24, study=study))
    return tmp_path / "cache"


def run(action: str, cache: Path, *words: str, code: int = 0) -> None:
    assert store([action, "--cache-dir", str(cache), "--quiet", *words]) == code


def test_a_compacted_store_gives_the_same_entries_as_float16(cache: Path) -> None:
    before = {seed: EmbeddingStore(cache).get(key(seed)) for seed in range(9)}
    run("compact", cache)
    assert single_files(cache) == []
    for seed, expected in before.items():
        found = EmbeddingStore(cache).get(key(seed))
        assert found is not None
        assert found.metadata == expected.metadata
        np.testing.assert_array_equal(found.arrays["cls"], expected.arrays["cls"].astype(np.float16).astype(np.float32))
        np.testing.assert_array_equal(found.arrays["slice_indices"], expected.arrays["slice_indices"])
        assert {name: array.dtype for name, array in found.arrays.items()} == {"cls": "f4", "slice_indices": "i8"}
    assert EmbeddingStore(cache).get(key(99)) is None


def test_a_row_group_holds_the_entries_of_a_study(cache: Path) -> None:
    run("compact", cache)
    index = pd.read_parquet(cache / COMPACTED / "index.parquet")
    of_studies = index.dropna(subset="study_instance_uid")
    places = of_studies.groupby("study_instance_uid")[["shard", "row_group"]].nunique()
    assert (places == 1).all().all()
    assert len(of_studies.groupby(["shard", "row_group"])) == 3


def test_programs_that_are_not_ours_read_the_shards(cache: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    expected = EmbeddingStore(cache).get(key(4)).arrays["cls"]
    run("compact", cache)
    index = cache / COMPACTED / "index.parquet"
    (shard,) = duckdb.sql(f"select shard from '{index}' where key = '{key(4)}'").fetchall()[0]
    rows = duckdb.sql(
        f"select slice_index, cls from '{cache / COMPACTED / shard}' where key = '{key(4)}' order by slice_index"
    ).fetchall()
    np.testing.assert_array_equal(np.array([row[1] for row in rows]), expected.astype(np.float16))
    frame = pd.read_parquet(cache / COMPACTED / shard)
    np.testing.assert_array_equal(np.stack(frame[frame.key == key(4)].cls), expected.astype(np.float16))


def test_entries_computed_later_are_added_by_the_next_run(cache: Path) -> None:
    run("compact", cache)
    before = {path.name: path.read_bytes() for path in (cache / COMPACTED).iterdir() if path.name != "index.parquet"}
    reader = EmbeddingStore(cache)
    assert reader.get(key(1)) is not None
    assert reader.get(key(20)) is None
    EmbeddingStore(cache).put(key(20), entry(20))
    run("compact", cache)
    assert reader.get(key(20)) is not None  # a store that is open sees the new index
    assert {path.name: path.read_bytes() for path in (cache / COMPACTED).iterdir() if path.name in before} == before
    assert reader.get(key(1)) is not None


def test_equal_stores_are_compacted_to_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for name, order in (("a", range(5)), ("b", reversed(range(5)))):
        for seed in order:
            EmbeddingStore(tmp_path / name).put(key(seed), entry(seed))
        run("compact", tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name / COMPACTED).iterdir()})
    assert contents[0] == contents[1]


def test_a_run_that_is_killed_before_files_are_removed_loses_and_repeats_nothing(cache: Path) -> None:
    files = {path: path.read_bytes() for path in single_files(cache)}
    run("compact", cache)
    shards = {path.name: path.read_bytes() for path in (cache / COMPACTED).iterdir()}
    for path, content in files.items():  # as if it had been killed
        path.write_bytes(content)
    run("compact", cache)
    assert single_files(cache) == []
    assert {path.name: path.read_bytes() for path in (cache / COMPACTED).iterdir()} == shards


def test_what_float16_cannot_hold_and_patches_stay(cache: Path, capsys) -> None:
    large, other = entry(30), entry(31)
    large.arrays["cls"][0, 0] = 1e6
    EmbeddingStore(cache).put(key(30), large)
    patches = {"patches": np.zeros((2, 4, 3), dtype=np.float16), "slice_indices": np.arange(2)}
    EmbeddingStore(cache).put(key(31), Entry(patches, {**other.metadata, "view": "patches"}))
    run("compact", cache, "--json")
    assert json.loads(capsys.readouterr().out)["n_left"] == 2
    assert {path.name.removesuffix(".emb") for path in single_files(cache)} == {key(30), key(31)}


def test_a_damaged_entry_is_set_aside_and_the_rest_compacted(cache: Path, capsys) -> None:
    path = EmbeddingStore(cache).path(key(2))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    run("compact", cache, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["n_damaged"], found["n_compacted"]) == (1, 8)


def damage(cache: Path) -> None:
    """Change one byte in the middle of every shard."""
    for path in (cache / COMPACTED).glob("*.parquet"):
        if path.name != "index.parquet":
            content = bytearray(path.read_bytes())
            content[len(content) // 3] ^= 0xFF
            path.write_bytes(content)


def test_no_damaged_shard_gives_an_entry(cache: Path, capsys) -> None:
    before = {seed: EmbeddingStore(cache).get(key(seed)).arrays["cls"].astype(np.float16) for seed in range(9)}
    run("compact", cache)
    run("verify", cache)
    damage(cache)
    missing = 0
    for seed, expected in before.items():
        found = EmbeddingStore(cache).get(key(seed))
        missing += found is None
        if found is not None:
            np.testing.assert_array_equal(found.arrays["cls"], expected)
    assert missing
    run("verify", cache, code=8)
    assert "entries are damaged" in capsys.readouterr().err


def test_verify_sets_damaged_files_aside(cache: Path) -> None:
    path = EmbeddingStore(cache).path(key(2))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    run("verify", cache, code=8)
    assert not path.exists()
    assert path.with_name(f"{path.name}.corrupt").exists()
    run("verify", cache)


@pytest.mark.parametrize("is_compacted", [False, True])
def test_gc_keeps_what_the_tables_name(cache: Path, tmp_path: Path, is_compacted: bool, capsys) -> None:
    if is_compacted:
        run("compact", cache)
    keep = {f"{seed:064x}" for seed in (1, 4, 8)}
    module.collect(cache, keep, is_deleting=False)
    assert all(EmbeddingStore(cache).get(key(seed)) is not None for seed in range(9))
    found = module.collect(cache, keep, is_deleting=True)
    assert (found["n_entries"], found["is_deleted"]) == (6, True)
    assert found["n_bytes"] > 0
    assert [seed for seed in range(9) if EmbeddingStore(cache).get(key(seed)) is not None] == [1, 4, 8]
    run("verify", cache)
    if is_compacted:
        listed = set(pd.read_parquet(cache / COMPACTED / "index.parquet").shard) | {"index.parquet"}
        assert {path.name for path in (cache / COMPACTED).iterdir()} == listed


def test_gc_by_tables_removes_the_volumes_of_none(
    head_nifti, random_weights, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [head_nifti(f"heads/{k}.nii.gz", seed=k) for k in range(3)]

    def table(name: str, chosen: list[Path]) -> str:
        rows = [",".join(["nifti_path", "study_uid", *LABELS])] + [
            f"{path},1.{k},0,0,0,0,0,0" for k, path in enumerate(chosen)
        ]
        (tmp_path / name).write_text("\n".join(rows))
        return str(tmp_path / name)

    words = [
        "--backbone",
        str(random_weights()),
        "--engine",
        "torch",
        "--precision",
        "fp32",
        "--device",
        "cpu",
        "--quiet",
    ]
    every = table("all.csv", paths)
    assert extract(["--series-csv", every, "--cache-dir", "cache", "-o", "out", *words]) == 0
    run("compact", Path("cache"))
    assert extract(["--series-csv", every, "--cache-dir", "cache", "-o", "again", *words]) == 0
    assert "float16" in capsys.readouterr().err
    summary = json.loads(Path("again", "extraction_summary.json").read_text())
    assert summary["extraction"]["n_from_cache"] == 3
    np.testing.assert_allclose(
        np.load("again/cohort_embeddings.npy"), np.load("out/cohort_embeddings.npy"), rtol=2e-3, atol=2e-3
    )
    two = table("two.csv", paths[:2])
    run("gc", Path("cache"), "--series-csv", two, "--json")
    assert json.loads(capsys.readouterr().out)["n_entries"] == 1
    assert len(Compacted(Path("cache")).rows) == 3
    run("gc", Path("cache"), "--series-csv", two, "--delete")
    assert len(Compacted(Path("cache")).rows) == 2
    paths[0].unlink()
    run("gc", Path("cache"), "--series-csv", two, "--delete", code=2)
    assert "take it out of the table" in capsys.readouterr().err
    run("gc", Path("cache"), "--series-csv", table("one.csv", paths[1:2]), "--delete")  # as advised
    assert len(Compacted(Path("cache")).rows) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gc"], "needs every table"),
        (["verify", "--series-csv", "x.csv"], "--series-csv belongs to gc"),
        (["compact", "--cache-dir", "nowhere"], "no such folder"),
    ],
)
def test_wrong_flags_are_usage_errors(cache: Path, words: list[str], message: str, capsys: Any) -> None:
    assert store(["--cache-dir", str(cache), *words]) == 2
    assert message in capsys.readouterr().err
