"""What a command shows: on a terminal of 80 or 160 columns, in files, and of what libraries log and warn of."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))

PROBE = """
import fcntl, logging, os, signal, sys, termios, time, warnings
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have set to be ignored
from dataclasses import dataclass
from meddinov3_stroke.system.command import LOGGER, ConsoleOptions, run_command
from meddinov3_stroke.system.progress import console, progress_bar

@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    wait: bool = False
    fail: bool = False

def run(args):
    noisy = logging.getLogger("noisy")
    noisy.addHandler(logging.StreamHandler())
    noisy.warning("of the library")
    warnings.warn("a DeprecationOfTheirs", UserWarning)
    with progress_bar("embedding", 40, "slices", args.show_progress) as advance:
        with progress_bar("inner", 40, "rows", args.show_progress) as advance_inner:
            for k in range(20):
                advance(); advance_inner()
                time.sleep(0.02)
                if k % 5 == 0:
                    LOGGER.info("message %d %s", k, "word " * 20)
                    console().print(f"result {k}")
                    print(f"printed {k}")
        if args.wait:
            print("ready", file=sys.stderr, flush=True)
            time.sleep(60)
        if args.fail:
            raise RuntimeError("broken")
    print("printed \\u00b7 last")

sys.exit(run_command(Args, run))
"""


class Terminal:
    """A terminal of some columns, as far as bars need it: what `feed` was given is on `lines`."""

    def __init__(self, columns: int) -> None:
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0

    def feed(self, text: str) -> None:
        for code, number, letter, sign in re.findall(r"(\x1b\[\??(\d*)[\d;]*([A-Za-z]))|(.|\n)", text, re.S):
            if code and letter == "A":
                self.row -= int(number or 1)
            elif code and letter == "K":
                self.lines[self.row] = "" if number == "2" else self.lines[self.row][: self.column]
            elif sign == "\r":
                self.column = 0
            elif sign == "\n":
                self._down()
            elif sign:
                self._put(sign)

    def _down(self) -> None:
        self.row += 1
        self.lines += [""] * (self.row + 1 - len(self.lines))

    def _put(self, sign: str) -> None:
        if self.column == self.columns:  # a full line is left when the next character comes
            self.column = 0
            self._down()
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + sign + line[self.column + 1 :]
        self.column += 1


@pytest.fixture
def on_terminal(tmp_path: Path) -> Callable[..., tuple[str, int]]:
    """(all that a probe wrote on a terminal, its exit status); `keys` are typed once it says `ready`."""

    def run(
        columns: int, *flags: str, keys: bytes = b"", stdout: int | None = None, **environment: str
    ) -> tuple[str, int]:
        main, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        process = subprocess.Popen(
            [sys.executable, "-c", PROBE, *flags],
            stdin=terminal,
            stdout=terminal if stdout is None else stdout,
            stderr=terminal,
            start_new_session=True,
            env=kept | {"TERM": "xterm", **environment},
        )
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(main, 65536)
            except OSError:  # the other end is closed
                break
            if keys and b"ready" in shown:
                time.sleep(0.3)
                os.write(main, keys)
                keys = b""
        os.close(main)
        return shown.decode().replace("\r\n", "\n\r"), process.wait(30)

    return run


def screen(shown: str, columns: int) -> list[str]:
    terminal = Terminal(columns)
    terminal.feed(shown)
    return [line.rstrip() for line in terminal.lines]


@pytest.mark.parametrize("columns", [80, 160])
def test_no_line_cuts_through_a_bar_and_no_bar_is_left(on_terminal, columns) -> None:
    shown, status = on_terminal(columns)
    assert "━" in shown
    assert status == 0
    left = screen(shown, columns)
    assert left.index("") == len(left) - 1  # the cursor is on the last line; no other is blank
    told = [f"{what} {k}" for k in (0, 5, 10, 15) for what in ("message", "result", "printed")]
    words = " ".join(line for line in left if line).replace("word", "").split()
    assert " ".join(words) == " ".join([*told, "printed · last"])


@pytest.mark.parametrize("columns", [80, 160])
def test_messages_are_wrapped_between_words(on_terminal, columns) -> None:
    lines = [line for line in screen(on_terminal(columns)[0], columns) if "word" in line]
    assert all(line.split()[-1] == "word" for line in lines)
    assert {len(line) <= columns for line in lines} == {True}


@pytest.mark.parametrize("flags", [[], ["--quiet"]], ids=["bar", "no bar"])
def test_after_an_interrupt_no_bar_is_left(on_terminal, flags) -> None:
    shown, status = on_terminal(80, "--wait", *flags, keys=b"\x03")
    assert "^C" in shown
    assert status == 130
    assert [line for line in screen(shown, 80) if "━" in line] == []
    assert "E-INTERRUPTED: interrupted; finished work is kept" in screen(shown, 80)


def test_after_an_error_no_bar_is_left(on_terminal) -> None:
    shown, status = on_terminal(80, "--fail")
    assert status == 70
    assert [line for line in screen(shown, 80) if "━" in line] == []


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_or_cursor_no_escape_code_is_written(on_terminal, environment) -> None:
    shown, _ = on_terminal(80, **environment)
    assert "\x1b" not in shown
    assert "embedding: 20/40 slices" in " ".join(shown.split())


def test_results_reach_a_file_while_a_bar_is_on_the_screen(on_terminal, tmp_path) -> None:
    with (tmp_path / "out").open("wb") as file:
        shown, _ = on_terminal(80, stdout=file.fileno())
    told = [f"{what} {k}" for k in (0, 5, 10, 15) for what in ("result", "printed")]
    assert (tmp_path / "out").read_text(encoding="utf-8").splitlines() == [*told, "printed · last"]
    assert "printed" not in shown


def probe(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE, *flags]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )


def test_what_libraries_log_and_warn_of_is_not_shown() -> None:
    done = probe()
    assert "message 15" in done.stderr
    assert "library" not in done.stderr + done.stdout
    assert "DeprecationOfTheirs" not in done.stderr + done.stdout


def test_debug_shows_what_libraries_log_and_warn_of() -> None:
    told = probe("--debug").stderr
    assert "debug: noisy: of the library\n" in told
    assert re.search(r"debug: py\.warnings: .* UserWarning: a DeprecationOfTheirs", told)
    assert told.count("of the library") == 1


@pytest.mark.parametrize("flags", [["--debug"], ["--debug", "--fail"], []], ids=" ".join)
def test_a_json_log_is_one_object_per_line(flags) -> None:
    lines = [json.loads(line) for line in probe("--json-log", *flags).stderr.splitlines()]
    assert all(set(line) == {"time", "level", "message"} for line in lines)
    assert sum("Traceback" in line["message"] for line in lines) == ("--fail" in flags)


def test_files_get_no_escape_codes() -> None:
    done = probe()
    assert "\x1b" not in done.stdout + done.stderr


def test_a_sign_that_standard_output_cannot_show_is_no_error() -> None:
    done = probe(PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.endswith("printed \\xb7 last\n")
