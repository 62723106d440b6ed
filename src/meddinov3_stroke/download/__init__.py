"""Fetching published weights: sources in order, resumed, verified, one process at a time."""

from meddinov3_stroke.download.sources import Limits, Offer, Source, configured_sources
from meddinov3_stroke.download.weights import (
    LICENCE,
    Download,
    download_weights,
    parse_sha256,
    record_path,
    remote_offers,
)

__all__ = [
    "LICENCE",
    "Download",
    "Limits",
    "Offer",
    "Source",
    "configured_sources",
    "download_weights",
    "parse_sha256",
    "record_path",
    "remote_offers",
]
