"""Runs a stage (`Args`, `run`) as a command: parses flags, reports an error in one line, returns the exit code.

Empty and impossible values are refused before any work.
"""

from __future__ import annotations

import io
import json
import logging
import math
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

from meddinov3_stroke.errors import MedDINOError, UsageError
from meddinov3_stroke.system import names
from meddinov3_stroke.system.atomic import UrlPath, located
from meddinov3_stroke.system.progress import write_message

LOGGER = logging.getLogger("meddinov3_stroke")
BUG_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130

SCRIPTS = {"download": "download_models.py --package meddinov3", "train-rsna": "train_meddinov3_rsna.py"}
"""Verb -> its script in a checkout, for the verbs that messages advise."""


@dataclass(frozen=True)
class Range:
    """Marks a flag (`Annotated[int, Range(1)]`) whose value must lie between two numbers, both included."""

    low: int
    high: int | float = math.inf

    def __str__(self) -> str:
        return f"at least {self.low:g}" if math.isinf(self.high) else f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """Flags every command has."""

    urls: ClassVar[tuple[str, ...]] = ()  # flags that may be URLs

    quiet: bool = False
    """Print warnings and errors only."""
    json_log: bool = False
    """Write messages to standard error as one JSON object per line."""
    debug: bool = False
    """Print the traceback of an error, and what libraries log and warn of."""

    def __post_init__(self) -> None:
        """Raise UsageError for the first flag outside its `Range`."""
        hints = get_type_hints(type(self), include_extras=True)
        for name in (field.name for field in fields(self)):
            for valid in (one for one in getattr(hints[name], "__metadata__", ()) if isinstance(one, Range)):
                value = getattr(self, name)
                if value is not None and not (math.isfinite(value) and valid.low <= value <= valid.high):
                    raise UsageError(f"--{name.replace('_', '-')} {value:g}: expected {valid}")

    @property
    def show_progress(self) -> bool:
        """Whether to show progress."""
        return not (self.quiet or self.json_log)


ArgsT = TypeVar("ArgsT", bound=ConsoleOptions)


def run_command(
    args_type: type[ArgsT], run: Callable[[ArgsT], Any], argv: Sequence[str] | None = None, prog: str | None = None
) -> int:
    """The exit code of a stage run from the command line; the parser itself exits with 2 on usage errors."""
    import tyro

    options = ConsoleOptions()
    set_up_logging(options)
    _running[:] = [*(shlex.split(prog) if prog else sys.argv[:1]), *(sys.argv[1:] if argv is None else argv)]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no path or sign ends a command whose work is done
    try:
        refuse_empty(sys.argv[1:] if argv is None else argv)
        options = args = tyro.cli(args_type, args=argv, prog=prog)  # defaults from the environment may be wrong, too
        set_up_logging(args)
        names.begin(is_hidden=getattr(args, "hide_names", False), in_logs=args.json_log)
        with libraries_at_debug(), _output_at_url(_with_urls(args)) as args:
            run(args)
    except MedDINOError as error:
        return _report(error.code, str(error), error.exit_code, options)
    except KeyboardInterrupt:
        return _report("E-INTERRUPTED", "interrupted; finished work is kept", INTERRUPTED_EXIT_CODE, options)
    except Exception as error:
        message = f"internal error: {type(error).__name__}: {error}; run again with --debug and report the output"
        return _report("E-BUG", message, BUG_EXIT_CODE, options)
    finally:
        names.end()
    return 0


def _with_urls(args: ArgsT) -> ArgsT:
    """The flags with URLs as such, and `file://` URLs as paths; UsageError for a URL in a flag that takes none."""
    changed: dict[str, Any] = {}
    for name, value in vars(args).items():
        many = value if isinstance(value, tuple) else (value,)
        found = tuple(located(one) if isinstance(one, Path) else one for one in many)
        urls = [one for one in found if isinstance(one, UrlPath)]
        if urls and name not in args.urls:
            raise UsageError(f"--{name.replace('_', '-')} {urls[0]}: a URL cannot be used here; name a local path")
        if urls or found != many:
            changed[name] = found if isinstance(value, tuple) else found[0]
    return replace(args, **changed) if changed else args


