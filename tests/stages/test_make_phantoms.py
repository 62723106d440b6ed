"""Stage `phantom`."""

from __future__ import annotations

from pathlib import Path

import pytest

from meddinov3_stroke.commands.phantom import main


@pytest.mark.parametrize(
    ("flags", "column", "n_files"), [([], "nifti_path", "one"), (["--format", "dicom"], "dicom_path", "many")]
)
def test_volumes_are_written_in_the_format_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], column: str, n_files: str
) -> None:
    assert main(["--output-dir", str(tmp_path), "--patients", "1", "--quiet", *flags]) == 0
    header, row = (tmp_path / "phantom_series_labels.csv").read_text(encoding="utf-8").splitlines()[:2]
    assert header.split(",")[0] == column
    volume = tmp_path / row.split(",")[0]
    assert volume.is_dir() if n_files == "many" else volume.is_file()
    assert "research use only" in capsys.readouterr().out.lower()


def test_another_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--output-dir", str(tmp_path), "--format", "png"])
    assert exit_info.value.code == 2
    assert "png" in capsys.readouterr().err
