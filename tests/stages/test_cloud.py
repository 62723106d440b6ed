"""Inputs, cache and outputs on s3://, against a server of the tests; and copies of slow storage ahead of the reader."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke import load_backbone
from meddinov3_stroke.cli import main
from meddinov3_stroke.errors import StorageError
from meddinov3_stroke.features import FeatureExtractor, extract
from meddinov3_stroke.features.compacted import single_files
from meddinov3_stroke.features.memory import SETTLED_S
from meddinov3_stroke.features.store import EmbeddingStore
from meddinov3_stroke.types import LABELS

N = 6
WORDS = ["extract", "--backbone", "demo", "--engine", "openvino", "--precision", "fp32", "--quiet"]
EMBED = ["embed", "--backbone", "demo", "--quiet"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of botocore and moto
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # sockets of the server
    pytest.mark.xdist_group("cloud"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """boto3's client of an empty bucket named `heads`."""
    import boto3
    import s3fs

    settings = {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="heads")
    yield client
    for key in keys(client):
        client.delete_object(Bucket="heads", Key=key)
    client.delete_bucket(Bucket="heads")
    client.close()


@pytest.fixture
def heads(head_nifti: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Small heads, and `local.csv` that lists them."""
    monkeypatch.chdir(tmp_path)
    paths = [head_nifti(f"data/{k}.nii.gz", seed=k) for k in range(N)]
    write_table("local.csv", [str(path) for path in paths])
    return paths


@pytest.fixture
def urls(s3: Any, heads: list[Path]) -> list[str]:
    """The same heads in the bucket, and `remote.csv` that lists them."""
    for path in heads:
        s3.upload_file(str(path), "heads", f"data/{path.name}")
    found = [f"s3://heads/data/{path.name}" for path in heads]
    write_table("remote.csv", found)
    return found


def write_table(name: str, paths: list[str], column: str = "nifti_path") -> None:
    rows = [f"{path},1.{k},0,0,0,0,0,0" for k, path in enumerate(paths)]
    Path(name).write_text("\n".join([",".join([column, "study_uid", *LABELS]), *rows]))


def keys(client: Any, prefix: str = "") -> dict[str, str]:
    listed = client.list_objects_v2(Bucket="heads", Prefix=prefix).get("Contents", [])
    return {one["Key"]: one["ETag"] for one in listed}


def content(client: Any, key: str) -> bytes:
    return client.get_object(Bucket="heads", Key=key)["Body"].read()


def entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in single_files(folder)}


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs of inputs whose bytes are fetched."""
    from meddinov3_stroke.ct import staged

    found: list[str] = []

    def fetch(one: Any, path: Path) -> None:
        found.append(str(one.url))
        real(one, path)

    real = staged.fetch
    monkeypatch.setattr(staged, "fetch", fetch)
    return found


def test_a_run_on_s3_writes_the_bytes_of_a_local_run_and_a_warm_one_fetches_no_input(s3, urls, fetched) -> None:
    assert main([*WORDS, "--series-csv", "local.csv", "--cache-dir", "cache", "-o", "out"]) == 0
    remote = [*WORDS, "--series-csv", "remote.csv", "--cache-dir", "s3://heads/cache", "-o", "s3://heads/out"]
    assert main(remote) == 0
    assert sorted(fetched) == urls
    stored = {key.rpartition("/")[2]: content(s3, key) for key in keys(s3, "cache") if key.endswith(".emb")}
    assert stored == entries(Path("cache"))
    for path in Path("out").glob("*.npy"):
        assert content(s3, f"out/{path.name}") == path.read_bytes()
    assert b'"status": "done"' in content(s3, "out/ledger.jsonl")
    assert b'"output_dir": "s3://heads/out"' in content(s3, "out/extraction_summary.json")
    fetched.clear()
    s3.upload_file("remote.csv", "heads", "tables/remote.csv")
    assert main([word.replace("remote.csv", "s3://heads/tables/remote.csv") for word in remote]) == 0
    assert fetched == []
    assert not list(Path().glob("s3:*"))


def test_a_changed_object_is_noticed_by_its_etag(s3, urls, fetched, head_nifti) -> None:
    words = [*WORDS, "--series-csv", "remote.csv", "--cache-dir", "cache", "-o", "out"]
    assert main(words) == 0
    fetched.clear()
    s3.upload_file(str(head_nifti("other.nii.gz", seed=77)), "heads", "data/2.nii.gz")
    assert main(words) == 0
    assert fetched == [urls[2]]
    assert len(entries(Path("cache"))) == N + 1


def test_a_dicom_prefix_is_read_as_the_folder_is(s3, heads) -> None:
    assert main(["phantom", "--format", "dicom", "--patients", "1", "--output-dir", "made", "--quiet"]) == 0
    folder = next(path.parent for path in sorted(Path("made/volumes").rglob("*")) if path.suffix == ".dcm")
    for path in folder.iterdir():
        s3.upload_file(str(path), "heads", f"series/{path.name}")
    for name, where in (("a", str(folder.absolute())), ("b", "s3://heads/series")):
        write_table(f"{name}.csv", [where], "dicom_path")
        assert main([*WORDS, "--series-csv", f"{name}.csv", "--cache-dir", name, "-o", f"out-{name}"]) == 0
    assert entries(Path("a")) == entries(Path("b"))


def test_a_killed_upload_leaves_no_entry(s3, heads) -> None:
    script = (
        "from pathlib import Path\nfrom meddinov3_stroke.system.atomic import write_bytes\n"
        f"write_bytes(Path('s3://heads/cache/ab/{'ab' * 32}.emb'), bytes(1 << 30))"
    )
    writer = subprocess.Popen([sys.executable, "-c", script])
    while not s3.list_multipart_uploads(Bucket="heads").get("Uploads"):
        assert writer.poll() is None
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert keys(s3, "cache") == {}
    assert EmbeddingStore(Path("s3://heads/cache")).get("ab" * 32) is None


def test_a_damaged_entry_is_computed_again(s3, urls, capsys) -> None:
    words = [*WORDS, "--series-csv", "remote.csv", "--cache-dir", "s3://heads/cache", "-o", "out"]
    assert main(words) == 0
    key = next(key for key in keys(s3, "cache") if key.endswith(".emb"))
    whole = content(s3, key)
    s3.put_object(Bucket="heads", Key=key, Body=whole[:-1])
    assert main(words) == 0
    assert "damaged cache entry s3://heads/cache/" in capsys.readouterr().err
    assert content(s3, key) == whole


def test_a_compacted_cache_on_s3_is_refused(s3, urls, capsys) -> None:
    s3.put_object(Bucket="heads", Key="cache/compacted/index.parquet", Body=b"x")
    assert main([*WORDS, "--series-csv", "remote.csv", "--cache-dir", "s3://heads/cache", "-o", "out"]) == 2
    assert "copy it to one" in capsys.readouterr().err


def test_predict_and_embed_take_urls_and_patterns(s3, urls, capsys) -> None:
    words = ["embed", "--backbone", "demo", "--quiet"]
    assert main([*words, "--input", urls[0], "-o", "s3://heads/one"]) == 0
    assert f'"input": "{urls[0]}"'.encode() in content(s3, "one/summary.json")
    assert main([*words, "--input", "s3://heads/data/*.nii.gz", "-o", "many"]) == 0
    results = Path("many/results.csv").read_text()
    assert all(url in results for url in urls)
    assert main([*words, "--input", "s3://heads/data/none*.nii.gz", "-o", "many"]) == 3


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--input", "s3://heads/data/gone.nii.gz"], 3, "s3://heads/data/gone.nii.gz: no such object"),
        (["--input", "s3://heads/data/gone.csv"], 5, "s3://heads/data/gone.csv"),
        (["--input", "s3://nowhere/x.nii.gz"], 3, "s3://nowhere/x.nii.gz: no such object"),
        (["--input", "s3://heads/bad.nii.gz"], 3, "s3://heads/bad.nii.gz begins with"),
        (["--input", "s3://heads/data/0.nii.gz", "-o", "s3://nowhere/out"], 7, "no such bucket; create nowhere"),
        (["--input", "s3://heads/data/0.nii.gz", "--backbone", "s3://heads/w.pth"], 6, "s3:"),
    ],
)
def test_what_is_wrong_with_a_url_is_told_in_one_line(s3, urls, capsys, words, code, told) -> None:
    s3.put_object(Bucket="heads", Key="bad.nii.gz", Body=b"no volume at all")
    assert main(["embed", "--backbone", "demo", "--quiet", *words]) == code
    errors = capsys.readouterr().err.strip()
    assert told in errors
    assert "\n" not in errors


