"""Seeded synthetic non-contrast head CT with haemorrhages and masks. Invented anatomy: no patient's data is in it."""

from meddinov3_stroke.phantom.head import Phantom, make_phantom
from meddinov3_stroke.phantom.spec import HeadSpec, PhantomSpec, count_series, draw_cohort, draw_spec
from meddinov3_stroke.phantom.writing import CohortManifest, write_cohort

__all__ = [
    "CohortManifest",
    "HeadSpec",
    "Phantom",
    "PhantomSpec",
    "count_series",
    "draw_cohort",
    "draw_spec",
    "make_phantom",
    "write_cohort",
]
