"""An evaluation as text and as a PNG: figures with their intervals, and ROC, precision-recall and decision curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meddinov3_stroke.metrics.calibration import N_BINS
from meddinov3_stroke.report.charts import ABOVE, BELOW, CLASS_COLOURS, HEIGHT, LEFT, Chart, Curve
from meddinov3_stroke.report.pictures import DPI, MARGIN, MUTED, TEXT, WARNING, Page, wrap

_ROW, _NAMES, _SCALE, _TEXTS = (round(inches * DPI) for inches in (0.24, 2.2, 4.4, 3.9))
_GAP = round(0.2 * DPI)
_GRID_COLOUR = "#23282e"
_CENTRES = [(k + 0.5) / N_BINS for k in range(N_BINS)]


@dataclass(frozen=True)
class _Row:
    name: str
    figure: Mapping[str, Any] | None = None  # {value, interval}; None: the row is a heading
    note: str = ""


def evaluation_png(document: Mapping[str, Any]) -> bytes:
    """PNG of an evaluation: AUROC of each label and subgroup with its interval, then the curves with their bands.

    Of slices the position-matched AUROC comes first, beside the rules that the model has to beat.
    """
    rows, drawn = _rows(document), document.get("curves", {})
    before, after = document.get("calibration", {}), document.get("calibrated", {}).get("labels", {})
    charts = [(name, [*_charts(name, one), *_reliability(name, before, after)]) for name, one in drawn.items()]
    left = MARGIN + _NAMES
    width = max(left + _SCALE + _TEXTS, *(sum(one.width + _GAP for one in row) + 2 * MARGIN for _, row in charts), 0)
    block = ABOVE + HEIGHT + BELOW + _GAP
    counts = f"{document['n_rows']} rows of {document['n_patients']} patients"
    header = wrap("Evaluation", 13.0, width, style="Bold") + wrap(f"{counts}. 95 % intervals by patient.", 9.0, width)
    warned = [line for text in document["warnings"] for line in wrap(f"{text}.", 8.0, width, WARNING)]
    method = wrap(f"Intervals: {document['interval']['method']}. Bands are pointwise.", 7.5, width, MUTED)
    page = Page(width, header, (len(rows) + 2) * _ROW + len(charts) * block, [*warned, *method], demo=False)
    top = _forest(page, left, rows)
    for _, row in charts:
        x = MARGIN
        for chart, xs in zip(row, _axes(drawn), strict=False):
            chart.draw(page, x + LEFT, HEIGHT, xs, top)
            x += chart.width + _GAP
        top += block
    return page.png()


def leaderboard_png(document: Mapping[str, Any]) -> bytes:
    """PNG of a sweep: macro AUROC of every candidate with its interval, best first, and its position-matched AUROC."""
    rows = []
    for one in document["candidates"]:
        matched = one.get("slices") and one["slices"]["labels"]["any"].get("model", {}).get("position_matched_auroc")
        note = f"slices, position-matched {with_interval(matched)}" if matched else ""
        rows.append(_Row(f"{one['view']} · {one['head']}", one["macro"]["auroc"], note))
    width = MARGIN + _NAMES + _SCALE + 2 * _TEXTS
    header = wrap("Heads compared", 13.0, width, style="Bold")
    header += wrap(f"{document['ranked_by']}; 95 % intervals by patient. {document['note']}", 9.0, width)
    page = Page(width, header, (len(rows) + 2) * _ROW, [], demo=False)
    _forest(page, MARGIN + _NAMES, rows)
    return page.png()


def _rows(document: Mapping[str, Any]) -> list[_Row]:
    rows: list[_Row] = []
    for name, scorers in document.get("slices", {}).get("labels", {}).items():
        if "reason" not in scorers:
            rows.append(_Row(f"{name}: position-matched AUROC"))
            rows += [
                _Row(scorer.replace("_", " "), one["position_matched_auroc"], f"AUROC {_number(one['auroc']['value'])}")
                for scorer, one in scorers.items()
            ]
    if "macro" in document:
        rows += [_Row("AUROC"), *_label_rows(document["labels"])]
        labels = document["macro"]["labels"]
        rows.append(_Row("macro", document["macro"]["auroc"], f"{len(labels)} of {len(document['labels'])} labels"))
    for column, groups in document.get("subgroups", {}).items():
        for value, group in groups.items():
            counts = f"{group['n_rows']} rows of {group['n_patients']} patients"
            rows += [_Row(f"{column} {value} ({counts})"), *_label_rows(group["labels"])]
    return rows


def _label_rows(labels: Mapping[str, Any]) -> list[_Row]:
    return [
        _Row(name, one["auroc"], f"{one['n_positive']} positive in {one['n_positive_patients']} patients")
        for name, one in labels.items()
    ]


def _forest(page: Page, left: int, rows: Sequence[_Row]) -> int:
    # intervals on one scale from 0 to 1, a row each; where the next thing begins
    top, bottom = page.top + _ROW, page.top + (len(rows) + 1) * _ROW
    for tenth in range(0, 11, 2):
        x = left + _SCALE * tenth / 10
        page.draw.line((x, top, x, bottom), _GRID_COLOUR, 1)
        page.text(x, page.top + 4, f"{tenth / 10:.1f}", 7.5, MUTED, anchor="ma")
    page.draw.line((left + _SCALE / 2, top, left + _SCALE / 2, bottom), MUTED, 1)
    for k, row in enumerate(rows):
        y = top + (k + 0.5) * _ROW
        if row.figure is None:
            page.text(MARGIN, y, row.name, 8.5, style="Bold", anchor="lm")
            continue
        page.text(MARGIN + 12, y, row.name, 8.0, anchor="lm")
        value, interval = row.figure["value"], row.figure.get("interval") or {"low": None}
        if interval["low"] is not None:
            page.draw.line((left + _SCALE * interval["low"], y, left + _SCALE * interval["high"], y), MUTED, 4)
        if value is not None:
            page.draw.circle((left + _SCALE * value, y), 6, CLASS_COLOURS[0])
        note = "  ·  ".join(filter(None, (with_interval(row.figure), row.note)))
        page.text(left + _SCALE + 16, y, note, 8.0, TEXT, anchor="lm")
    return bottom + _ROW


def _axes(drawn: Mapping[str, Any]) -> list[list[float]]:
    first = next(iter(drawn.values()))
    return [
        first["roc"]["false_positive_rate"],
        first["precision_recall"]["sensitivity"],
        first["decision"]["threshold"],
        _CENTRES,
    ]


def _charts(name: str, one: Mapping[str, Any]) -> list[Chart]:
    def curve(kind: str, values: str) -> Curve:
        side = one[kind]
        return Curve("model", CLASS_COLOURS[0], side[values], marked=False, low=side["low"], high=side["high"])

    roc, chance = curve("roc", "sensitivity"), one["roc"]["false_positive_rate"]
    benefit, treat_all = curve("decision", "net_benefit"), one["decision"]["treat_all"]
    floor = min([0.0, *benefit.low])
    shown = [value if value >= floor - 0.02 else None for value in treat_all]
    return [
        Chart(
            f"{name}: ROC",
            [roc, Curve("chance", MUTED, chance, 1, marked=False)],
            x_name="1 - specificity; y: sensitivity",
        ),
        Chart(
            f"{name}: precision-recall",
            [curve("precision_recall", "precision")],
            (_share(one), 0.0, 1.0),
            x_name="sensitivity (recall); y: precision (PPV); dashed: prevalence",
        ),
        Chart(
            f"{name}: decision curve",
            [benefit, Curve("treat all", MUTED, shown, 1, marked=False)],
            (0.0,),
            x_name="threshold probability; y: net benefit; dashed: treat none",
        ),
    ]


def _reliability(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Chart]:
    # the share of positives in each bin of the probability; none for scores that are no probabilities
    if name not in before:
        return []
    curves, sides = [], {"model": before[name], "calibrated": after.get(name, {"method": None})}
    for colour, (side, one) in zip(CLASS_COLOURS, sides.items(), strict=False):
        if "bins" in one:
            shares = {part["low"]: part["share_positive"] for part in one["bins"]}
            curves.append(Curve(side, colour, [shares.get(k / N_BINS) for k in range(N_BINS)]))
    ideal = Curve("ideal", MUTED, _CENTRES, 1, marked=False)
    about = f"Brier {_change(sides, 'brier')}, ECE {_change(sides, 'ece')}"
    return [Chart(f"{name}: reliability ({about})", [*curves, ideal], x_name="probability; y: share of positives")]


def _change(sides: Mapping[str, Mapping[str, Any]], measure: str) -> str:
    # a figure before and after calibration, if there is one
    found = [one[measure] for one in sides.values() if measure in one]
    return " to ".join(_number(one["value"] if isinstance(one, Mapping) else one) for one in found)


def _share(one: Mapping[str, Any]) -> float:
    # the prevalence, from the net benefit of treating all at the first threshold probability
    threshold, benefit = (one["decision"][name][0] for name in ("threshold", "treat_all"))
    odds = threshold / (1 - threshold)
    return float((benefit + odds) / (1 + odds))


def evaluation_table(document: Mapping[str, Any]) -> str:
    """An evaluation as text: ranking figures, then rates at each operating point, then the comparison."""
    lines = [f"{document['n_rows']} rows of {document['n_patients']} patients; 95 % intervals by patient"]
    for name, scorers in document.get("slices", {}).get("labels", {}).items():
        if "reason" in scorers:
            lines.append(f"{name}: no slice AUROC, {scorers['reason']}")
            continue
        lines.append(f"{name:<18}{'position-matched AUROC':>26}{'AUROC':>26}")
        for scorer, one in scorers.items():
            figures = (with_interval(one[measure]) for measure in ("position_matched_auroc", "auroc"))
            lines.append("".join([f"  {scorer.replace('_', ' '):<16}", *(f"{text:>26}" for text in figures)]))
    if "labels" in document:
        lines.append(f"{'label':<18}{'positive':>9}{'AUROC':>26}{'AUPRC':>26}")
        macro = {**document["macro"], "n_positive": f"{len(document['macro']['labels'])} labels"}
        for name, one in (*document["labels"].items(), ("macro", macro)):
            figures = (with_interval(one[measure]) for measure in ("auroc", "auprc"))
            lines.append("".join([f"{name:<18}{one['n_positive']:>9}", *(f"{text:>26}" for text in figures)]))
    calibrated = document.get("calibrated", {}).get("operating_points", {})
    points = {**document.get("operating_points", {}), **{f"calibrated {k}": one for k, one in calibrated.items()}}
    for point, labels in points.items():
        lines.append(f"{point:<27}{'threshold':>9}{'sensitivity':>26}{'specificity':>26}{'PPV':>26}{'NPV':>26}")
        for name, one in labels.items():
            figures = (with_interval(one[rate]) for rate in ("sensitivity", "specificity", "ppv", "npv"))
            lines.append("".join([f"  {name:<25}{one['threshold']:>9.4f}", *(f"{text:>26}" for text in figures)]))
    for name, one in document.get("calibrated", {}).get("labels", {}).items():
        sides = {"before": document["calibration"][name], "after": one}
        changed = f"ECE {_change(sides, 'ece')}, Brier {_change(sides, 'brier')}, {one['method']}"
        lines.append(
            f"{name}: " + (f"not calibrated: {one['reason']}" if "reason" in one else f"calibrated: {changed}")
        )
    for name, one in document.get("comparison", {}).get("labels", {}).items():
        if "reason" not in one:
            auroc = one["auroc"]
            difference = with_interval({**auroc, "value": auroc["difference"]})
            lines.append(f"{name}: AUROC difference {difference}, DeLong p {_p_value(auroc['delong']['p'])}")
    return "\n".join(lines)


def exposure_text(exposure: Mapping[str, Any]) -> str:
    """How often the test set was evaluated before, as a sentence."""
    this, others, heads = (exposure[name] for name in ("earlier_by_this_head", "earlier_by_others", "other_heads"))
    return f"earlier evaluations of this test set: {this} of this head, {others} of other heads ({heads} different)"


def with_interval(figure: Mapping[str, Any]) -> str:
    """`0.912 (0.870 to 0.941)`; a dash for a figure or an interval that is undefined."""
    value, interval = figure["value"], figure.get("interval") or figure
    if value is None:
        return "-"
    low, high = interval.get("low"), interval.get("high")
    return f"{value:.3f} (-)" if low is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _p_value(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _number(value)