@pytest.mark.parametrize("key", ["a/../../evil/0.nii.gz", "a//0.nii.gz", "a/./0.nii.gz"])
def test_keys_that_a_path_would_change_are_refused(s3, heads, capsys, tmp_path, key) -> None:
    s3.put_object(Bucket="heads", Key=key, Body=heads[0].read_bytes())
    assert main([*EMBED, "--input", "s3://heads/a", "-o", "out"]) == 3
    assert "rename it" in capsys.readouterr().err
    assert not list(tmp_path.rglob("evil"))


def test_hidden_names_are_those_of_urls_and_staged_files_too(s3, heads, capfd, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for k, path in enumerate(heads[:2]):
        s3.upload_file(str(path), "heads", f"Doe_John/scan{k}.nii.gz")
    for out, flags in (("out", []), ("shared", ["--workers", "2"])):
        words = [*EMBED, "--input", "s3://heads/Doe_John/*.nii.gz", "-o", out, "--hide-names", *flags]
        assert main([one for one in words if one != "--quiet"]) == 0
    Path("Doe_John").mkdir()
    for k, path in enumerate(heads[:2]):
        path.rename(f"Doe_John/scan{k}.nii.gz")
    assert main([*EMBED, "--input", "Doe_John", "-o", "staged", "--hide-names", "--stage", "scratch"]) == 0
    written = [path for out in ("out", "shared", "staged") for path in Path(out).rglob("*") if path.is_file()]
    texts = [path.read_text("utf-8", "replace") for path in written]
    assert not [text for text in [*texts, *capfd.readouterr()] if "Doe_John" in text or "scan0" in text]
    listed = next(Path("config").rglob("case_names.csv")).read_text()
    assert "s3://heads/Doe_John/scan0.nii.gz" in listed


def test_results_that_cannot_be_uploaded_are_kept(s3, urls, capsys, monkeypatch) -> None:
    from meddinov3_stroke.system import remote

    def fail(url: Path, content: bytes) -> None:
        if url.name == "summary.json":
            raise StorageError(f"{url} cannot be used (slow down); run again")
        real(url, content)

    real = remote.write_object
    monkeypatch.setattr(remote, "write_object", fail)
    assert main([*EMBED, "--input", urls[0], "-o", "s3://heads/out"]) == 7
    found = re.search(r"the results are kept in (\S+)", capsys.readouterr().err)
    assert found is not None
    assert (Path(found[1]) / "summary.json").exists()
    shutil.rmtree(found[1])


def test_paths_are_staged_as_inputs_are_and_no_files_are_an_input_that_fails(heads, tmp_path) -> None:
    extractor = FeatureExtractor(load_backbone("demo", device="cpu"))
    seen: list[bool] = []
    check = lambda volume: seen.append(any((tmp_path / "scratch").iterdir()))  # noqa: E731
    found = list(extract([heads[0], str(heads[1])], extractor, check=check, stage=tmp_path / "scratch"))
    assert [one.outcome.status for one in found] == ["done", "done"]
    assert seen == [True, True]
    statuses = [one.outcome.status for one in extract([[], heads[0]], extractor)]
    assert statuses == ["rejected", "done"]


def test_a_stage_folder_that_cannot_be_written_is_named(heads, capsys) -> None:
    Path("file").write_text("")
    assert main([*WORDS, "--series-csv", "local.csv", "--stage", "file/sub", "-o", "out"]) == 7
    assert "file" in capsys.readouterr().err


def test_without_credentials_the_variables_are_named(s3, urls, capsys, monkeypatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    words = [*WORDS, "--series-csv", "remote.csv", "-o", "out"]
    assert main([*words, "--cache-dir", "s3://heads/cache"]) == 7
    assert "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in capsys.readouterr().err


def test_without_the_extra_its_install_command_is_named(urls, capsys, monkeypatch) -> None:
    monkeypatch.setattr("meddinov3_stroke.system.remote.find_spec", lambda name: None)
    assert main([*WORDS, "--series-csv", "remote.csv", "--cache-dir", "c", "-o", "out"]) == 7
    assert "pip install 'meddinov3-stroke[cloud]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["store", "verify", "--cache-dir", "s3://heads/cache"], "--cache-dir s3://heads/cache: a URL cannot be used"),
        (["extract", "--series-csv", "local.csv", "--stage", "s3://heads/x"], "--stage s3://heads/x: a URL cannot"),
        (
            ["extract", "--series-csv", "local.csv", "--slurm", "shards=2", "-o", "s3://heads/out"],
            "name a folder that all nodes see",
        ),
    ],
)
def test_a_url_where_none_can_be_used_is_refused(heads, capsys, words, told) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_a_file_url_is_its_path(heads) -> None:
    write_table("files.csv", [f"file://{path}" for path in heads])
    assert main([*WORDS, "--series-csv", f"file://{Path.cwd()}/files.csv", "--cache-dir", "a", "-o", "out"]) == 0
    assert main([*WORDS, "--series-csv", "local.csv", "--cache-dir", f"file://{Path.cwd()}/a", "-o", "out"]) == 0
    assert len(entries(Path("a"))) == N


