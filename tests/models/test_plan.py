"""What a plan knows before a tensor is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from meddinov3_stroke.errors import MissingWeights, WeightsError, WeightsMismatch
from meddinov3_stroke.models import (
    LEAST_AUTO_COSINE,
    BackbonePlan,
    Calibration,
    WeightsFacts,
    calibration_folder,
    plan,
    plan_backbone,
    write_calibration,
)
from meddinov3_stroke.system import execution
from meddinov3_stroke.system.digest import sha256_of_file

MakeCalibration = Callable[..., Calibration]


@pytest.fixture
def bf16_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bf16."""
    for module in (execution, plan):
        monkeypatch.setattr(module, "bf16_flag", lambda: "avx512_bf16")


def int8_plan(path: Path, facts: WeightsFacts, accept_int8: bool = False) -> BackbonePlan:
    """An int8 plan for a weights file that was read before."""
    made = plan_backbone(path, precision="int8", device="cpu", accept_int8=accept_int8)
    made.records.keep_facts(made.file_sha256, facts)
    return made


def auto_plan(path: Path, engine: str = "torch") -> BackbonePlan:
    return plan_backbone(path, engine=engine, device="cpu")


def calibrate(made: BackbonePlan, calibration: Calibration, weights_sha256: str) -> None:
    write_calibration(made.calibration_folder(weights_sha256), calibration)


def test_the_identity_is_known_once_the_facts_are(weights_file: Path, facts: WeightsFacts) -> None:
    made = plan_backbone(weights_file, engine="torch", precision="fp32", device="cpu")
    assert made.known_identity() is None
    made.records.keep_facts(sha256_of_file(weights_file), facts)
    assert made.known_identity() == facts.identity("model.pth", "torch", "fp32")


def test_other_bytes_are_not_known_by_the_facts_of_the_first(weights_file: Path, facts: WeightsFacts) -> None:
    first = plan_backbone(weights_file, engine="torch", precision="fp32", device="cpu")
    first.records.keep_facts(first.file_sha256, facts)
    weights_file.write_bytes(b"Weights")
    assert plan_backbone(weights_file, engine="torch", precision="fp32", device="cpu").known_identity() is None


@pytest.mark.usefixtures("bf16_cpu")
@pytest.mark.parametrize(
    ("cosine", "precision"), [(LEAST_AUTO_COSINE, "bf16"), (0.99989, "fp32"), (float("nan"), "fp32")]
)
def test_auto_takes_bf16_from_the_least_cosine_on(weights_file: Path, cosine: float, precision: str) -> None:
    assert auto_plan(weights_file).precision_at(cosine) == precision


@pytest.mark.usefixtures("bf16_cpu")
@pytest.mark.parametrize(("cosine", "precision"), [(0.99995, "bf16"), (0.98, "fp32")])
def test_auto_is_settled_by_the_fidelity_on_record(
    weights_file: Path, facts: WeightsFacts, cosine: float, precision: str
) -> None:
    made = auto_plan(weights_file)
    made.records.keep_facts(made.file_sha256, facts)
    assert made.known_identity() is None
    assert made.fidelity_way is not None
    made.records.keep_fidelity(facts.weights_sha256, made.fidelity_way, cosine)
    identity = auto_plan(weights_file).known_identity()
    assert identity is not None
    assert identity.precision == precision


