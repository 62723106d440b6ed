"""Where slice embeddings came from, as JSON: file, weights, preprocessing, machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from meddinov3_stroke.types import SliceEmbeddings, VolumeSource


def origin_document(embeddings: SliceEmbeddings, device: str) -> dict[str, Any]:
    """Input, slices, backbone, preprocessing, engine, precision and device (INTERFACES 5)."""
    backbone = embeddings.backbone
    return {
        "input": str(embeddings.source.path),
        "input_format": embeddings.source.format,
        "input_sha256": embeddings.source.sha256,
        "pixels_sha256": embeddings.source.pixels_sha256,
        "dicom": dicom_document(embeddings.source),
        "n_slices": embeddings.n_slices,
        "n_slices_embedded": len(embeddings.slice_indices),
        "embedding_dim": int(embeddings.cls.shape[1]),
        "selection": asdict(embeddings.selection),
        "resize": embeddings.resize,
        "backbone": asdict(backbone),
        "weights_sha256": backbone.weights_sha256,
        "preprocessing": asdict(backbone.preprocessing),
        "preprocessing_version": backbone.preprocessing.version,
        "engine": backbone.engine,
        "precision": backbone.precision,
        "device": device,
    }


def dicom_document(source: VolumeSource) -> dict[str, Any] | None:
    """Study, series and the image of each canonical slice, so that a finding can be pointed back to it; None for NIfTI.

    `frame_numbers` (1-based) are there for a multi-frame object alone.
    """
    if not source.images:
        return None
    frames = [image.frame_number for image in source.images]
    return {
        "study_instance_uid": source.study_instance_uid,
        "series_instance_uid": source.series_instance_uid,
        "sop_instance_uids": [image.sop_instance_uid for image in source.images],
        "frame_numbers": frames if any(frame is not None for frame in frames) else None,
    }
