from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from meddinov3_stroke.errors import CheckpointError
from meddinov3_stroke.heads import HeadCheckpoint, check_backbone, identity_from_document
from meddinov3_stroke.types import BackboneIdentity


def test_the_training_backbone_passes_without_a_warning(checkpoint: HeadCheckpoint, identity: BackboneIdentity) -> None:
    assert check_backbone(checkpoint, identity, 224) == []


def test_another_name_for_the_same_weights_passes(checkpoint: HeadCheckpoint, identity: BackboneIdentity) -> None:
    assert check_backbone(checkpoint, replace(identity, name="renamed.pth"), 224) == []


@pytest.mark.parametrize(
    ("field", "value"), [("weights_sha256", "cd" * 32), ("patch_size", 14), ("rope_dtype", "fp32"), ("embed_dim", 16)]
)
def test_another_backbone_is_refused_with_expected_and_found(
    checkpoint: HeadCheckpoint, identity: BackboneIdentity, field: str, value: object
) -> None:
    name = "input_dim" if field == "embed_dim" else field
    with pytest.raises(CheckpointError, match=rf"{name}: expected .*, found {value}"):
        check_backbone(checkpoint, replace(identity, **{field: value}), 224)


def test_other_preprocessing_is_refused(checkpoint: HeadCheckpoint, identity: BackboneIdentity) -> None:
    other = replace(identity, preprocessing=replace(identity.preprocessing, mean=0.0))
    with pytest.raises(CheckpointError, match="preprocessing: expected"):
        check_backbone(checkpoint, other, 224)


def test_another_resize_is_refused(checkpoint: HeadCheckpoint, identity: BackboneIdentity) -> None:
    with pytest.raises(CheckpointError, match="resize: expected 224, found 512"):
        check_backbone(checkpoint, identity, 512)


def test_all_faults_are_listed_at_once(checkpoint: HeadCheckpoint, identity: BackboneIdentity) -> None:
    with pytest.raises(CheckpointError, match=r"resize: .*weights_sha256: "):
        check_backbone(checkpoint, replace(identity, weights_sha256="00"), 512)


@pytest.mark.parametrize(("field", "value"), [("engine", "openvino"), ("precision", "bf16")])
def test_another_engine_or_precision_is_a_warning(
    checkpoint: HeadCheckpoint, identity: BackboneIdentity, field: str, value: str
) -> None:
    (warning,) = check_backbone(checkpoint, replace(identity, **{field: value}), 224)
    assert f"{field}: expected" in warning
    assert value in warning


def test_a_head_of_unknown_origin_is_a_warning(checkpoint: HeadCheckpoint, identity: BackboneIdentity) -> None:
    unknown = replace(checkpoint, backbone=None, resize=None, pool_mode="unknown")
    assert len(check_backbone(unknown, identity, 224)) == 3


def test_unknown_resize_of_the_embeddings_is_a_warning(checkpoint: HeadCheckpoint, identity: BackboneIdentity) -> None:
    assert check_backbone(checkpoint, identity, None) == ["the --resize of these embeddings is unknown"]


def test_mean_max_needs_twice_the_embedding(checkpoint: HeadCheckpoint, identity: BackboneIdentity) -> None:
    twice = replace(checkpoint, pool_mode="mean_max", input_dim=16)
    assert check_backbone(twice, identity, 224) == []
    with pytest.raises(CheckpointError, match="input_dim: expected 8, found 16"):
        check_backbone(replace(twice, input_dim=8), identity, 224)


def test_unknown_pooling_allows_one_or_two_embeddings_only(
    checkpoint: HeadCheckpoint, identity: BackboneIdentity
) -> None:
    unknown = replace(checkpoint, pool_mode="unknown")
    for input_dim in (8, 16):
        check_backbone(replace(unknown, input_dim=input_dim), identity, 224)
    with pytest.raises(CheckpointError, match="input_dim: expected 24, found 8 or 16"):
        check_backbone(replace(unknown, input_dim=24), identity, 224)


def test_identity_survives_its_document(identity: BackboneIdentity) -> None:
    assert identity_from_document(asdict(identity) | {"later_key": 1}) == identity


def test_missing_keys_of_an_identity_are_named(identity: BackboneIdentity) -> None:
    document = asdict(identity)
    del document["engine"], document["rope_dtype"]
    with pytest.raises(ValueError, match="lacks rope_dtype, engine"):
        identity_from_document(document)


def test_keys_of_an_identity_with_values_of_another_type_are_named(identity: BackboneIdentity) -> None:
    with pytest.raises(ValueError, match="no usable embed_dim"):
        identity_from_document(asdict(identity) | {"embed_dim": "8"})
    with pytest.raises(ValueError, match="lacks hu_min"):
        identity_from_document(asdict(identity) | {"preprocessing": {}})


def test_a_head_of_another_implementation_is_refused_with_the_way_out(
    checkpoint: HeadCheckpoint, identity: BackboneIdentity
) -> None:
    with pytest.raises(CheckpointError, match=r"transposed.*without antialiasing.*meddinov3-stroke train-rsna"):
        check_backbone(replace(checkpoint, is_foreign=True), identity, 224)
