"""Slices and similarity maps as PNG; the room that needs matplotlib."""

from meddinov3_stroke.pictures.picture_of_case import case_picture
from meddinov3_stroke.pictures.picture_of_slice import SliceMap, slice_picture
from meddinov3_stroke.pictures.style import SIMILARITY_RANGE, WINDOW_CENTER, WINDOW_WIDTH

__all__ = ["SIMILARITY_RANGE", "WINDOW_CENTER", "WINDOW_WIDTH", "SliceMap", "case_picture", "slice_picture"]
