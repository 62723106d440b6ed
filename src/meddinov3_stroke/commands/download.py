"""Stage `download`: the published weights, from the first source that has them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from meddinov3_stroke import config
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.provenance import DISCLAIMER

if TYPE_CHECKING:
    from meddinov3_stroke.download import Download, Limits, Offer

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


def run(args: Args) -> Download | list[Offer]:
    """The verified file or, with `--check-size`, what the sources offer; a summary is printed.

    Raises:
        UsageError: a flag or setting is out of range.
        WeightsError: no source gave the weights, or the file that is there is not the expected one.
        MachineError: the disk, or another process's lock.
    """
    from meddinov3_stroke.download import (
        LICENCE,
        FileSource,
        configured_sources,
        download_weights,
        parse_sha256,
        remote_offers,
    )

    settings = config.load_settings()
    limits = _limits(args, settings)
    if settings.unused:
        LOGGER.info("not used: %s", ", ".join(settings.unused))
    sources = [FileSource("file", str(args.from_file))] if args.from_file else configured_sources(settings)
    path = args.output or settings.meddinov3_ckpt_path
    if args.check_size:
        offers = remote_offers(sources, limits)
        _print_offers(offers, path)
        return offers
    given = args.sha256 or settings.meddinov3_sha256
    pinned = parse_sha256(given, "--sha256" if args.sha256 else "MEDDINOV3_SHA256") if given else None
    print(f"{LICENCE}\n", flush=True)
    if not args.show_progress:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    download = download_weights(
        path, sources, pinned=pinned, force=args.force, limits=limits, progress=args.show_progress
    )
    _print_download(download)
    return download


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command's exit code."""
    return run_command(Args, run, argv, prog=prog)


def _limits(args: Args, settings: config.Settings) -> Limits:
    from meddinov3_stroke.download import Limits

    read_s = settings.download_read_timeout if args.timeout is None else args.timeout
    retries = settings.download_retries if args.retries is None else args.retries
    for flag, value, valid in (
        ("--timeout (DOWNLOAD_READ_TIMEOUT)", read_s, read_s > 0),
        ("--retries (DOWNLOAD_RETRIES)", retries, retries >= 0),
        ("--lock-wait", args.lock_wait, args.lock_wait >= 0),
        ("DOWNLOAD_CONNECT_TIMEOUT", settings.download_connect_timeout, settings.download_connect_timeout > 0),
        ("DOWNLOAD_BACKOFF", settings.download_backoff, settings.download_backoff >= 0),
    ):
        if not valid:
            raise UsageError(f"{flag}: found {value}, expected a number of at least 0 (a timeout: above 0)")
    return Limits(settings.download_connect_timeout, read_s, retries, settings.download_backoff, args.lock_wait)


def _print_offers(offers: Sequence[Offer], path: Path) -> None:
    for offer in offers:
        size = "size not stated" if offer.size is None else _bytes(offer.size)
        digest = f", sha256 {offer.stated_sha256}" if offer.stated_sha256 else ""
        print(f"{offer.source}: {f'not available: {offer.problem}' if offer.problem else size + digest}")
    sizes = {offer.size for offer in offers if offer.size is not None}
    if len(sizes) > 1:
        LOGGER.warning("the sources disagree about the size: %s bytes", sorted(sizes))
    print(f"{path}: {f'{path.stat().st_size} bytes' if path.is_file() else 'does not exist'}")
    print(f"nothing was downloaded\n{DISCLAIMER}")


def _print_download(download: Download) -> None:
    from meddinov3_stroke.download import record_path

    how = f"fetched from {download.source}" if download.fetched else "already there, verified"
    print(f"{download.path}: {how}, {_bytes(download.path.stat().st_size)}")
    print(f"sha256 {download.sha256} ({download.origin})")
    if record_path(download.path).is_file():
        print(f"recorded in {record_path(download.path)}")
    print(DISCLAIMER)


def _bytes(size: int) -> str:
    return f"{size} bytes ({size / (1 << 20):.1f} MiB)"