@pytest.mark.scope
def test_local_paths_import_no_fsspec(heads) -> None:
    words = [*WORDS, "--series-csv", "local.csv", "--cache-dir", "c", "-o", "out"]
    script = f"import sys\nfrom meddinov3_stroke.cli import main\nassert main({words!r}) == 0\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"fsspec", "s3fs", "meddinov3_stroke.ct.staged"} & set(run.stdout.split())


def test_staged_volumes_are_removed_and_named_by_their_origin(heads, capsys, monkeypatch) -> None:
    from meddinov3_stroke.ct import staged

    most: list[int] = []
    real = staged.shutil.copyfile

    def copyfile(source: Path, target: Path) -> None:
        real(source, target)
        most.append(len(list(Path("stage").iterdir())))

    monkeypatch.setattr(staged.shutil, "copyfile", copyfile)
    heads[3].write_bytes(heads[3].read_bytes()[:-9])
    heads[5].unlink()
    time.sleep(SETTLED_S + 0.1)  # digests of newer files are not remembered
    words = [*WORDS, "--series-csv", "local.csv", "--skip-invalid-nifti", "--max-invalid", "1", "-o", "out"]
    assert main([*words, "--cache-dir", "a", "--stage", "stage"]) == 0
    ledger = Path("out/ledger.jsonl").read_text()
    assert str(heads[3]) in ledger
    assert str(heads[5]) in ledger
    assert f"{Path.cwd()}/stage" not in ledger
    assert "meddinov3-" not in ledger
    assert os.listdir("stage") == []  # noqa: PTH208
    assert 1 < max(most) <= staged.COPIES_AHEAD
    assert main([*words, "--cache-dir", "b"]) == 0
    assert entries(Path("a")) == entries(Path("b"))
    most.clear()
    assert main([*words, "--cache-dir", "a", "--stage", "stage"]) == 0
    assert len(most) <= 1  # of the damaged one, which has no embeddings


