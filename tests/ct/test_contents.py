"""A file that is not NIfTI under its own name is refused, and the message names what was found."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import socket
import tarfile
import zipfile

import nibabel as nib
import numpy as np
import pytest

from dicom_writer import axial_geometry, write_dicom_series
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import CorruptInput, MissingInput, StorageError, UnsupportedInput

AXIAL = np.array([[-0.5, 0, 0, 60.0], [0, -0.5, 0, 80.0], [0, 0, 5.0, -30.0], [0, 0, 0, 1]])
DICOM = bytes(128) + b"DICM" + bytes(400)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("01.dcm", DICOM)
    return buffer.getvalue()


IMPOSTORS = {
    "Git-LFS pointer": LFS_POINTER,
    "HTML page": b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>quota exceeded</body></html>",
    "DICOM file": DICOM,
    "zip archive": _zip(),
    "PNG picture": b"\x89PNG\r\n\x1a\n" + bytes(50),
    "NumPy array": b"\x93NUMPY\x01\x00" + bytes(100),
    "NRRD file": b"NRRD0004\ntype: short\n",
    "MetaImage header": b"ObjectType = Image\nNDims = 3\n",
    "bzip2 stream": bz2.compress(b"x" * 100),
    "xz stream": lzma.compress(b"x" * 100),
}


@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
@pytest.mark.parametrize("kind", IMPOSTORS)
def test_another_kind_of_file_is_named(write, kind, name) -> None:
    with pytest.raises(UnsupportedInput, match=rf"is an? {kind}[^;]*; expected"):
        read_volume(write(IMPOSTORS[kind], name, pack=False))


@pytest.mark.parametrize("name", ["case.dcm", "case"])
@pytest.mark.parametrize("kind", sorted(set(IMPOSTORS) - {"DICOM file", "zip archive"}))
def test_what_cannot_be_dicom_is_named(write, kind, name) -> None:
    with pytest.raises(UnsupportedInput, match=rf"is an? {kind}[^;]*; expected"):
        read_volume(write(IMPOSTORS[kind], name, pack=False))


@pytest.mark.parametrize("kind", ["DICOM file", "HTML page"])
def test_another_kind_of_file_is_named_through_gzip(write, kind) -> None:
    with pytest.raises(UnsupportedInput, match=f"gzip around an? {kind}"):
        read_volume(write(IMPOSTORS[kind].ljust(400)))


@pytest.mark.parametrize(("kind", "remedy"), [("DICOM file", "folder of its series"), ("zip archive", r"end in \.zip")])
def test_dicom_under_a_nifti_name_gets_a_message_that_says_where_it_belongs(write, kind, remedy) -> None:
    with pytest.raises(UnsupportedInput, match=remedy):
        read_volume(write(IMPOSTORS[kind], "case.nii.gz", pack=False))


def test_damaged_dicom_is_corrupt(tmp_path) -> None:
    (tmp_path / "01.dcm").write_bytes(DICOM[:-1])
    with pytest.raises(CorruptInput, match=r"01\.dcm"):
        read_volume(tmp_path)


def test_a_directory_without_dicom_is_missing_input(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(MissingInput, match=r"no DICOM image \(found notes\.txt\)"):
        read_volume(tmp_path)


def test_an_empty_directory_is_missing_input(tmp_path) -> None:
    with pytest.raises(MissingInput, match="holds no files"):
        read_volume(tmp_path)


def test_an_empty_directory_named_as_a_volume_is_missing_input(tmp_path) -> None:
    (tmp_path / "case.nii.gz").mkdir()
    with pytest.raises(MissingInput, match="holds no files"):
        read_volume(tmp_path / "case.nii.gz")


@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz", "CASE.NII"])
def test_a_dicom_folder_named_as_a_volume_is_read_as_the_series_it_is(tmp_path, name) -> None:
    hu = np.random.default_rng(0).integers(-1000, 2500, (4, 9, 11))
    write_dicom_series(tmp_path / name, hu, axial_geometry([5.0] * 3, (9, 11)))
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.source.format == "dicom"


def test_a_folder_named_as_the_volume_inside_it_is_named(tmp_path, make_nifti_bytes, head) -> None:
    (tmp_path / "case.nii").mkdir()
    (tmp_path / "case.nii" / "case.nii").write_bytes(make_nifti_bytes(head))
    named = r"found case\.nii, an uncompressed NIfTI-1 file\).*; give a NIfTI volume or an archive by its own path"
    with pytest.raises(MissingInput, match=named):
        read_volume(tmp_path / "case.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "case.nii" / "case.nii").stored, head.transpose(2, 1, 0))


def test_an_absent_file_is_missing(tmp_path) -> None:
    (tmp_path / "gone.nii").symlink_to(tmp_path / "nowhere.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "file").write_text("x")
    for name in ("none.nii.gz", "gone.nii", "loop.nii", "file/case.nii", "n" * 300 + ".nii"):
        with pytest.raises(MissingInput, match="does not exist"):
            read_volume(tmp_path / name)


def test_a_name_that_cannot_be_a_path_is_missing() -> None:
    with pytest.raises(MissingInput, match="cannot be a path"):
        read_volume("case\0.nii")


def test_an_empty_file_is_missing_input(write) -> None:
    with pytest.raises(MissingInput, match="empty"):
        read_volume(write(b"", pack=False))


def test_unknown_bytes_under_a_nifti_name_are_corrupt(write) -> None:
    for name in ("case.nii", "case.nii.gz"):
        with pytest.raises(CorruptInput, match="neither gzip nor a NIfTI header"):
            read_volume(write(b"\x07" * 500, name, pack=False))


def test_unknown_bytes_under_another_name_are_unsupported(write) -> None:
    with pytest.raises(UnsupportedInput, match=r"not DICOM and not \.nii or \.nii\.gz"):
        read_volume(write(b"\x07" * 500, "case.raw", pack=False))


@pytest.mark.parametrize(
    ("name", "pack", "message"),
    [
        ("case.nii", True, r"gzip stream; expected an uncompressed NIfTI; rename it to end in \.nii\.gz"),
        ("case.nii.gz", False, r"uncompressed NIfTI-1 file; expected gzip.*rename it to end in \.nii$"),
        ("case.img", False, r"NIfTI-1 file; expected \.nii, \.nii\.gz or DICOM; rename it to end in \.nii$"),
        ("case.gz", True, r"gzip stream; expected \.nii, \.nii\.gz or DICOM; rename it to end in \.nii\.gz$"),
    ],
)
def test_a_nifti_under_another_name_gets_a_message_with_the_right_name(
    write, make_nifti_bytes, head, name, pack, message
) -> None:
    with pytest.raises(UnsupportedInput, match=message):
        read_volume(write(make_nifti_bytes(head), name, pack=pack))


@pytest.mark.parametrize("image_type", [nib.Nifti1Pair, nib.AnalyzeImage, nib.Spm99AnalyzeImage])
def test_two_file_formats_are_unsupported(tmp_path, head, image_type) -> None:
    nib.save(image_type(head, np.diag([-1.0, 1, 1, 1])), tmp_path / "case.hdr")
    with pytest.raises(UnsupportedInput, match=r"pair|Analyze"):
        read_volume(tmp_path / "case.hdr")


@pytest.mark.parametrize("ending", [".img", ".img.gz", ".IMG"])
def test_voxels_without_their_header_are_named_with_the_way_out(tmp_path, make_nifti_bytes, head, ending) -> None:
    nib.save(nib.Nifti1Pair(head, AXIAL), tmp_path / "case.hdr")
    header, voxels = tmp_path / "case.hdr", tmp_path / f"case{ending}"
    content = (tmp_path / "case.img").read_bytes()
    voxels.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    kept = header.rename(tmp_path / "kept")
    with pytest.raises(
        UnsupportedInput, match=r"no header case\.hdr beside it.*fetch the header too, then save the pair"
    ):
        read_volume(voxels)
    kept.rename(header)
    with pytest.raises(UnsupportedInput, match=r"the header case\.hdr is beside it.*; save the pair as one \.nii\.gz"):
        read_volume(voxels)
    nib.save(nib.load(header), tmp_path / "case.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "case.nii.gz").hu, head.transpose(2, 1, 0))


def test_a_dicom_image_named_img_is_read(tmp_path) -> None:
    hu = np.random.default_rng(0).integers(-1000, 2500, (2, 9, 11))
    write_dicom_series(tmp_path / "series", hu, axial_geometry([5.0], (9, 11)))
    file = min((tmp_path / "series").iterdir())
    for content in (file.read_bytes(), file.read_bytes()[132:]):
        (tmp_path / "IM1.img").write_bytes(content)
        one = read_volume(tmp_path / "IM1.img", allow_single_slice=True).hu[0]
        assert any(np.array_equal(one, image) for image in hu)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "dcm", "dcm.gz"])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_dicom_and_archives_named_as_a_volume_are_named_and_renaming_them_works(tmp_path, kind, ending) -> None:
    hu = np.random.default_rng(0).integers(-1000, 2500, (1, 9, 11))
    write_dicom_series(tmp_path / "series", hu, axial_geometry([], (9, 11)))
    path = tmp_path / f"study.{ending}"
    (one,) = (tmp_path / "series").iterdir()
    if kind.startswith("tar"):
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
            archive.add(tmp_path / "series", "series")
    else:
        content = one.read_bytes()
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    with pytest.raises(UnsupportedInput, match=r"(a tar archive|a DICOM file|a gzip stream).*; .*") as raised:
        read_volume(path)
    if "rename it to end in .nii.gz" in str(raised.value):  # which leads to the second message
        path = path.rename(tmp_path / "study.nii.gz")
        with pytest.raises(UnsupportedInput, match="gzip around") as raised:
            read_volume(path)
    assert re.search(r"remove the ending \.nii or \.nii\.gz", str(raised.value))
    np.testing.assert_array_equal(read_volume(path.rename(tmp_path / "study"), allow_single_slice=True).hu, hu)


def test_a_named_pipe_is_refused_without_waiting(tmp_path) -> None:
    os.mkfifo(tmp_path / "case.nii.gz")
    with pytest.raises(UnsupportedInput, match="named pipe"):
        read_volume(tmp_path / "case.nii.gz")


def test_a_socket_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("case.nii")
        with pytest.raises(UnsupportedInput, match="socket"):
            read_volume("case.nii")


def test_a_device_is_refused() -> None:
    with pytest.raises(UnsupportedInput, match="a device"):
        read_volume("/dev/zero")


def test_an_input_output_error_is_a_storage_error(write_nifti, head, monkeypatch) -> None:
    path = write_nifti(head)

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(path), "open", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        read_volume(path)
