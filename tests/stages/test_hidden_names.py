"""`--hide-names`: no output names an input; JSON logs never do; the user keeps key and list."""

from __future__ import annotations

import csv
import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke import load_backbone
from meddinov3_stroke.cases import case_id
from meddinov3_stroke.commands.convert import main as convert
from meddinov3_stroke.commands.extract import main as extract
from meddinov3_stroke.commands.status import main as status
from meddinov3_stroke.ct import open_input
from meddinov3_stroke.ich_infer import main as predict
from meddinov3_stroke.meddinov3_infer import main as embed
from meddinov3_stroke.rsna_split import main as split
from meddinov3_stroke.types import LABELS

SHAPE = (6, 48, 48)
NAME = "MusterErika"  # in the name of every input


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config" / "meddinov3-stroke"


@pytest.fixture
def cohort(head_nifti: Callable[..., Path], tmp_path: Path) -> Path:
    """Heads, DICOM and damaged inputs, all named after a patient, as are the files in them."""
    folder = Path("cohort")
    for k in range(2):
        head_nifti(f"cohort/{NAME} {k}/scan {NAME}.nii.gz", seed=k)
    content = (folder / f"{NAME} 1" / f"scan {NAME}.nii.gz").read_bytes()
    (folder / f"cut_{NAME}.nii.gz").write_bytes(content[: len(content) // 2])
    (folder / f'leer_{NAME}_ä"1.nii').touch()
    disc = folder / f"{NAME}_CD" / "DICOM"
    hu = np.random.default_rng(9).integers(-100, 100, SHAPE)
    write_dicom_series(disc, hu, axial_geometry([5.0] * 5, SHAPE[1:]), DicomOptions(seed=9))
    write_dicom_series(tmp_path / "raw", hu, axial_geometry([5.0] * 5, SHAPE[1:]), DicomOptions(seed=10))
    with zipfile.ZipFile(folder / f"{NAME}.zip", "w") as archive:  # one of its files is damaged
        for k, path in enumerate(sorted((tmp_path / "raw").iterdir())):
            archive.writestr(f"export/{NAME}_{k}.dcm", path.read_bytes()[: 900 if k == 2 else None])
    return folder


@pytest.fixture
def backbone(random_weights: Callable[..., Path]) -> list[str]:
    words = {"--backbone": random_weights(), "--engine": "torch", "--precision": "fp32", "--device": "cpu"}
    return [str(word) for pair in words.items() for word in pair]


@pytest.fixture
def flags(backbone, random_weights, random_head: Callable[..., Path]) -> list[str]:
    head = random_head(load_backbone(random_weights(), engine="torch", precision="fp32", device="cpu"))
    return [*backbone, "--checkpoint", str(head)]


@pytest.fixture
def table(cohort: Path) -> Path:
    """A series table of the cohort."""
    paths = [path for path in sorted(cohort.rglob("*")) if path.name.endswith((".nii", ".nii.gz"))]
    with Path("table.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["nifti_path", "study_uid", *LABELS])
        writer.writerows([str(path), f"1.2.{k}", *[0] * 6] for k, path in enumerate(paths))
    return Path("table.csv")


def holds_name(folder: Path, name: str = NAME) -> list[str]:
    """Files below a folder whose content or path holds the name."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if name.casefold() in str(path.relative_to(folder)).casefold() or name.encode() in content:
            found.append(str(path))
    return found


def listed(folder: Path) -> dict[str, str]:
    with (folder / "case_names.csv").open(newline="", encoding="utf-8") as handle:
        return dict(csv.reader(handle))


@pytest.mark.parametrize("verb", ["predict", "embed", "convert"])
def test_no_file_and_no_line_of_a_batch_names_an_input(verb, cohort, flags, backbone, capsys, own_folder) -> None:
    main, out, more = {
        "predict": (predict, "-o", flags),
        "embed": (embed, "-o", backbone),
        "convert": (convert, "--output", []),
    }[verb]
    assert main(["-i", str(cohort), out, "plain", *more]) == 8
    assert holds_name(Path("plain"))  # the test can fail
    capsys.readouterr()
    assert main(["-i", str(cohort), out, "hidden", "--hide-names", "--debug", *more]) == 8
    assert holds_name(Path("hidden")) == []
    printed = capsys.readouterr()
    assert NAME not in printed.out + printed.err
    with Path("hidden", "results.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    with Path("plain", "results.csv").open(newline="", encoding="utf-8") as handle:
        plain = list(csv.DictReader(handle))
    names = listed(own_folder)
    assert [names[row["input"]] for row in rows] == [row["input"] for row in plain]
    assert [(row["status"], row["case_id"]) for row in rows] == [(row["status"], row["case_id"]) for row in plain]


def test_a_hidden_batch_is_resumed(cohort, flags, capsys) -> None:
    words = ["-i", str(cohort / f"{NAME} 0"), "-o", "out", "--hide-names", *flags]
    assert predict(words) == 0
    (case,) = [path for path in Path("out").iterdir() if path.is_dir()]
    before = (case / "summary.json").stat().st_mtime_ns
    assert predict(words) == 0
    assert (case / "summary.json").stat().st_mtime_ns == before
    assert status(["out", "--json"]) == 0
    assert NAME not in capsys.readouterr().out


def test_names_of_an_earlier_run_are_not_left_in_a_hidden_one(cohort, flags, capsys) -> None:
    words = ["-i", str(cohort / f"{NAME} 0"), "-o", "out", *flags]
    assert predict(words) == 0
    assert predict([*words, "--hide-names", "--overwrite"]) == 2
    assert "holds names of an earlier run" in capsys.readouterr().err


def test_a_single_case_and_its_errors_are_hidden(cohort, flags, capsys) -> None:
    one = cohort / f"{NAME} 0" / f"scan {NAME}.nii.gz"
    assert predict(["-i", str(one), "-o", "out", "--hide-names", "--json", *flags]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["input"].startswith("input-")
    assert holds_name(Path("out")) == []
    for bad in (f"cut_{NAME}.nii.gz", f"missing_{NAME}.nii.gz", f"{NAME}.zip", f"{NAME}/*.nii", f"{NAME}_CD/nothing"):
        assert predict(["-i", str(cohort / bad), "-o", "out2", "--hide-names", *flags]) == 3
        printed = capsys.readouterr()
        assert "input-" in printed.err
        assert NAME not in printed.out + printed.err


def test_a_path_below_an_input_is_hidden_too(cohort, flags, capsys) -> None:
    (cohort / f"{NAME}_CD" / "DICOM" / f"{NAME} link").symlink_to("nowhere")
    assert predict(["-i", str(cohort / f"{NAME}_CD"), "-o", "out", "--hide-names", *flags]) == 3
    printed = capsys.readouterr().err
    assert "does not exist" in printed
    assert NAME not in printed


def test_a_table_is_extracted_without_its_names(table, backbone, capsys, own_folder) -> None:
    words = ["--series-csv", str(table), "--skip-invalid-nifti", "--max-invalid", "1", "--cache-dir", "cache"]
    assert extract([*words, "-o", "out", "--hide-names", *backbone]) == 0
    assert holds_name(Path("out")) == []
    assert holds_name(Path("cache")) == []
    printed = capsys.readouterr()
    assert NAME not in printed.out + printed.err
    report = json.loads(Path("out", "extraction_summary.json").read_text())["invalid_nifti_report"]
    names = listed(own_folder)
    assert {Path(names[one["path"]]).name for one in report["examples"]} == {
        f"cut_{NAME}.nii.gz",
        f'leer_{NAME}_ä"1.nii',
    }


def test_splits_name_no_volume(tmp_path, capsys) -> None:
    lines = [",".join(["nifti_path", "study_uid", *LABELS])]
    lines += [f"{NAME}/{k}.nii.gz,1.2.{k},{k % 2},{','.join([str(k % 2)] * 5)}" for k in range(40)]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "series.csv").write_text("\n".join(lines))
    words = ["--series-csv", "tables/series.csv", "--output-dir"]
    assert split([*words, "plain"]) == 0
    assert split([*words, "hidden", "--hide-names"]) == 0
    assert len(holds_name(Path("plain"))) == 3
    assert holds_name(Path("hidden")) == []


@pytest.mark.parametrize("bad", [f"cut_{NAME}.nii.gz", f"{NAME}.zip"])
def test_a_json_log_names_no_input_but_files_do(cohort, flags, capsys, bad, own_folder) -> None:
    assert predict(["-i", str(cohort / bad), str(cohort / f"{NAME} 0"), "-o", "out", "--json-log", *flags]) == 8
    assert predict(["-i", str(cohort / bad), "-o", "out2", "--json-log", *flags]) == 3
    assert NAME not in capsys.readouterr().err
    assert NAME in Path("out", "results.csv").read_text()
    assert not own_folder.exists()  # no key is needed


@pytest.mark.scope
def test_a_json_log_names_the_case_where_it_is_known(cohort, flags, capsys) -> None:
    path = cohort / f"{NAME}_CD"  # random values, no head
    assert predict(["-i", str(path), "-o", "out", "--json-log", *flags]) == 4
    message = json.loads(capsys.readouterr().err.splitlines()[-1])["message"]
    assert f"case {case_id(open_input(path).digest)}: not a non-contrast head CT" in message


def test_key_and_list_are_for_the_user_alone_and_the_key_stays(cohort, flags, own_folder) -> None:
    words = ["-i", str(cohort / f"{NAME} 0"), "--hide-names", *flags]
    assert predict([*words, "-o", "a"]) == 0
    first = listed(own_folder)
    assert predict([*words, "-o", "b"]) == 0
    assert listed(own_folder) == first
    for name in ("names.key", "case_names.csv"):
        assert stat.S_IMODE((own_folder / name).stat().st_mode) == 0o600
    assert (
        Path("a", "results.csv").read_text().split(",seconds")[0]
        == Path("b", "results.csv").read_text().split(",seconds")[0]
    )


def test_another_key_gives_other_digests(cohort, flags, own_folder) -> None:
    words = ["-i", str(cohort / f"{NAME} 0"), "--hide-names", *flags]
    assert predict([*words, "-o", "a"]) == 0
    (own_folder / "names.key").unlink()
    assert predict([*words, "-o", "b"]) == 0
    assert len(listed(own_folder)) > len({*listed(own_folder).values()})


@pytest.mark.skipif(os.name == "nt", reason="modes are those of POSIX")
@pytest.mark.parametrize(("content", "mode"), [("0" * 64, 0o644), ("short", 0o600)])
def test_a_key_that_others_may_read_or_a_damaged_one_is_refused(
    cohort, flags, own_folder, capsys, content, mode
) -> None:
    own_folder.mkdir(parents=True)
    (own_folder / "names.key").write_text(content)
    (own_folder / "names.key").chmod(mode)
    words = ["-i", str(cohort / f"{NAME} 0"), "--hide-names", "-o", "a", *flags]
    assert predict(words) == 2
    told = capsys.readouterr().err
    if mode == 0o644:
        assert f"run chmod 600 {own_folder / 'names.key'}" in told
        (own_folder / "names.key").chmod(0o600)
    else:
        assert "remove it to get a new one" in told
        (own_folder / "names.key").unlink()
    assert predict(words) == 0  # what the message advises


@pytest.mark.parametrize("name", ["input", "1", "nifti", "2.25.123.456.789"])
def test_an_input_named_like_a_word_or_a_number_leaves_documents_whole(name, cohort, flags, capsys) -> None:
    (cohort / f"{NAME}_CD" / "DICOM").rename(name)
    for _ in range(2):  # the second resumes
        assert predict(["-i", name, f"{cohort}/{NAME} 0", "-o", "out", "--hide-names", "--json", *flags]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["totals"]["done"] == 2
    (row,) = [row for row in found["results"] if row["series"]]
    assert row["input"].startswith("input-") or name.startswith("2.25")
    assert row["series"].startswith("2.25.")
    document = json.loads(Path("out", row["case_id"], "summary.json").read_text())
    assert {"input", "schema_version", "probabilities"} <= document.keys()
    assert document["schema_version"] == 1
    assert all(uid.startswith("2.25.") for uid in document["dicom"]["sop_instance_uids"])


def test_split_labels_are_not_taken_for_names(tmp_path) -> None:
    lines = [",".join(["nifti_path", "study_uid", *LABELS])]
    lines += [f"{k},1.2.{k},{','.join([str(k % 2)] * 6)}" for k in range(40)]
    (tmp_path / "series.csv").write_text("\n".join(lines))
    assert split(["--series-csv", "series.csv", "--output-dir", "hidden", "--hide-names"]) == 0
    with Path("hidden", "train.csv").open(newline="") as handle:
        assert {row["any"] for row in csv.DictReader(handle)} == {"0", "1"}


@pytest.mark.parametrize("name", [f"{NAME}  Maria.nii.gz", f"{NAME}\u00a0Maria.nii.gz", f'O\'{NAME} "M".nii.gz'])
@pytest.mark.parametrize("flag", ["--hide-names", "--json-log"])
def test_blanks_and_quotes_in_a_name_are_hidden_in_errors(name, flag, cohort, flags, capsys) -> None:
    for path in (Path(name), cohort / name):
        assert predict(["-i", str(path), "-o", "out", flag, *flags]) == 3
        told = capsys.readouterr().err
        assert "does not exist" in told
        assert NAME not in told
        assert "Maria" not in told


@pytest.mark.parametrize("flag", ["--hide-names", "--json-log"])
def test_files_of_lists_and_folders_are_hidden_by_their_whole_path(flag, cohort, flags, capsys) -> None:
    (cohort / "list.txt").write_text(f"{NAME}, Maria/1.dcm\n")
    (cohort / f"{NAME}_CD" / "DICOM" / f"{NAME}, Maria (1970).dcm").symlink_to("nowhere")
    for path in (cohort / "list.txt", cohort / f"{NAME}_CD"):
        assert predict(["-i", str(path), "-o", "out", flag, *flags]) == 3
        told = capsys.readouterr().err
        assert "does not exist" in told
        assert "Maria" not in told


def test_words_that_resemble_names_stay(tmp_path, head_nifti, flags, capsys) -> None:
    path = head_nifti("a.nii.gz")
    assert predict(["-i", str(path), "-o", "out", "--hide-names", *flags]) == 0
    document = json.loads(Path("out", "summary.json").read_text())
    assert document["input_format"] == "nifti"
    assert document["disclaimer"] == "research use only, not for clinical diagnosis"
