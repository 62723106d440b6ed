"""What the training curve shows, and where."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import ImageColor

from meddinov3_stroke.report.charts import CLASS_COLOURS, training_curve_png
from meddinov3_stroke.report.pictures import BACKGROUND, MUTED, TEXT
from meddinov3_stroke.system.provenance import DISCLAIMER
from meddinov3_stroke.types import LABELS


def history_of(
    n_epochs: int = 30, labels: Sequence[str] = LABELS, loss: float = 1.0, **always: Any
) -> list[dict[str, Any]]:
    """Losses that fall and AUROCs that rise, a level of their own for each label; `always` replaces columns."""
    rows = []
    for epoch in range(1, n_epochs + 1):
        learned = 1 - 0.9**epoch
        aurocs = {label: 0.55 + learned * 0.4 * (k + 1) / len(labels) for k, label in enumerate(labels)}
        losses = {"train_loss": loss * (1 - 0.8 * learned), "val_loss": loss * (1 - 0.5 * learned)}
        macro = float(np.mean([*aurocs.values()]))
        rows.append({"epoch": epoch, **losses, "val_macro_auroc": macro, "val_per_class_auroc": aurocs, **always})
    return rows


UNDEFINED = {"val_macro_auroc": None, "val_per_class_auroc": dict.fromkeys(LABELS)}
HISTORIES = {
    "30 epochs": history_of(),
    "1 epoch": history_of(1),
    "2 epochs": history_of(2),
    "300 epochs": history_of(300),
    "no validation": history_of(**UNDEFINED, val_loss=None),
    "one class": history_of(**UNDEFINED),
    "9 labels": history_of(labels=[f"class_{k}" for k in range(9)]),
    "30 labels": history_of(labels=[f"a label that is long {k}" for k in range(30)]),
    "flat": history_of(train_loss=0.6931, val_loss=0.6931),
    "zero": history_of(train_loss=0.0, val_loss=0.0),
    "large losses": history_of(loss=54321.0),
    "small losses": history_of(loss=1e-3),
}


@pytest.fixture
def curve(drawn) -> Callable[..., Any]:
    """The drawn page of a history."""
    return lambda history, best_epoch=1: drawn(lambda: training_curve_png(history, best_epoch))


def ticks(drawn, number: int) -> tuple[dict[float, float], dict[float, float]]:
    """Pixel of each labelled epoch (from the left) and of each labelled value (from the top) of a chart."""
    (left, top), (_, height) = drawn.pastes[number]
    epochs, values = {}, {}
    for text, (x0, y0, x1, y1) in drawn.texts:
        if text.replace(".", "").isdigit() and left - 100 < x0 < left + 600:
            if y0 > top + height:
                epochs[float(text)] = (x0 + x1) / 2
            elif x1 < left:
                values[float(text)] = (y0 + y1) / 2
    return epochs, values


def place(drawn, number: int, epoch: float, value: float) -> tuple[float, float]:
    """Where the ticks of a chart say that a point lies."""
    x, y = (np.poly1d(np.polyfit([*axis], [*axis.values()], 1)) for axis in ticks(drawn, number))
    return float(x(epoch)), float(y(value))


def shows(drawn, colour: str, x: float, y: float, within: int = 2) -> bool:
    """Whether a colour is drawn at most so many pixels from a place."""
    rows, columns = (slice(round(at) - within, round(at) + within + 1) for at in (y, x))
    part = drawn.page[rows, columns].astype(int)
    return bool((np.abs(part - ImageColor.getrgb(colour)).max(axis=-1) < 12).any())


def overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(one[k] < other[k + 2] and other[k] < one[k + 2] for k in (0, 1))


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_every_text_is_on_the_page_and_overlaps_no_other(curve, history) -> None:
    found = curve(history)
    height, width = found.page.shape[:2]
    boxes = [box for _, box in found.texts]
    assert [box for box in boxes if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height] == []
    assert [pair for pair in itertools.combinations(found.texts, 2) if overlap(pair[0][1], pair[1][1])] == []


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_ticks_are_one_two_or_five_times_a_power_of_ten_apart(curve, history) -> None:
    found = curve(history)
    for axis in (*ticks(found, 0), *ticks(found, 1)):
        steps = {f"{step:.3e}"[:5] for step in np.diff(sorted(axis))}
        assert steps in ({"1.000"}, {"2.000"}, {"5.000"}) or [*axis] == [1.0]
        assert len(axis) <= 9


def test_both_charts_are_named_and_have_their_axes_legend_best_epoch_and_disclaimer(curve) -> None:
    words = [text for text, _ in curve(history_of(), 7).texts]
    left = ["training", "validation", "best epoch (7)", "weighted binary cross-entropy", "epoch"]
    right = [*LABELS, "macro", "best epoch (7)", "validation AUROC", "epoch"]
    assert [word for word in words if not word[0].isdigit()] == [
        f"{DISCLAIMER.capitalize()}.",
        *left,
        *right,
    ]


@pytest.mark.parametrize("epoch", [1, 12, 30])
def test_points_lie_where_the_ticks_say(curve, epoch) -> None:
    history = history_of(labels=["any", "epidural"])
    found, row = curve(history, 20), history[epoch - 1]
    expected = {
        (0, MUTED): row["train_loss"],
        (0, TEXT): row["val_loss"],
        (1, TEXT): row["val_macro_auroc"],
        (1, CLASS_COLOURS[0]): row["val_per_class_auroc"]["any"],
        (1, CLASS_COLOURS[1]): row["val_per_class_auroc"]["epidural"],
    }
    for (number, colour), value in expected.items():
        assert shows(found, colour, *place(found, number, epoch, value)), (number, colour)


def test_the_best_epoch_is_marked_over_the_whole_height(curve) -> None:
    found = curve(history_of(), 17)
    for number in (0, 1):
        x, _ = place(found, number, 17, 0)
        top, height = found.pastes[number][0][1], found.pastes[number][1][1]
        assert all(shows(found, TEXT, x, top + share * height, within=9) for share in (0.05, 0.5, 0.95))


def test_an_epoch_without_a_value_is_a_gap(curve) -> None:
    history = history_of()
    history[14]["val_loss"] = None
    found = curve(history, 1)
    before, after = (place(found, 0, epoch, history[epoch - 1]["val_loss"]) for epoch in (14, 16))
    assert shows(found, TEXT, *before)
    assert shows(found, TEXT, *after)
    (_, top), (_, height) = found.pastes[0]
    between = slice(round(before[0]) + 8, round(after[0]) - 8)
    assert found.page[top : top + height, between].max() < min(ImageColor.getrgb(TEXT))
    assert shows(found, MUTED, *place(found, 0, 15, history[14]["train_loss"]))


def test_a_point_between_two_gaps_is_drawn(curve) -> None:
    history = history_of()
    history[13]["val_loss"] = history[15]["val_loss"] = None
    found = curve(history, 1)
    assert shows(found, TEXT, *place(found, 0, 15, history[14]["val_loss"]))


def test_a_label_without_an_auroc_is_left_out_of_the_legend(curve) -> None:
    history = history_of()
    for row in history:
        row["val_per_class_auroc"] = {**row["val_per_class_auroc"], "epidural": None}
    words = [text for text, _ in curve(history).texts]
    assert "epidural" not in words
    assert "subdural" in words


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no validation", "no validation data"), ("one class", "undefined: validation has one class only")],
)
def test_a_chart_without_curves_says_why(curve, name, reason) -> None:
    words = [text for text, _ in curve(HISTORIES[name], 3).texts]
    assert reason in words
    assert "macro" not in words
    assert ("validation" in words) == (name == "one class")


def test_labels_of_one_colour_differ_in_their_points(curve) -> None:
    history = history_of(labels=[f"class_{k}" for k in range(10)])
    found = curve(history)
    for k in range(10):
        at = place(found, 1, 25, history[24]["val_per_class_auroc"][f"class_{k}"])
        assert shows(found, CLASS_COLOURS[k % 6], *at, within=4)
        assert shows(found, BACKGROUND, *at, within=1) == (k >= 6)


def test_equal_histories_give_equal_bytes() -> None:
    assert training_curve_png(history_of(), 3) == training_curve_png(history_of(), 3)
