"""Stage `download`: the published weights, from the first source that has them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from meddinov3_stroke import config, download
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.system.atomic import require_writable
from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.provenance import ending

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Download published weights, or query their size.

    Sources are tried in the order MEDDINOV3_URL, MEDDINOV3_HF_REPO, MEDDINOV3_GDRIVE_FILE_ID (environment or .env).
    The file is put in place once its sha256 has been verified.
    """

    package: tyro.conf.UseAppendAction[tuple[Literal["meddinov3"], ...]] = ()
    """Which weights: meddinov3, the default and the only choice. May be repeated."""
    check_size: bool = False
    """Query the size from each source without downloading."""
    from_file: Path | None = None
    """Take this file, fetched by other means: it is verified, recorded and copied into place."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write (default: MEDDINOV3_CKPT_PATH)."""
    sha256: str | None = None
    """Digest the file must have (default: MEDDINOV3_SHA256, else the one recorded at the first download)."""
    force: bool = False
    """Download even if the file exists; it and its recorded digest are replaced once the new one is complete."""
    timeout: float | None = None
    """Seconds of silence after which a connection is dropped and resumed (default: DOWNLOAD_READ_TIMEOUT, else 30)."""
    retries: int | None = None
    """Retries before the next source is tried (default: DOWNLOAD_RETRIES, else 3)."""
    lock_wait: float = config.DOWNLOAD_LOCK_WAIT_S
    """Seconds to wait for another process that is downloading the same file."""


def run(args: Args) -> download.Download | list[download.Offer]:
    """The verified file or, with `--check-size`, what the sources offer; a summary is printed."""
    settings = config.load_settings()
    limits = _limits(args, settings)
    if settings.unused:
        LOGGER.info("not used: %s", ", ".join(settings.unused))
    path = args.output or settings.meddinov3_ckpt_path
    given_file = [download.Source("file", str(args.from_file), "file")] if args.from_file else []
    sources = given_file or download.configured_sources(settings)
    if args.check_size:
        offers = download.remote_offers(sources, limits)
        _print_offers(offers, path)
        return offers
    given = args.sha256 or settings.meddinov3_sha256
    pinned = download.parse_sha256(given, "--sha256" if args.sha256 else "MEDDINOV3_SHA256") if given else None
    require_writable(path.parent)
    print(f"{download.LICENCE}\n", flush=True)
    found = download.download_weights(
        path, sources, pinned=pinned, force=args.force, limits=limits, progress=args.show_progress
    )
    how = f"fetched from {found.source}" if found.fetched else "already there, verified"
    print(f"{path}: {how}, {_bytes(path.stat().st_size)}\nsha256 {found.sha256} ({found.origin})")
    if download.record_path(path).is_file():
        print(f"recorded in {download.record_path(path)}")
    print(ending(how, path))
    return found


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command's exit code."""
    return run_command(Args, run, argv, prog=prog)


def _limits(args: Args, settings: config.Settings) -> download.Limits:
    read_s = settings.download_read_timeout if args.timeout is None else args.timeout
    retries = settings.download_retries if args.retries is None else args.retries
    connect_s, backoff_s = settings.download_connect_timeout, settings.download_backoff
    for flag, value, valid in (
        ("--timeout (DOWNLOAD_READ_TIMEOUT)", read_s, read_s > 0),
        ("--retries (DOWNLOAD_RETRIES)", retries, retries >= 0),
        ("--lock-wait", args.lock_wait, args.lock_wait >= 0),
        ("DOWNLOAD_CONNECT_TIMEOUT", connect_s, connect_s > 0),
        ("DOWNLOAD_BACKOFF", backoff_s, backoff_s >= 0),
    ):
        if not valid:
            raise UsageError(f"{flag}: found {value}, expected a number of at least 0 (a timeout: above 0)")
    return download.Limits(connect_s, read_s, retries, backoff_s, args.lock_wait)


def _print_offers(offers: Sequence[download.Offer], path: Path) -> None:
    for offer in offers:
        size = "size not stated" if offer.size is None else _bytes(offer.size)
        digest = f", sha256 {offer.stated_sha256}" if offer.stated_sha256 else ""
        print(f"{offer.source}: {f'not available: {offer.problem}' if offer.problem else size + digest}")
    sizes = {offer.size for offer in offers if offer.size is not None}
    if len(sizes) > 1:
        LOGGER.warning("the sources disagree about the size: %s bytes", sorted(sizes))
    state = f"{path.stat().st_size} bytes" if path.is_file() else "does not exist"
    print(ending("nothing was downloaded", f"{path}: {state}"))


def _bytes(size: int) -> str:
    return f"{size} bytes ({size / (1 << 20):.1f} MiB)"
