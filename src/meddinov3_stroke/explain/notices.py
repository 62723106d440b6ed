"""The notice for a backbone that only demonstrates."""

from __future__ import annotations

from meddinov3_stroke.types import BackboneIdentity

DEMO_NOTICE = "demonstration backbone: trained on synthetic phantoms, says nothing about patients"
"""In every output made with the bundled backbone."""


def is_demo(identity: BackboneIdentity) -> bool:
    """Whether a backbone is the bundled one (registered name `demo`)."""
    return identity.name == "demo"


def demo_warnings(identity: BackboneIdentity) -> tuple[str, ...]:
    """`DEMO_NOTICE` for the bundled backbone, nothing for any other."""
    return (DEMO_NOTICE,) if is_demo(identity) else ()
