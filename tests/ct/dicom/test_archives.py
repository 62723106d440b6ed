"""DICOM packed in zip, tar and gzip: read as the files it holds, or an error with a way out that works."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dicom_writer import axial_geometry, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.ct.dicom import files as files_module
from meddinov3_stroke.ct.dicom import tars
from meddinov3_stroke.ct.dicom.choice import inspect_dicom
from meddinov3_stroke.ct.dicom.files import open_files
from meddinov3_stroke.errors import CorruptInput, InputError, MissingInput, UnsupportedInput

HU = np.random.default_rng(0).integers(-1000, 2500, (10, 9, 11))
BLOCK = tarfile.BLOCKSIZE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A series of `HU`."""
    write_dicom_series(tmp_path / "series", HU, axial_geometry([5.0] * 9, (9, 11)))
    return tmp_path / "series"


def tarred(path: Path, folder: Path, mode: str = "w", layout: int = tarfile.PAX_FORMAT, inside: str = "series") -> Path:
    with tarfile.open(path, mode, format=layout) as archive:
        archive.add(folder, inside)
    return path


def tar_of(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                header = tarfile.TarInfo(member[0])
                header.size = len(member[1])
                archive.addfile(header, io.BytesIO(member[1]))
    return path


def names_in(path: Path) -> list[str]:
    with open_files(path) as files:
        return [file.name for file in files]


@pytest.mark.parametrize("name", ["study.tar", "study.tar.gz", "study.tgz", "study", "study.zip"])
def test_a_tar_archive_is_read_whatever_its_name(tmp_path: Path, folder: Path, name: str) -> None:
    path = tarred(tmp_path / name, folder, "w:gz" if "gz" in name else "w")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.warnings == ()
    assert volume.source.sha256 == read_volume(folder).source.sha256
    (one,) = inspect_dicom(path).series
    assert (one.verdict, one.n_images) == ("used", 10)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_folders_are_taken_in_every_layout(tmp_path: Path, folder: Path, layout: int) -> None:
    inside = "/".join(["n" * 70] * (2 if layout == tarfile.USTAR_FORMAT else 4))
    path = tarred(tmp_path / "study.tar", folder, layout=layout, inside=inside)
    np.testing.assert_array_equal(read_volume(path).hu, HU)
    assert all(name.startswith(f"study.tar:{inside}/IM00") for name in names_in(path))


def test_a_tar_archive_of_the_command_is_read(tmp_path: Path, folder: Path) -> None:
    subprocess.run(["tar", "-czf", tmp_path / "study.tgz", "-C", folder, "."], check=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "study.tgz").hu, HU)


@pytest.mark.parametrize("name", ["../../outside", "/outside", "a/../../outside", "C:\\outside"])
def test_a_member_whose_name_leads_out_is_written_nowhere(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "slip.tar", (name, b"bytes"))
    assert names_in(path) == [f"slip.tar:{name}"]
    assert list(tmp_path.rglob("*")) == [path]
    assert not Path("/outside").exists()


@pytest.mark.parametrize("option", ["symbolic", "hard"])
def test_links_in_an_archive_are_refused_and_packing_them_as_files_works(
    tmp_path: Path, folder: Path, option: str
) -> None:
    first = min(folder.iterdir())
    moved = first.rename(tmp_path / "elsewhere" if option == "symbolic" else folder / "sub")
    if option == "symbolic":
        first.symlink_to(moved)
    else:
        first.hardlink_to(moved)
    tarred(tmp_path / "study.tar", folder)
    with pytest.raises(UnsupportedInput, match=r"is a link; .* tar --dereference --hard-dereference"):
        read_volume(tmp_path / "study.tar")
    command = ["tar", "--dereference", "--hard-dereference", "-cf", tmp_path / "again.tar", "-C", folder, "."]
    subprocess.run(command, check=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "again.tar").hu, HU)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"Z"])
