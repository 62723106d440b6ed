"""The demo's parts that a run of it does not show."""

from __future__ import annotations

import ast
from importlib.resources import files
from pathlib import Path

import pytest

from meddinov3_stroke import config
from meddinov3_stroke.backbone import load_backbone
from meddinov3_stroke.commands import demo
from meddinov3_stroke.errors import DatasetError
from meddinov3_stroke.phantom import draw_cohort

ROOT = Path(__file__).resolve().parents[2]


def training_seeds() -> range:
    """The seeds the bundled backbone was trained on, read off its training script."""
    values = {}
    for node in ast.walk(ast.parse((ROOT / "tools" / "train_demo_backbone.py").read_text())):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            values[ast.unparse(target)] = node.value.value
    return range(values["FIRST_TRAINING_SEED"], values["FIRST_TRAINING_SEED"] + values["volumes"])


def test_too_few_patients_to_hold_out_sixty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="give 200"):
        demo.run(demo.Args(output_dir=tmp_path, patients=199, quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_no_head_of_the_demo_cohort_was_seen_in_training() -> None:
    cohort = draw_cohort(config.DEMO_PATIENTS, config.SEED)
    seeds = {study.spec.head.seed for patient in cohort for study in patient.studies}
    seeds |= {study.spec.seed for patient in cohort for study in patient.studies}
    seen = training_seeds()
    assert len(seen) >= 100
    assert [seed for seed in seeds if seed in seen] == []


def test_the_bundled_backbone_is_small_and_says_its_name() -> None:
    weights = files("meddinov3_stroke.backbone") / "weights" / "demo.safetensors"
    backbone = load_backbone("demo", device="cpu")
    assert weights.is_file()
    assert len(weights.read_bytes()) <= 4 * 2**20
    assert backbone.identity.name == "demo"


def test_the_demo_holds_out_at_least_sixty_patients() -> None:
    assert config.DEMO_PATIENTS * config.DEMO_TEST_RATIO >= demo.LEAST_HELD_OUT_PATIENTS
    assert pytest.approx(1.0) == config.DEMO_TRAIN_RATIO + config.DEMO_VAL_RATIO + config.DEMO_TEST_RATIO
