"""Fetching published weights: sources in order, resumed, verified, locked."""

from meddinov3_stroke.download.limits import Limits
from meddinov3_stroke.download.offers import Offer, remote_offers
from meddinov3_stroke.download.packages import MEDDINOV3, PACKAGES, Package
from meddinov3_stroke.download.record import parse_sha256, record_path, verify_recorded
from meddinov3_stroke.download.sources import HubAccess, Source, configured_sources
from meddinov3_stroke.download.weights import Download, download_weights

__all__ = [
    "MEDDINOV3",
    "PACKAGES",
    "Download",
    "HubAccess",
    "Limits",
    "Offer",
    "Package",
    "Source",
    "configured_sources",
    "download_weights",
    "parse_sha256",
    "record_path",
    "remote_offers",
    "verify_recorded",
]