def test_devices_and_sparse_files_in_an_archive_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("odd")
    member.type = kind
    with pytest.raises(UnsupportedInput, match="odd in it is a sparse file, a device or a pipe"):
        names_in(tar_of(tmp_path / "study.tar", member))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_every_truncation_of_a_tar_archive_is_an_error(tmp_path: Path, folder: Path, mode: str) -> None:
    content = tarred(tmp_path / "whole", folder, mode).read_bytes()
    path = tmp_path / "cut"
    least = tarfile.BLOCKSIZE if mode == "w" else 200
    end = content.rstrip(b"\0")
    for n_bytes in (*range(least, len(end), len(end) // 40), len(end) // BLOCK * BLOCK + BLOCK):
        if mode == "w:gz" and n_bytes >= len(content):
            continue
        path.write_bytes(content[:n_bytes])
        with pytest.raises(InputError):
            names_in(path)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    content = bytearray(tar_of(tmp_path / "study.tar", ("a", b"1"), ("b", b"2")).read_bytes())
    content[2 * BLOCK] ^= 1
    (tmp_path / "study.tar").write_bytes(content)
    with pytest.raises(CorruptInput, match="the header at byte 1024 is damaged"):
        names_in(tmp_path / "study.tar")


def test_a_changed_byte_in_a_packed_archive_is_damage(tmp_path: Path) -> None:
    plain = tar_of(tmp_path / "plain", ("a", os.urandom(4000))).read_bytes()
    content = bytearray(gzip.compress(plain, 0))
    content[2000] ^= 1
    (tmp_path / "study.tgz").write_bytes(content)
    with pytest.raises(CorruptInput, match=r"study\.tgz cannot be unpacked"):
        names_in(tmp_path / "study.tgz")


def test_archives_joined_into_one_are_refused(tmp_path: Path) -> None:
    parts = [tar_of(tmp_path / name, (name, b"x")).read_bytes() for name in "ab"]
    (tmp_path / "study.tar").write_bytes(b"".join(parts))
    with pytest.raises(CorruptInput, match="continues after the end of its tar archive"):
        names_in(tmp_path / "study.tar")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptInput, match="holds 2 files named a"):
        names_in(tar_of(tmp_path / "study.tar", ("a", b"1"), ("a", b"2")))


def test_more_members_than_the_cap_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAX_FILES", 3)
    with pytest.raises(UnsupportedInput, match="more than 3 files"):
        names_in(tar_of(tmp_path / "study.tar", *((f"{k}", b"") for k in range(4))))


@pytest.mark.parametrize("where", ["member", "long name", "tail"])
def test_a_bomb_is_refused_before_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(tars, "MAX_UNPACKED_BYTES", 1 << 20)
    header = tarfile.TarInfo("a")
    header.size = 0 if where == "tail" else 64 << 20
    header.type = tarfile.GNUTYPE_LONGNAME if where == "long name" else tarfile.REGTYPE
    content = header.tobuf() + bytes(64 << 20)
    (tmp_path / "bomb.tgz").write_bytes(gzip.compress(content, 1))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"unpacks to more than 1048576 bytes|67108864 bytes is impossible"):
        names_in(tmp_path / "bomb.tgz")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 << 20


def test_a_header_of_an_impossible_size_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("a")
    header.size, header.type = 1 << 20, tarfile.XHDTYPE
    (tmp_path / "study.tar").write_bytes(header.tobuf() + bytes(1 << 20))
    with pytest.raises(CorruptInput, match="a header of 1048576 bytes is impossible"):
        names_in(tmp_path / "study.tar")


