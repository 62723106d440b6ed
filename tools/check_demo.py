"""Hold the last demo to its bars; exits with 1 and says which one it missed.

uv run meddinov3-stroke demo && uv run python tools/check_demo.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SUMMARY = Path("outputs/demo/demo_summary.json")
LEAST_MACRO_AUROC = 0.90
CONTROL_RANGE = (0.35, 0.65)
"""Mean over the shuffles; its standard error at 60 patients and five labels is about 0.04."""
MOST_SECONDS = 180


def missed_bars(summary: dict) -> list[str]:  # type: ignore[type-arg]
    """What the demo fell short of, in words."""
    held_out, control = summary["held_out"], summary["shuffled_labels"]["macro_auroc"]
    bars = {
        f"macro AUROC {summary['macro_auroc']:.3f} >= {LEAST_MACRO_AUROC}": summary["macro_auroc"] >= LEAST_MACRO_AUROC,
        f"shuffled labels {control:.3f} in {CONTROL_RANGE}": CONTROL_RANGE[0] <= control <= CONTROL_RANGE[1],
        f"held-out patients {held_out['patients']} >= 60": held_out["patients"] >= 60,
        f"small lesions {held_out['lesions_below_2_ml']} of {held_out['lesions']} >= a fifth": (
            5 * held_out["lesions_below_2_ml"] >= held_out["lesions"]
        ),
        f"elapsed {summary['elapsed_s']:.0f} s < {MOST_SECONDS}": summary["elapsed_s"] < MOST_SECONDS,
        "pictures are there": all(Path(picture).is_file() for picture in summary["pictures"]),
    }
    for bar, met in bars.items():
        print(f"{'met   ' if met else 'MISSED'}  {bar}")
    return [bar for bar, met in bars.items() if not met]


if __name__ == "__main__":
    sys.exit(bool(missed_bars(json.loads(SUMMARY.read_text(encoding="utf-8")))))
