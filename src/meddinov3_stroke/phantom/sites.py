"""Where haemorrhages occur, how large they get there, and one drawn from these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meddinov3_stroke.phantom.solids import Number, Vector

VOLUME_RANGE_ML: dict[str, tuple[float, float]] = {
    "epidural": (0.4, 60.0),
    "intraparenchymal": (0.4, 60.0),
    "intraventricular": (0.4, 15.0),
    "subarachnoid": (0.4, 30.0),
    "subdural": (0.4, 60.0),
}
"""Volumes drawn (log-uniform) in mL; ventricles and sulci hold less than the rest. A third lies below 2 mL."""


@dataclass(frozen=True)
class LesionSpec:
    """One haemorrhage to put in."""

    label: str
    """One of the five types."""
    volume_ml: float
    """Target; the mask comes out within 25 % of it unless the space at `site` is smaller."""
    hu: float
    site: str
    centre_mm: Vector
    """Head coordinates of its middle; of a haemorrhage against the skull, a point on the ray through its middle."""
    elongation: Vector
    """Relative half-axes (x, y, z), product 1."""
    edge_mm: float
    """Width over which it fades into the tissue around it; blood in sulci ends at their walls."""
    oedema_mm: float
    """Rim of oedema around an intraparenchymal haemorrhage; 0 for the other types."""


@dataclass(frozen=True)
class Site:
    """A place where a type of haemorrhage occurs."""

    name: str
    centre_mm: Vector
    """On the patient's right; mirrored for the left."""
    max_ml: Number
    weight: Number
    scatter_mm: Number = 5


SITES: dict[str, tuple[Site, ...]] = {
    "epidural": (
        Site("temporal", (66, 8, -4), 60, 4, 7),
        Site("parietal", (55, -35, 35), 60, 3, 7),
        Site("frontal", (45, 58, 14), 60, 2, 7),
        Site("occipital", (36, -70, 12), 30, 1, 5),
    ),
    "intraparenchymal": (
        Site("putamen", (27, 2, 4), 60, 4),
        Site("thalamus", (14, -14, 7), 15, 2, 3),
        Site("frontal lobe", (30, 42, 24), 60, 2),
        Site("parietal lobe", (32, -34, 36), 60, 2),
        Site("temporal lobe", (45, -4, -14), 40, 1),
        Site("occipital lobe", (24, -60, 10), 30, 1),
        Site("cerebellum", (22, -48, -36), 20, 1, 3),
        Site("pons", (1, -12, -32), 3, 0.6, 2),
    ),
    "intraventricular": (
        Site("layering in both occipital horns", (0, -60, 4), 15, 3, 0),
        Site("layering in one occipital horn", (24, -60, 4), 6, 2, 0),
        Site("cast of one lateral ventricle", (10, 18, 12), 12, 2, 3),
        Site("third ventricle", (0, -4, 2), 2, 1, 2),
        Site("fourth ventricle", (0, -32, -36), 2, 1, 1),
    ),
    "subarachnoid": (
        Site("basal cisterns", (3, 10, -20), 30, 3, 2),
        Site("Sylvian fissure", (44, 8, -6), 20, 2, 4),
        Site("convexity", (46, -12, 42), 15, 3, 10),
        Site("frontal convexity", (30, 58, 26), 15, 1, 8),
        Site("interhemispheric fissure", (0, 46, 18), 8, 1, 4),
    ),
    "subdural": (
        Site("convexity", (62, 4, 24), 60, 7, 9),
        Site("falx", (0, 30, 40), 6, 1, 12),
        Site("tentorium", (26, -42, -6), 6, 1, 4),
    ),
}
"""Places in an adult brain of average size, the largest volume each takes, and how often."""


def draw_lesion(random: np.random.Generator, label: str, volume_ml: Number) -> LesionSpec:
    """A haemorrhage of the given type and volume at a place that can hold it."""
    site = _draw_site(random, label, volume_ml)
    side = -1.0 if random.random() < 0.5 else 1.0
    x, y, z = np.asarray(site.centre_mm) + random.normal(0, site.scatter_mm / 2, 3)
    elongation = np.exp(random.normal([-0.05, 0.12, -0.05], 0.12))
    elongation /= np.prod(elongation) ** (1 / 3)
    edge_mm = float(random.uniform(1.0, 2.0))
    return LesionSpec(
        label=label,
        volume_ml=float(volume_ml),
        hu=float(random.uniform(58, 76)),
        site=site.name,
        centre_mm=(float(side * x), float(y), float(z)),
        elongation=(float(elongation[0]), float(elongation[1]), float(elongation[2])),
        edge_mm=0.2 if label == "subarachnoid" else edge_mm,
        oedema_mm=float(random.uniform(1.5, 5.0)) if label == "intraparenchymal" else 0.0,
    )


def _draw_site(random: np.random.Generator, label: str, volume_ml: Number) -> Site:
    sites = SITES[label]
    largest = max(site.max_ml for site in sites)
    fitting = [site for site in sites if site.max_ml >= min(volume_ml, largest)]
    weights = np.array([site.weight for site in fitting])
    return fitting[int(random.choice(len(fitting), p=weights / weights.sum()))]