def test_a_tar_archive_above_the_cap_is_read_once_unpacked(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_UNPACKED_BYTES", 1 << 10)
    with pytest.raises(UnsupportedInput, match=r"unpack it$"):
        read_volume(tarred(tmp_path / "study.tar", folder))
    shutil.unpack_archive(tmp_path / "study.tar", tmp_path / "out", filter="data")
    np.testing.assert_array_equal(read_volume(tmp_path / "out").hu, HU)


def test_files_within_gzip_are_read_in_a_folder_and_alone(folder: Path) -> None:
    for path in sorted(folder.iterdir())[::2]:
        path.with_suffix(".dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.warnings == ()
    alone = min(folder.glob("*.gz"))
    np.testing.assert_array_equal(read_volume(alone, allow_single_slice=True).hu[0], HU[0])
    np.testing.assert_array_equal(read_volume(alone.rename(folder / "IM"), allow_single_slice=True).hu[0], HU[0])


GZIP_DAMAGE = {
    "cut": "cannot be unpacked",
    "changed": "cannot be unpacked",
    "two streams": r"does not unpack to the \d+ bytes it declares; unpack it",
    "a false size": "declares 4294967295 bytes from .*, more than deflate can expand",
}


@pytest.mark.parametrize("damage", GZIP_DAMAGE)
def test_a_damaged_gzip_file_is_corrupt(folder: Path, damage: str) -> None:
    path = min(folder.iterdir())
    packed = bytearray(gzip.compress(path.read_bytes()))
    if damage == "changed":
        packed[len(packed) // 2] ^= 255
    elif damage == "a false size":
        packed[-4:] = b"\xff" * 4
    content = packed[:-1] if damage == "cut" else packed + packed if damage == "two streams" else packed
    path.with_suffix(".dcm.gz").write_bytes(content)
    path.unlink()
    with pytest.raises(CorruptInput, match=rf"IM0001\.dcm\.gz.*{GZIP_DAMAGE[damage]}"):
        read_volume(folder)


def test_a_file_in_several_gzip_streams_is_read_once_unpacked(folder: Path) -> None:
    path = min(folder.iterdir())
    content = path.read_bytes()
    packed = path.with_suffix(".dcm.gz")
    packed.write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    path.unlink()
    with pytest.raises(CorruptInput, match="unpack it"):
        read_volume(folder)
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    np.testing.assert_array_equal(read_volume(folder).hu, HU)


def test_what_only_ends_in_gz_is_taken_as_it_is(folder: Path) -> None:
    first = min(folder.iterdir())
    first.rename(first.with_suffix(".gz"))
    np.testing.assert_array_equal(read_volume(folder).hu, HU)


def zipped(path: Path, folder: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_deflated_archives_are_read(tmp_path: Path, folder: Path, method: int) -> None:
    np.testing.assert_array_equal(read_volume(zipped(tmp_path / "study.zip", folder, method)).hu, HU)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (9, "Deflate64"),
        (12, "bzip2"),
        (14, "LZMA"),
        (93, "Zstandard"),
        (95, "xz"),
        (98, "PPMd"),
        (1, "Shrink"),
        (77, "method 77"),
    ],
)
def test_another_method_is_named_and_packing_again_works(tmp_path: Path, folder: Path, method: int, name: str) -> None:
    path = zipped(tmp_path / "study.zip", folder)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.find(signature)
        while at >= 0:
            content[at + offset : at + offset + 2] = method.to_bytes(2, "little")
            at = content.find(signature, at + 1)
    path.write_bytes(content)
    words = rf"study\.zip:IM0001\.dcm is compressed by {name}, not supported; pack the archive again with .* Deflate"
    with pytest.raises(UnsupportedInput, match=words):
        read_volume(path)
    again = shutil.make_archive(str(tmp_path / "again"), "zip", folder)
    np.testing.assert_array_equal(read_volume(again).hu, HU)


def nifti(path: Path) -> Path:
    nib.save(nib.Nifti1Image(HU.astype(np.int16), np.diag([-1.0, -1, 1, 1])), path)
    return path


INNER: dict[str, Callable[[Path, Path], Path]] = {
    "inner.zip": zipped,
    "inner.tar": tarred,
    "inner.tgz": lambda path, folder: tarred(path, folder, "w:gz"),
    "case.nii": lambda path, _: nifti(path),
    "case.nii.gz": lambda path, _: nifti(path),
}


@pytest.mark.parametrize("outer", ["zip", "tar", "gztar", "folder"])
@pytest.mark.parametrize("name", INNER)
def test_an_archive_or_a_volume_in_another_is_named_and_unpacking_works(
    tmp_path: Path, folder: Path, name: str, outer: str
) -> None:
    (tmp_path / "outer").mkdir()
    inner = INNER[name](tmp_path / "outer" / name, folder)
    path = (
        tmp_path / "outer"
        if outer == "folder"
        else Path(shutil.make_archive(str(tmp_path / "o"), outer, tmp_path / "outer"))
    )
    kind = {"zip": "a zip archive", "tar": "a tar archive", "nii": "an uncompressed NIfTI-1 file"}
    named = rf"{name}, {kind.get(name.split('.', 1)[1], 'a gzip stream')}\)"
    unpack = "" if outer == "folder" else "unpack it, then "
    with pytest.raises(MissingInput, match=f"{named}; .*; {unpack}give a NIfTI volume or an archive by its own path"):
        read_volume(path)
    assert read_volume(inner).hu.size == HU.size


def test_a_zip_within_gzip_is_named_and_unpacking_works(tmp_path: Path, folder: Path) -> None:
    path = zipped(tmp_path / "study.zip", folder)
    packed = tmp_path / "study.zip.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(UnsupportedInput, match=r"gzip around a zip archive; .*; unpack it \(gunzip\)"):
        read_volume(packed)
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    np.testing.assert_array_equal(read_volume(path).hu, HU)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_packed_images_within_an_archive_are_refused_not_dropped(tmp_path: Path, folder: Path, kind: str) -> None:
    path = max(folder.iterdir())
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    archive = tarred(tmp_path / "a.tar", folder) if kind == "tar" else zipped(tmp_path / "a.zip", folder)
    with pytest.raises(UnsupportedInput, match="is packed once more; unpack the archive and give the folder"):
        read_volume(archive)
    assert read_volume(folder).n_slices == len(HU)


def test_a_sparse_file_of_the_tar_command_is_refused(tmp_path: Path, folder: Path) -> None:
    path = min(folder.iterdir())
    with path.open("ab") as handle:
        handle.truncate(path.stat().st_size + (1 << 20))
    words = ["tar", "--sparse", "--format=posix", "-cf", tmp_path / "a.tar", "-C", folder, "."]
    subprocess.run(words, check=True)
    with pytest.raises(UnsupportedInput, match="a sparse file in it"):
        read_volume(tmp_path / "a.tar")


def test_an_archive_of_folders_alone_ends_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meddinov3_stroke.ct.dicom.tars.MAX_HEADERS", 100)
    folders = [tarfile.TarInfo(f"folder{k}") for k in range(101)]
    for one in folders:
        one.type = tarfile.DIRTYPE
    with pytest.raises(UnsupportedInput, match="more than 100 entries"):
        names_in(tar_of(tmp_path / "a.tar", *folders))
