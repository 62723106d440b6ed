"""Stage `download`: the published weights, from the first source that gives them whole."""

from __future__ import annotations

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
    from meddinov3_stroke.download import Download, HubAccess, Limits, Offer, Source


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Fetch published weights, or ask their size.

    Sources are tried in the order MEDDINOV3_URL, MEDDINOV3_HF_REPO, MEDDINOV3_GDRIVE_FILE_ID (environment or .env).
    An interrupted download is resumed; the file is put in place once its sha256 has been verified.
    """

    package: Literal["meddinov3"] = config.DOWNLOAD_PACKAGE
    """Which weights."""
    check_size: bool = False
    """Ask each source for the size and download nothing."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write (default: MEDDINOV3_CKPT_PATH)."""
    sha256: str | None = None
    """Digest the file must have (default: MEDDINOV3_SHA256, else that recorded at the first download)."""
    force: bool = False
    """Download even if the file is there; it and its recorded digest are replaced once the new one is whole."""
    timeout: float = config.DOWNLOAD_TIMEOUT_S
    """Seconds of silence after which a connection is dropped and resumed."""
    retries: int = config.DOWNLOAD_RETRIES
    """Attempts in a row that may bring nothing new before the next source is asked."""
    lock_wait: float = config.DOWNLOAD_LOCK_WAIT_S
    """Seconds to wait for another process that is downloading the same file."""


def run(args: Args) -> Download | list[Offer]:
    """The verified file or, with `--check-size`, what the sources offer; a summary is printed.

    Raises:
        UsageError: flags that cannot be honoured.
        WeightsError: no source gave the weights, or the file that is there is not the expected one.
        MachineError: the disk, or another process's lock.
    """
    from meddinov3_stroke.download import PACKAGES, download_weights, parse_sha256, remote_offers

    limits, settings = _limits(args), config.load_settings()
    sources = _sources(args, settings)
    path = args.output or settings.meddinov3_ckpt_path
    if args.check_size:
        offers = remote_offers(sources, limits)
        _print_offers(offers, path)
        return offers
    pinned = args.sha256 or settings.meddinov3_sha256
    where = "--sha256" if args.sha256 else "MEDDINOV3_SHA256"
    pinned = parse_sha256(pinned, where) if pinned else None
    package = PACKAGES[args.package]
    print(f"{package.licence}\n", flush=True)
    download = download_weights(
        path, sources, package, pinned=pinned, force=args.force, limits=limits, progress=args.show_progress
    )
    _print_download(download)
    return download


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command's exit code."""
    return run_command(Args, run, argv, prog=prog)


def _limits(args: Args) -> Limits:
    from meddinov3_stroke.download import Limits

    for flag, value, sound in (
        ("--timeout", args.timeout, args.timeout > 0),
        ("--retries", args.retries, args.retries >= 0),
        ("--lock-wait", args.lock_wait, args.lock_wait >= 0),
    ):
        if not sound:
            raise UsageError(f"{flag}: found {value}, expected a number that is not negative (and a timeout above 0)")
    return Limits(stall_s=args.timeout, retries=args.retries, lock_wait_s=args.lock_wait)


def _sources(args: Args, settings: config.Settings) -> list[Source]:
    from meddinov3_stroke.download import PACKAGES, configured_sources

    return configured_sources(
        PACKAGES[args.package],
        _hub_access(),
        url=settings.meddinov3_url,
        hf_repo=settings.meddinov3_hf_repo,
        gdrive_file_id=settings.meddinov3_gdrive_file_id,
    )


def _hub_access() -> HubAccess:
    """HF_ENDPOINT, the token and HF_HUB_OFFLINE as huggingface_hub itself reads them."""
    from huggingface_hub import constants, get_token

    from meddinov3_stroke.download import HubAccess

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return HubAccess(constants.ENDPOINT, token, bool(constants.HF_HUB_OFFLINE))


def _print_offers(offers: Sequence[Offer], path: Path) -> None:
    for offer in offers:
        print(f"{offer.source}: {_offered(offer)}")
    sizes = {offer.size for offer in offers if offer.size is not None}
    if len(sizes) > 1:
        import logging

        logging.getLogger("meddinov3_stroke").warning("the sources disagree about the size: %s bytes", sorted(sizes))
    here = f"{path.stat().st_size} bytes" if path.is_file() else "nothing yet"
    print(f"{path}: {here}\nnothing was downloaded\n{DISCLAIMER}")


def _offered(offer: Offer) -> str:
    if offer.problem:
        return f"no answer that can be used: {offer.problem}"
    size = "size not stated" if offer.size is None else f"{offer.size} bytes ({offer.size / (1 << 20):.1f} MiB)"
    return size + (f", sha256 {offer.stated_sha256}" if offer.stated_sha256 else "")


def _print_download(download: Download) -> None:
    from meddinov3_stroke.download import record_path

    how = f"fetched from {download.source}" if download.fetched else "already there, verified"
    print(f"{download.path}: {how}, {download.size} bytes ({download.size / (1 << 20):.1f} MiB)")
    print(f"sha256 {download.sha256} ({download.origin})")
    if record_path(download.path).is_file():
        print(f"recorded in {record_path(download.path)}")
    print(DISCLAIMER)
