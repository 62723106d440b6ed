"""Runs a stage (`Args`, `run`) as a command: parses flags, reports an error in one line, returns the exit code."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from meddinov3_stroke.errors import MedDINOError
from meddinov3_stroke.system.progress import write_message

LOGGER = logging.getLogger("meddinov3_stroke")
BUG_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """Flags every command has."""

    quiet: bool = False
    """Print warnings and errors only."""
    json_log: bool = False
    """Write messages to standard error as one JSON object per line."""
    debug: bool = False
    """Print the traceback of an error, and what libraries log and warn of."""

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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no path or sign ends a command whose work is done
    try:
        options = args = tyro.cli(args_type, args=argv, prog=prog)  # defaults from the environment may be wrong, too
        set_up_logging(args)
        with libraries_at_debug():
            run(args)
    except MedDINOError as error:
        return _report(error.code, str(error), error.exit_code, options)
    except KeyboardInterrupt:
        return _report("E-INTERRUPTED", "interrupted; finished work is kept", INTERRUPTED_EXIT_CODE, options)
    except Exception as error:
        message = f"internal error: {type(error).__name__}: {error}; run again with --debug and report the output"
        return _report("E-BUG", message, BUG_EXIT_CODE, options)
    return 0


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
        fields = {"time": stamp, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(fields, ensure_ascii=False)