def test_a_prefix_of_volumes_is_a_batch_as_a_folder_is(s3, urls, capsys) -> None:
    assert main([*EMBED, "--input", "data", "-o", "local"]) == 0
    assert main([*EMBED, "--input", "s3://heads/data", "-o", "remote"]) == 0
    ids = [{path.name for path in Path(name).iterdir() if path.is_dir()} for name in ("local", "remote")]
    assert ids[0] == ids[1]
    assert len(ids[0]) == N


def test_what_is_printed_names_the_url_of_the_output(s3, urls, capsys) -> None:
    s3.put_object(Bucket="heads", Key="data/bad.nii.gz", Body=b"no volume at all")
    assert main(["embed", "--backbone", "demo", "--input", "s3://heads/data", "-o", "s3://heads/out"]) == 8
    printed = capsys.readouterr()
    assert "s3://heads/out/results.csv" in printed.out
    assert "s3://heads/out/results.csv says why" in printed.err
    assert "meddinov3-" not in printed.out + printed.err.replace("meddinov3-stroke", "")


def test_a_run_again_on_s3_fetches_documents_alone(s3, urls, monkeypatch) -> None:
    from meddinov3_stroke.system import remote

    words = [*EMBED, "--input", "s3://heads/data", "-o", "s3://heads/out"]
    assert main(words) == 0
    before, fetched = keys(s3, "out"), []
    real = remote.fetch
    monkeypatch.setattr(remote, "fetch", lambda one, path: (fetched.append(one.url.name), real(one, path)))
    assert main(words) == 0
    assert fetched
    assert not [name for name in fetched if name.endswith((".npy", ".png"))]
    assert {key: tag for key, tag in keys(s3, "out").items() if key.endswith(".npy")} == {
        key: tag for key, tag in before.items() if key.endswith(".npy")
    }


def test_a_storage_service_that_fails_ends_the_run_and_is_no_fault_of_a_row(s3, urls, monkeypatch, capsys) -> None:
    import s3fs

    async def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the network is down")

    monkeypatch.setattr(s3fs.S3FileSystem, "_get_file", fail)
    words = [*WORDS, "--skip-invalid-nifti", "--max-invalid", "1", "--series-csv", "remote.csv", "--cache-dir", "cache"]
    assert main([*words, "-o", "out"]) == 7
    errors = capsys.readouterr().err
    assert "E-STORAGE" in errors
    assert "check the network" in errors
    assert not Path("out/cohort_embeddings.npy").exists()


def test_a_full_disk_for_copies_ends_the_run(s3, urls, monkeypatch, capsys) -> None:
    import errno

    from meddinov3_stroke.ct import staged

    def fetch(one: Any, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(staged, "fetch", fetch)
    assert main([*EMBED, "--input", *urls, "-o", "out"]) == 7
    assert "cannot be copied to" in capsys.readouterr().err


def test_a_prefix_of_too_many_objects_is_not_listed_to_its_end(s3, urls, monkeypatch, capsys) -> None:
    from meddinov3_stroke.ct import staged

    for k in range(5):
        s3.put_object(Bucket="heads", Key=f"many/{k}/a.dcm", Body=b"x")
    monkeypatch.setattr(staged, "MOST_OBJECTS", 2)
    assert main([*EMBED, "--input", "s3://heads/many", "-o", "out"]) == 3
    assert "more than 2 objects" in capsys.readouterr().err
