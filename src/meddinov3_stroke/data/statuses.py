"""The words for what becomes of a file, an image, a series or a case."""

from __future__ import annotations

USABLE = "usable"
"""A series or case that is a row of the table; every other status is one that is not, with its reason."""

SLICE = "slice"
"""An image that is a slice of its series' volume."""

SET_ASIDE = "set aside"
"""Sound, but no slice of a head CT, or not of the volume that is read."""

REFUSED = "refused"
"""Readable, but not to be trusted or out of scope."""

REJECTED = "rejected"
"""Damaged or unsupported."""

FAILED = "failed"
"""Not given by the machine this time; asked for again by the next run."""

UNLABELLED, EXCLUDED = "unlabelled", "excluded"
"""A slice without a label, so that the maximum is not known; left out by a list of IDs."""
