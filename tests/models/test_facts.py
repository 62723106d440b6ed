"""What is known of a weights file by the digest of its bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from meddinov3_stroke.models import WeightsFacts, WeightsRecords
from meddinov3_stroke.models import facts as facts_module

FILE = "ef" * 32


def test_facts_come_back_under_the_files_digest_and_under_no_other(tmp_path: Path, facts: WeightsFacts) -> None:
    WeightsRecords(tmp_path).keep_facts(FILE, facts)
    assert WeightsRecords(tmp_path).facts(FILE) == facts
    assert WeightsRecords(tmp_path).facts(FILE[:-1] + "0") is None


def test_without_a_folder_nothing_is_kept(facts: WeightsFacts) -> None:
    records = WeightsRecords(None)
    records.keep_facts(FILE, facts)
    records.keep_fidelity(facts.weights_sha256, "way", 1.0)
    assert records.facts(FILE) is None
    assert records.fidelity(facts.weights_sha256, "way") is None


def test_a_damaged_record_is_said_and_not_used(
    tmp_path: Path, facts: WeightsFacts, caplog: pytest.LogCaptureFixture
) -> None:
    records = WeightsRecords(tmp_path)
    records.keep_facts(FILE, facts)
    path = tmp_path / "records" / f"{FILE}.json"
    path.write_text(path.read_text().replace('"bf16"', '"fp32"'))
    assert records.facts(FILE) is None
    assert f"{path} is damaged or unreadable" in caplog.text


def test_a_record_of_another_version_misses(
    tmp_path: Path, facts: WeightsFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    WeightsRecords(tmp_path).keep_facts(FILE, facts)
    monkeypatch.setattr(facts_module, "FACTS_SCHEMA", facts_module.FACTS_SCHEMA + 1)
    assert WeightsRecords(tmp_path).facts(FILE) is None


def test_fidelity_is_that_of_the_weights_and_of_the_way(tmp_path: Path, facts: WeightsFacts) -> None:
    records = WeightsRecords(tmp_path)
    records.keep_fidelity(facts.weights_sha256, "torch-2-bf16-cuda", 0.99995)
    assert records.fidelity(facts.weights_sha256, "torch-2-bf16-cuda") == 0.99995
    assert records.fidelity(facts.weights_sha256, "torch-3-bf16-cuda") is None
    assert records.fidelity("12" * 32, "torch-2-bf16-cuda") is None


def test_records_that_cannot_be_written_are_said_and_gone_without(
    tmp_path: Path, facts: WeightsFacts, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "file"
    folder.write_text("a file where the folder should be")
    WeightsRecords(folder).keep_facts(FILE, facts)
    assert "it will be worked out again next time" in caplog.text


def test_the_identity_of_facts_has_those_facts(facts: WeightsFacts) -> None:
    identity = facts.identity("ct.pth", "openvino", "int8", "cd" * 32)
    assert (identity.name, identity.engine, identity.precision) == ("ct.pth", "openvino", "int8")
    assert identity.calibration_sha256 == "cd" * 32
    assert WeightsFacts.of(identity) == facts
    assert replace(facts, embed_dim=65).identity("ct.pth", "openvino", "int8") != identity


def test_the_record_holds_no_path(tmp_path: Path, facts: WeightsFacts) -> None:
    WeightsRecords(tmp_path).keep_facts(FILE, facts)
    kept = json.loads((tmp_path / "records" / f"{FILE}.json").read_text())
    assert str(tmp_path) not in json.dumps(kept)
