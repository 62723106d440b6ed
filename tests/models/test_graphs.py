"""Graphs as files under a manifest; any two files will do for a graph here."""

from __future__ import annotations

from pathlib import Path

import pytest

from meddinov3_stroke.errors import StorageError
from meddinov3_stroke.models import GraphCache, graph_key, graph_sha256, graphs, verified_graph, write_graph

KEY = {"weights_sha256": "ab" * 32, "resize": 224, "view": "cls", "engine_version": "openvino 2026.4"}


def save(path: Path, weights: bytes = b"weights") -> None:
    path.write_text("<net/>")
    path.with_suffix(".bin").write_bytes(weights)


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "ab" * 31 + "ac"},
        {"resize": 240},
        {"view": "patches"},
        {"engine_version": "openvino 2026.5"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_changes_with_each_thing_that_decides_a_graph(change: dict[str, object]) -> None:
    assert graph_key(**KEY) == graph_key(**KEY)
    assert graph_key(**(KEY | change)) != graph_key(**KEY)


def test_the_key_changes_with_the_version_of_the_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    before = graph_key(**KEY)
    monkeypatch.setattr(graphs, "GRAPH_SCHEMA", graphs.GRAPH_SCHEMA + 1)
    assert graph_key(**KEY) != before


def test_a_kept_graph_is_found_with_its_weights_beside_it(tmp_path: Path) -> None:
    cache = GraphCache(tmp_path)
    assert cache.find("key") is None
    cache.keep("key", save)
    found = cache.find("key")
    assert found == tmp_path / "graphs" / "key" / "graph.xml"
    assert found.with_suffix(".bin").read_bytes() == b"weights"
    assert cache.find("other") is None


def test_without_a_folder_nothing_is_kept() -> None:
    cache = GraphCache(None)
    cache.keep("key", lambda path: pytest.fail("saved to nowhere"))
    assert cache.find("key") is None


@pytest.mark.parametrize("name", ["graph.xml", "graph.bin"])
@pytest.mark.parametrize("harm", ["flip", "cut", "grow", "remove"])
def test_any_harm_to_a_graph_is_noticed_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, harm: str
) -> None:
    write_graph(tmp_path, save)
    path = tmp_path / name
    content = path.read_bytes()
    harmed = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1], "grow": content + b"\0"}
    path.write_bytes(harmed[harm]) if harm in harmed else path.unlink()
    assert verified_graph(tmp_path) is None
    assert f"the graph in {tmp_path}" in caplog.text
    assert "it is made anew" in caplog.text


def test_a_graph_whose_writing_was_cut_short_is_no_graph(tmp_path: Path) -> None:
    def killed(path: Path) -> None:
        path.write_text("<net/>")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_graph(tmp_path, killed)
    assert verified_graph(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] in ([".lock"], [])


def test_a_graph_that_is_written_again_takes_the_place_of_the_old(tmp_path: Path) -> None:
    first = write_graph(tmp_path, save)
    second = write_graph(tmp_path, lambda path: save(path, b"other weights"))
    found = verified_graph(tmp_path)
    assert found is not None
    assert found.with_suffix(".bin").read_bytes() == b"other weights"
    assert first != second == graph_sha256(tmp_path)


def test_the_digest_of_a_graph_is_that_of_both_its_files(tmp_path: Path) -> None:
    digest = write_graph(tmp_path / "a", save)
    assert digest == write_graph(tmp_path / "b", save) == graph_sha256(tmp_path / "a")
    assert digest != write_graph(tmp_path / "c", lambda path: save(path, b"other weights"))
    assert graph_sha256(tmp_path / "none") is None


def test_a_folder_that_cannot_be_written_is_a_storage_error_which_the_cache_goes_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "graphs").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"cannot write .*graphs/key"):
        write_graph(tmp_path / "graphs" / "key", save)
    GraphCache(tmp_path).keep("key", save)
    assert "the graph will be converted again next time" in caplog.text
