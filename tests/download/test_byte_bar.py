"""A bar of bytes starts where the transfer does, on standard error only."""

from __future__ import annotations

import io
import sys

import pytest

from meddinov3_stroke.system.progress import byte_bar

MIB = 1 << 20


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_without_a_terminal_each_tenth_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="meddinov3_stroke")
    with byte_bar("weights") as report:
        for done in range(101):
            report(done * MIB, 100 * MIB)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 10
    assert lines[0].startswith("weights: 10.0/100.0 MiB, ")


def test_bytes_of_an_earlier_run_count_neither_as_lines_nor_as_speed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="meddinov3_stroke")
    with byte_bar("weights") as report:
        report(85 << 40, 100 << 40)
        report((85 << 40) + 1, 100 << 40)
        report(90 << 40, 100 << 40)
        report(0, 100)
        report(1, 100)
        report(10, 100)
    assert [record.getMessage().split(" MiB,")[0] for record in caplog.records] == [
        f"weights: {90 << 20}.0/{100 << 20}.0",
        "weights: 0.0/0.0",
    ]


def test_an_unknown_size_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with byte_bar("weights") as report:
        report(0, None)
        report(5, None)
    assert caplog.records == []


def test_on_a_terminal_a_bar_shows_the_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with byte_bar("weights") as report:
        report(50 * 10**6, 100 * 10**6)
    assert "50.0/100.0 MB" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_a_bar_that_is_not_wanted_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with byte_bar("weights", enabled=False) as report:
        report(5, 10)
    assert terminal.getvalue() == ""