@contextmanager
def _output_at_url(args: ArgsT) -> Iterator[ArgsT]:
    """The flags; an output folder at a URL is written in a local one first, and uploaded at the end."""
    output = getattr(args, "output_dir", None)
    if not isinstance(output, UrlPath):
        yield args
        return
    from meddinov3_stroke.system.remote import local_folder_of

    if elsewhere := [f"--{name}" for name in ("slurm", "ray") if getattr(args, name, None)]:
        advice = "name a folder that all nodes see; --cache-dir may be a URL"
        raise UsageError(f"{elsewhere[0]} with --output-dir {output}: {advice}")
    with local_folder_of(output) as folder, _printed_as(folder, output):
        yield replace(args, output_dir=folder)  # type: ignore[call-arg]


@contextmanager
def _printed_as(folder: Path, url: Path) -> Iterator[None]:
    """What is printed or raised names the URL in the place of the folder."""

    def rewrite(text: str) -> str:
        return text.replace(str(folder), str(url))

    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (names.Rewritten(stream, rewrite) for stream in streams)
    try:
        yield
    except MedDINOError as error:
        error.args = (rewrite(str(error)),)
        raise
    finally:
        sys.stdout, sys.stderr = streams


def _report(code: str, message: str, exit_code: int, args: ConsoleOptions) -> int:
    LOGGER.debug("%s", traceback.format_exc().rstrip())
    LOGGER.error("%s: %s", code, " ".join(message.split()))
    return exit_code


def set_up_logging(options: ConsoleOptions) -> None:
    """Send this package's messages to standard error: warnings always, the rest unless `--quiet`, all by `--debug`."""
    handler = _Messages()
    handler.setFormatter(_JsonLines() if options.json_log else _PlainLines())
    LOGGER.handlers = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.DEBUG if options.debug else logging.WARNING if options.quiet else logging.INFO)


@contextmanager
def libraries_at_debug() -> Iterator[None]:
    """What libraries log and warn of becomes a debug message of this package, whatever handlers they install."""
    ordinary = logging.Logger.callHandlers

    def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
        if self is LOGGER:
            ordinary(self, record)
        else:
            LOGGER.debug("%s: %s", record.name, " ".join(record.getMessage().split()))

    logging.captureWarnings(True)
    logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
    try:
        yield
    finally:
        logging.Logger.callHandlers = ordinary  # type: ignore[method-assign]
        logging.captureWarnings(False)


def log_warnings(warnings: Iterable[str]) -> None:
    """Send each warning to standard error."""
    for warning in warnings:
        LOGGER.warning("%s", warning)


class _Messages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        write_message(self.format(record))


class _PlainLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = {logging.WARNING: "warning: ", logging.DEBUG: "debug: "}.get(record.levelno, "")
        return prefix + record.getMessage()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        fields = {"time": stamp, "level": record.levelname.lower(), "message": names.logged(record.getMessage())}
        return json.dumps(fields, ensure_ascii=False)


def refuse_empty(argv: Sequence[str]) -> None:
    """Raise UsageError for an empty argument, such as an unset variable of a shell leaves: `--input "$CASE"`."""
    for before, word in zip(("", *argv), argv, strict=False):
        flag, is_assigned, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if not value.strip() and (is_assigned or not word.startswith("--")):
            where = flag if flag.startswith("-") else "an argument"
            raise UsageError(f"{where}: found an empty value; give a value, or leave the flag out for its default")


def command_of(verb: str) -> str:
    """How the user runs a verb of `SCRIPTS`: its script beside the running script of a checkout, else the command."""
    program, (script, *flags) = Path(sys.argv[0]), SCRIPTS[verb].split()
    if program.suffix == ".py" and program.with_name(script).is_file():
        return " ".join(["python", shlex.quote(str(program.with_name(script))), *flags])
    return f"meddinov3-stroke {verb}"


_running: list[str] = []  # words of the command that runs


def words_of_this_command(without: str) -> list[str]:
    """The words of the command that runs, without a flag and its values; none outside a command."""
    words, is_left_out = [], False
    for word in _running:
        is_left_out = word == without or word.startswith(f"{without}=") or (is_left_out and not word.startswith("-"))
        words += [] if is_left_out else [word]
    return words


def this_command(without: str) -> str:
    """The command that runs, as one would type it, without a flag and its values; `the same command` outside one."""
    words = words_of_this_command(without)
    return shlex.join(["python"] * words[:1][0].endswith(".py") + words) if words else "the same command"
