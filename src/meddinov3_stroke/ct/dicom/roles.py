"""What an image is for: a slice of a CT volume, or something that only travels with it (localizer, capture, report)."""

from __future__ import annotations

from meddinov3_stroke.ct.dicom.header import ImageHeader

CT_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT Image Storage",
}
"""SOP classes of CT (DICOM PS3.4 B.5); a header as bare as RSNA's names none."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary capture, and beginning of its multi-frame kinds."""

LOCALIZER_TYPES = frozenset({"LOCALIZER", "SCOUT", "SURVIEW", "REF_SURVIEW", "TOPOGRAM"})
"""Image Type of an overview: value 3 is LOCALIZER in DICOM (C.8.2.1.1.1), the others are vendors' words."""

REPORT_TYPES = frozenset({"PATIENT_INFO", "DOSE_INFO", "RESULTS", "SCREEN SAVE", "SCREENSAVE", "DOSE", "REPORT"})
"""Image Type of a picture of text."""

GREY = frozenset({"MONOCHROME2", "MONOCHROME1"})


def role_fault(image: ImageHeader) -> str:
    """Why the image is no slice of a CT volume; empty where it is one."""
    if not image.has_pixel_data:
        return "no image, a document or another object"
    if image.modality != "CT":
        return f"modality {image.modality or 'not stated'}, not CT"
    if image.pixels.samples_per_pixel != 1 or image.pixels.photometric_interpretation not in GREY:
        return f"a colour picture ({image.pixels.photometric_interpretation})"
    if image.sop_class_uid.startswith(SECONDARY_CAPTURE):
        return "a secondary capture"
    if LOCALIZER_TYPES & set(image.image_type):
        return "a localizer"
    if REPORT_TYPES & set(image.image_type):
        return "a picture of a report"
    if image.sop_class_uid and image.sop_class_uid not in CT_IMAGES:
        return f"SOP class {image.sop_class_uid}, not CT"
    if image.pixels.n_frames > 1 and image.frame is None:
        return "a multi-frame object that does not say where its frames lie"
    if not image.is_placed:
        return image.geometry_fault
    return ""
