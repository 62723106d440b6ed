"""The files of an input, told and bounded before any of them is taken for DICOM."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from meddinov3_stroke.ct.dicom import files as files_module
from meddinov3_stroke.ct.dicom.files import InputFile, open_files
from meddinov3_stroke.errors import CorruptInput, InputError, MissingInput, UnsupportedInput

CONTENTS = {"a": b"first", "b.dcm": b"second", "sub/c": b"third", "sub/deeper/d.IMA": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of `CONTENTS`."""
    return laid_out(tmp_path / "study", CONTENTS)


def laid_out(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def packed(path: Path, contents: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def names_and_contents(source: Path | list[Path]) -> dict[str, bytes]:
    with open_files(source) as files:
        return {file.name: file.read() for file in files}


def read_all(source: Path) -> list[bytes]:
    with open_files(source) as files:
        return [file.read() for file in files]


def changed_in_directory(path: Path, offset: int, value: bytes) -> Path:
    """The archive with bytes of its first central directory record replaced (PKZIP APPNOTE 4.3.12)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02") + offset
    content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


COMPRESSED_SIZE, UNCOMPRESSED_SIZE, FLAGS = 20, 24, 8


def test_a_folder_gives_all_its_files_with_those_of_subfolders(folder: Path) -> None:
    assert names_and_contents(folder) == CONTENTS


def test_an_archive_gives_the_same_files_under_its_own_name(tmp_path: Path) -> None:
    path = packed(tmp_path / "study.zip", CONTENTS)
    assert names_and_contents(path) == {f"study.zip:{name}": content for name, content in CONTENTS.items()}


def test_an_archive_is_known_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    path = packed(tmp_path / "study", CONTENTS)
    assert len(names_and_contents(path)) == 4


def test_a_list_gives_its_lines_relative_to_its_own_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (folder / "list.txt").write_text("sub/c\n./a\n")
    assert names_and_contents(folder / "list.txt") == {"sub/c": b"third", "./a": b"first"}


def test_a_list_may_have_comments_blank_lines_a_byte_order_mark_and_crlf(folder: Path) -> None:
    text = "\ufeffa\r\n# only the good ones\r\n\r\n  b.dcm   # the second\r\n"
    (folder / "list.txt").write_bytes(text.encode())
    assert names_and_contents(folder / "list.txt") == {"a": b"first", "b.dcm": b"second"}


def test_a_list_may_name_files_by_their_full_path(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{folder / 'a'}\n")
    assert names_and_contents(tmp_path / "list.txt") == {str(folder / "a"): b"first"}


def test_a_list_takes_a_name_with_the_tilde_of_no_user_as_it_is(folder: Path) -> None:
    (folder / "~nobody-by-that-name").write_bytes(b"kept")
    (folder / "list.txt").write_text("~nobody-by-that-name\n")
    assert names_and_contents(folder / "list.txt") == {"~nobody-by-that-name": b"kept"}


def test_a_list_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("患者/一".encode("gbk"))
    with pytest.raises(UnsupportedInput, match=r"list\.txt is not a list of files in UTF-8"):
        read_all(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("line", "error"),
    [("gone", MissingInput), ("a\0b", MissingInput), ("sub", UnsupportedInput), ("pipe", UnsupportedInput)],
    ids=["absent", "no path at all", "a folder", "a pipe"],
)
def test_a_line_that_names_no_file_is_refused_by_name(folder: Path, line: str, error: type[InputError]) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "list.txt").write_text(f"a\n{line}\n")
    with pytest.raises(error, match=repr(line)[1:-1].replace("\\", r"\\")):
        read_all(folder / "list.txt")


def test_files_given_one_by_one_keep_their_order(folder: Path) -> None:
    paths = [folder / "sub" / "c", folder / "a"]
    assert list(names_and_contents(paths)) == [str(path) for path in paths]


@pytest.mark.parametrize("name", ["empty folder", "empty.zip", "empty.txt"])
def test_an_input_without_files_is_missing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".zip"):
        packed(path, {})
    elif name.endswith(".txt"):
        path.write_text("# nothing\n")
    else:
        path.mkdir()
    with pytest.raises(MissingInput, match="holds no files"):
        read_all(path)


def test_a_link_to_nowhere_is_told_and_not_passed_over(folder: Path) -> None:
    """A slice may have lain there."""
    (folder / "lost").symlink_to(folder / "nowhere")
    with pytest.raises(MissingInput, match="lost does not exist"):
        read_all(folder)


def test_a_linked_folder_is_walked_once_even_where_it_leads_back(folder: Path, tmp_path: Path) -> None:
    elsewhere = laid_out(tmp_path / "elsewhere", {"e": b"fifth"})
    (folder / "link").symlink_to(elsewhere)
    (folder / "second link").symlink_to(elsewhere)
    (folder / "sub" / "loop").symlink_to(folder)
    assert names_and_contents(folder) == {**CONTENTS, "link/e": b"fifth"}


def test_no_more_files_than_the_cap_are_looked_through(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAX_FILES", 3)
    with pytest.raises(UnsupportedInput, match=r"holds more than 3 files.*prepare-rsna"):
        read_all(folder)


def test_an_archive_of_50001_entries_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "many.zip", {f"{k}": b"" for k in range(50_001)}, zipfile.ZIP_STORED)
    with pytest.raises(UnsupportedInput, match="more than 50000 files"):
        read_all(path)


def test_a_list_longer_than_the_cap_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\n" * 50_001)
    with pytest.raises(UnsupportedInput, match="more than 50000 files"):
        read_all(tmp_path / "list.txt")


def test_an_encrypted_member_is_refused_by_name(tmp_path: Path) -> None:
    path = changed_in_directory(packed(tmp_path / "secret.zip", {"a.dcm": b"x" * 99}), FLAGS, b"\x01\x00")
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the local header says it too
    path.write_bytes(content)
    with pytest.raises(
        UnsupportedInput, match=r"secret\.zip:a\.dcm is encrypted; unpack the archive with its password"
    ):
        read_all(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_an_archive_that_was_cut_is_damaged_and_not_something_else(tmp_path: Path, share: float) -> None:
    content = packed(tmp_path / "whole.zip", {f"{k}": os.urandom(200) for k in range(9)}).read_bytes()
    path = tmp_path / "cut.zip"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CorruptInput, match=r"cut\.zip is a damaged zip archive"):
        read_all(path)


def test_a_changed_byte_in_a_member_is_damage(tmp_path: Path) -> None:
    path = packed(tmp_path / "study.zip", {"a": b"0123456789" * 20}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(b"0123456789") + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptInput, match=r"study\.zip:a cannot be unpacked"):
        read_all(path)


def test_an_archive_that_declares_more_than_deflate_can_give_is_refused_unread(tmp_path: Path) -> None:
    path = packed(tmp_path / "bomb.zip", {"a": b"x"})
    changed_in_directory(path, UNCOMPRESSED_SIZE, struct.pack("<I", 3 << 30))
    with pytest.raises(CorruptInput, match="declares 3221225472 bytes"):
        read_all(path)


def test_a_member_above_the_cap_of_a_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(UnsupportedInput, match="a has 1001 bytes; at most 1000"):
        read_all(packed(tmp_path / "large.zip", {"a": bytes(1001)}))


def test_a_member_that_inflates_beyond_its_declared_size_takes_no_more_memory_than_that(tmp_path: Path) -> None:
    path = packed(tmp_path / "bomb.zip", {"a": bytes(64 << 20)})
    changed_in_directory(path, UNCOMPRESSED_SIZE, struct.pack("<I", 100))
    tracemalloc.start()
    with pytest.raises(CorruptInput):
        read_all(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 << 20


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    """One of them would be read twice, the other never."""
    path = packed(tmp_path / "twice.zip", {"IM1": b"first", "IM2": b"other"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"IM2", b"IM1"))
    with pytest.raises(CorruptInput, match="holds 2 files named IM1"):
        read_all(path)


@pytest.mark.parametrize("name", ["../../outside", "/outside", "C:\\outside", "a/../../outside"])
def test_a_member_whose_name_leads_out_is_read_and_written_nowhere(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path / "slip.zip", {name: b"bytes"})
    before = everything_under(tmp_path)
    assert list(names_and_contents(path).values()) == [b"bytes"]
    assert everything_under(tmp_path) == before
    assert not Path("/outside").exists()


def everything_under(folder: Path) -> Iterable[Path]:
    return sorted(folder.rglob("*"))


def test_a_file_that_grew_since_it_was_listed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(CorruptInput, match="has grown beyond 4 bytes"):
        InputFile("a", tmp_path / "a", 4).read()


def test_the_head_of_a_file_is_its_first_bytes(tmp_path: Path) -> None:
    path = packed(tmp_path / "study.zip", {"a": b"0123456789"})
    with open_files(path) as (file,):
        assert file.head(4) == b"0123"


def test_an_archive_of_a_million_entries_is_refused_before_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "many.zip", {f"{k}": b"" for k in range(70_000)}, zipfile.ZIP_STORED)  # ZIP64's end record
    monkeypatch.setattr(files_module.zipfile, "ZipFile", lambda path: pytest.fail("the entries were listed"))
    with pytest.raises(UnsupportedInput, match="more than 50000 files"), open_files(path):
        pass