@pytest.mark.usefixtures("bf16_cpu")
def test_the_way_of_a_fidelity_names_engine_version_precision_and_instructions(
    weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {auto_plan(weights_file, engine).fidelity_way for engine in ("torch", "openvino")}
    monkeypatch.setattr(plan, "version", lambda package: "9.9+local")
    newer = auto_plan(weights_file).fidelity_way
    assert newer == "torch-9.9_local-bf16-avx512_bf16"
    monkeypatch.setattr(plan, "bf16_flag", lambda: "amx_bf16")
    assert len(ways | {newer, auto_plan(weights_file).fidelity_way}) == 4


@pytest.mark.usefixtures("bf16_cpu")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_was_asked_for_has_no_fidelity_to_measure(weights_file: Path, precision: str) -> None:
    made = plan_backbone(weights_file, engine="torch", precision=precision, device="cpu")
    assert made.fidelity_way is None


def test_int8_without_a_calibration_names_the_command_that_makes_one(weights_file: Path, facts: WeightsFacts) -> None:
    with pytest.raises(WeightsError, match=r"no int8 calibration of model\.pth.*meddinov3-stroke calibrate") as caught:
        int8_plan(weights_file, facts).known_identity()
    assert caught.value.exit_code == 6


def test_int8_of_a_registered_name_without_a_models_folder_names_the_command(facts: WeightsFacts) -> None:
    made = plan_backbone("demo", precision="int8", device="cpu")
    assert made.folder is None
    with pytest.raises(WeightsError, match="meddinov3-stroke calibrate"):
        made.calibration(facts.weights_sha256)


def test_a_faithful_calibration_is_in_the_identity_and_its_measure_in_the_warnings(
    weights_file: Path, facts: WeightsFacts, calibration_with: MakeCalibration
) -> None:
    made = int8_plan(weights_file, facts)
    calibrate(made, calibration_with(), facts.weights_sha256)
    identity = made.known_identity()
    assert identity == facts.identity("model.pth", "openvino", "int8", "cd" * 32)
    assert made.warnings(identity) == (
        "int8 backbone: CLS cosine to fp32 at least 0.99920, mean 0.99960, on 16 held-out slices",
    )


def test_a_low_cosine_is_refused_and_accepted_only_by_hand_which_the_outputs_say(
    weights_file: Path, facts: WeightsFacts, calibration_with: MakeCalibration
) -> None:
    refused, accepted = int8_plan(weights_file, facts), int8_plan(weights_file, facts, accept_int8=True)
    calibrate(refused, calibration_with(cls_cosine_min=0.95), facts.weights_sha256)
    with pytest.raises(WeightsError, match=r"only 0\.95000 at worst.*expected at least 0\.999.*--accept-int8"):
        refused.known_identity()
    identity = accepted.known_identity()
    assert identity is not None
    (said,) = accepted.warnings(identity)
    assert "at least 0.95000" in said
    assert "below 0.999 and was accepted by hand" in said


def test_accepting_int8_says_nothing_of_hands_where_the_cosine_is_good(
    weights_file: Path, facts: WeightsFacts, calibration_with: MakeCalibration
) -> None:
    made = int8_plan(weights_file, facts, accept_int8=True)
    calibrate(made, calibration_with(), facts.weights_sha256)
    identity = made.known_identity()
    assert identity is not None
    assert "by hand" not in made.warnings(identity)[0]


@pytest.mark.parametrize("accept_int8", [False, True])
def test_a_calibration_of_other_weights_is_refused(
    weights_file: Path, facts: WeightsFacts, calibration_with: MakeCalibration, accept_int8: bool
) -> None:
    made = int8_plan(weights_file, facts, accept_int8)
    calibrate(made, calibration_with(weights_sha256="ba" * 32), facts.weights_sha256)
    with pytest.raises(WeightsMismatch, match="is of weights babababababa, expected abababababab; calibrate again"):
        made.known_identity()


def test_other_precisions_have_nothing_to_warn_of(weights_file: Path, facts: WeightsFacts) -> None:
    made = plan_backbone(weights_file, engine="torch", precision="fp32", device="cpu")
    assert made.warnings(facts.identity("model.pth", "torch", "fp32")) == ()


def test_records_lie_beside_the_weights_or_in_the_models_folder(weights_file: Path, tmp_path: Path) -> None:
    assert plan_backbone(weights_file, device="cpu").folder == weights_file.parent / "engine_cache"
    models = tmp_path / "models"
    assert plan_backbone(weights_file, device="cpu", models_dir=models).folder == models / "engine_cache"
    assert plan_backbone("demo", device="cpu", models_dir=models).folder == models / "engine_cache"
    assert calibration_folder(models, "ab" * 32).parent == models / "int8"


def test_weights_that_are_not_there_are_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="fetch them with"):
        plan_backbone(tmp_path / "model.pth", device="cpu")


def test_a_folder_in_the_place_of_weights_is_planned_and_left_to_the_reader(tmp_path: Path) -> None:
    assert plan_backbone(tmp_path, device="cpu").file_sha256 == ""
