"""From a stage (`Args`, `run`) to a command: parse, run, one line and an exit code when it goes wrong."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from meddinov3_stroke.errors import MedDINOError

LOGGER = logging.getLogger("meddinov3_stroke")
BUG_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """Flags every command has."""

    quiet: bool = False
    """No progress and no messages but warnings and errors."""
    json_log: bool = False
    """Messages on standard error as one JSON object a line."""
    debug: bool = False
    """Print the traceback when something goes wrong."""

    @property
    def show_progress(self) -> bool:
        """Whether bars are wanted."""
        return not (self.quiet or self.json_log)


ArgsT = TypeVar("ArgsT", bound=ConsoleOptions)


def run_command(
    args_type: type[ArgsT], run: Callable[[ArgsT], Any], argv: Sequence[str] | None = None, prog: str | None = None
) -> int:
    """The exit code of a stage run from the command line; usage errors exit with 2 from the parser itself."""
    import tyro

    args = tyro.cli(args_type, args=argv, prog=prog)
    set_up_logging(args)
    try:
        run(args)
    except MedDINOError as error:
        return _report(error.code, str(error), error.exit_code, args)
    except KeyboardInterrupt:
        return _report("E-INTERRUPTED", "stopped by the user; what was finished is kept", INTERRUPTED_EXIT_CODE, args)
    except Exception as error:
        message = f"a bug of ours: {type(error).__name__}: {error}; run again with --debug and report what it prints"
        return _report("E-BUG", message, BUG_EXIT_CODE, args)
    return 0


def _report(code: str, message: str, exit_code: int, args: ConsoleOptions) -> int:
    if args.debug:
        traceback.print_exc()
    LOGGER.error("%s: %s", code, " ".join(message.split()))
    return exit_code


def set_up_logging(options: ConsoleOptions) -> None:
    """Send this package's messages to standard error: warnings always, the rest unless `--quiet`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if options.json_log else _PlainLines())
    LOGGER.handlers = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.WARNING if options.quiet else logging.INFO)


class _PlainLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        return prefix + record.getMessage()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        fields = {"time": stamp, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(fields, ensure_ascii=False)
