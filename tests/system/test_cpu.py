"""What a processor can do, read from the system's own list."""

from __future__ import annotations

from pathlib import Path

import pytest

from meddinov3_stroke.system.devices import bf16_flag

X86 = "processor\t: 0\nmodel name\t: Xeon\nvmx flags\t: vnmi avx512_bf16\nflags\t\t: fpu sse2 avx512f {flags}\n\n"
ARM = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd {flags}\nCPU implementer\t: 0x41\n\n"


def cpuinfo(folder: Path, template: str, flags: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(template.format(flags=flags) * 2)
    return path


@pytest.mark.parametrize(
    ("template", "flags", "expected"),
    [
        (X86, "avx512_bf16", "avx512_bf16"),
        (X86, "amx_bf16 amx_tile", "amx_bf16"),
        (X86, "amx_bf16 avx512_bf16", "avx512_bf16"),
        (X86, "avx512_vnni", None),
        (X86, "not_avx512_bf16_at_all", None),
        (ARM, "i8mm bf16", "bf16"),
        (ARM, "svebf16", None),
        (ARM, "", None),
    ],
)
def test_bf16_is_read_from_the_processors_own_flags(
    tmp_path: Path, template: str, flags: str, expected: str | None
) -> None:
    assert bf16_flag(cpuinfo(tmp_path, template, flags)) == expected


def test_nothing_is_claimed_where_the_system_lists_nothing(tmp_path: Path) -> None:
    assert bf16_flag(tmp_path / "none") is None


def test_bytes_that_are_no_text_do_not_stop_the_reading(tmp_path: Path) -> None:
    path = cpuinfo(tmp_path, X86, "amx_bf16")
    path.write_bytes(b"serial\t: \xff\xfe\n" + path.read_bytes())
    assert bf16_flag(path) == "amx_bf16"
