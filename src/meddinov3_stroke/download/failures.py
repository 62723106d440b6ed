"""Why a source did not give the file; caught inside this room and told together when no source is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meddinov3_stroke.errors import DownloadError


class SourceFailed(DownloadError):
    """One source, or one attempt at it, failed."""

    def __init__(self, reason: str, *, retryable: bool = False, wait_s: float = 0.0, spoiled: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable
        """Whether asking the same source again may help."""
        self.wait_s = wait_s
        """Seconds the server asks to be left alone."""
        self.spoiled = spoiled
        """Whether the bytes held so far must not be built upon."""


def no_source_left(reasons: Sequence[str], path: Path | None = None) -> DownloadError:
    """The error for a list of sources none of which gave the file; `reasons` has a line for each."""
    if not reasons:
        return DownloadError(
            "no source of weights is configured; found none, expected at least one of MEDDINOV3_URL, "
            "MEDDINOV3_HF_REPO, MEDDINOV3_GDRIVE_FILE_ID; set it in .env"
        )
    kept = f"{path} was left as it was; " if path is not None and path.exists() else ""
    return DownloadError(
        f"no source gave the weights; tried {'; '.join(reasons)}; {kept}check the network and the sources in .env "
        "and run again (what arrived is resumed), or put the file in place by hand"
    )
