"""What the benchmarks say of a figure: bars, counts, turns."""

from __future__ import annotations

import pytest
from benchmarks.bars import Bar
from benchmarks.rounds import take_turns, times_as_fast
from benchmarks.work import Transformer, flops_of_slice


def test_a_figure_just_below_its_bar_is_shown_below_it_and_missed() -> None:
    assert Bar(4.3, "x").verdict("auto", 4.2999) == "auto: 4.299x; bar at least 4.3x: missed"


def test_a_figure_at_its_bar_meets_it() -> None:
    assert Bar(50).is_met(50.0)
    assert not Bar(1024, kind="less than").is_met(1024.0)


def test_a_figure_just_above_its_upper_bar_is_shown_above_it_and_missed() -> None:
    assert Bar(0.5, " s", "less than").verdict("start", 0.50001) == "start: 0.5001 s; bar less than 0.5 s: missed"


def test_a_cosine_is_cut_to_six_decimals() -> None:
    assert Bar(0.9999).verdict("cosine", 0.99989999) == "cosine: 0.999899; bar at least 0.9999: missed"


@pytest.mark.parametrize("figure", [0.0, 1.0, 123456.0])
def test_a_plain_figure_can_be_shown(figure: float) -> None:
    assert float(Bar(1.0).shown(figure)) <= figure


def test_the_work_of_a_slice_equals_a_hand_count() -> None:
    # 224 pixels: 196 patches, 201 tokens. Multiply-adds, in millions:
    #   patches           196 * 256 * 768                               =    38.54
    #   11 blocks         11 * (201 * 12 * 768^2 + 2 * 201^2 * 768)     = 16331.13
    #   last block        k and v: 201 * 2 * 768^2                      =   237.11
    #                     one token: 10 * 768^2 + 2 * 201 * 768         =     6.21
    by_hand = 38_535_168 + 11 * (1_422_655_488 + 62_055_936) + 237_109_248 + 5_898_240 + 308_736
    assert flops_of_slice(224) == 2 * by_hand
    assert flops_of_slice(224) == pytest.approx(33.2e9, rel=1e-3)


def test_a_transformer_of_one_block_computes_one_query() -> None:
    vit = Transformer(dim=2, depth=1, patch=1, n_prefix=1, ffn=8)
    # one patch, two tokens: patch 1*1*2; k and v 2*2*4; q and projection 2*4, MLP 2*2*8; two products of 1 x 2 x 2
    assert flops_of_slice(1, vit) == 2 * (2 + 16 + 8 + 32 + 8)


def test_ways_take_turns_and_each_round_begins_with_another() -> None:
    calls: list[str] = []
    seconds = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_of_the_ratios_within_a_round() -> None:
    assert times_as_fast({"ours": [1.0, 1.0, 10.0], "theirs": [2.0, 3.0, 40.0]}, "ours", "theirs") == 3.0
