"""What the sources say they have, without fetching it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from meddinov3_stroke.download.answers import ask, make_client, read_head
from meddinov3_stroke.download.contents import HEAD_BYTES, refuse_impostor
from meddinov3_stroke.download.failures import SourceFailed, no_source_left
from meddinov3_stroke.download.limits import Limits
from meddinov3_stroke.download.sources import Source


@dataclass(frozen=True)
class Offer:
    """What a source says it has, or why it has nothing."""

    source: Source
    size: int | None = None
    """Bytes; None where the source does not say."""
    stated_sha256: str | None = None
    """Digest that Hugging Face states of the file."""
    problem: str | None = None


def remote_offers(sources: Sequence[Source], limits: Limits | None = None) -> list[Offer]:
    """What each source says of its file; only the first bytes are looked at, and nothing is kept.

    Raises:
        DownloadError: no source is configured, or none answers with weights.
    """
    limits = limits or Limits()
    with make_client(limits) as client:
        offers = [_offer(client, source, limits) for source in sources]
    if all(offer.problem for offer in offers):
        raise no_source_left([f"{offer.source}: {offer.problem}" for offer in offers])
    return offers


def _offer(client: httpx.Client, source: Source, limits: Limits) -> Offer:
    if source.skipped:
        return Offer(source, problem=source.skipped)
    try:
        with ask(client, source, {"Range": f"bytes=0-{HEAD_BYTES - 1}"}, limits) as answer:
            refuse_impostor(read_head(answer.response.iter_raw()))
            return Offer(source, answer.total, answer.stated_sha256)
    except SourceFailed as failure:
        return Offer(source, problem=str(failure))
