"""The READMEs' commands parse as written, and both languages give the same ones."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from meddinov3_stroke.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")
COMMON = "--output-dir --device --batch --resize --backbone"
HEAD = "--lr --weight-decay --hidden-dim --dropout --epochs"
RATIOS = "--series-csv --output-dir --train-ratio --val-ratio --test-ratio --seed"
CONTRACT_FLAGS = {
    "download_models.py": "--package --check-size",
    "run_meddinov3_infer.py": f"{COMMON} --input --max-slices --stride --sim-slice --sim-patch",
    "train_meddinov3_head.py": f"{HEAD} --train-embeddings --train-labels --val-embeddings --val-labels "
    "--batch-size --output-dir",
    "test_meddinov3_head.py": "--embeddings --labels --checkpoint --output-json --output-probs",
    "prepare_rsna_splits.py": RATIOS,
    "train_meddinov3_rsna.py": f"{COMMON} {HEAD} {RATIOS} --cache-dir --checkpoints-dir --pool-mode --train-batch-size "
    "--skip-invalid-nifti --max-invalid --stride --max-slices",
    "infer_meddinov3_ich.py": f"{COMMON} --input --checkpoint --top-k",
}
"""Script -> the flags it promises."""


def commands_of(readme: str) -> list[str]:
    """Every command line of the bash blocks, with continuation lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def script_calls() -> list[list[str]]:
    """The words of every `python script/…` command of both READMEs."""
    return [
        shlex.split(line)[1:] for readme in READMES for line in commands_of(readme) if line.startswith("python script/")
    ]


def stage_of(script: Path) -> str:
    """The module whose `main` a script calls."""
    imports = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    return str(imports[0].module)


@pytest.mark.parametrize("words", script_calls(), ids=lambda words: f"{Path(words[0]).stem}-{len(words)}")
def test_every_readme_command_parses(words: list[str]) -> None:
    stage = importlib.import_module(stage_of(ROOT / words[0]))
    args = tyro.cli(stage.Args, args=words[1:])
    assert isinstance(args, stage.Args)


@pytest.mark.parametrize("script", sorted(CONTRACT_FLAGS))
def test_every_promised_flag_is_in_the_help(script: str) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "script" / script, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    found = set(re.findall(r"--[a-z][a-z-]+", result.stdout))
    assert set(CONTRACT_FLAGS[script].split()) <= found


def test_the_readmes_use_each_of_the_seven_scripts() -> None:
    assert {Path(words[0]).name for words in script_calls()} == set(CONTRACT_FLAGS)


def test_both_languages_give_the_same_commands() -> None:
    english, chinese = (commands_of(readme) for readme in READMES)
    assert english == chinese


@pytest.mark.parametrize("readme", READMES)
def test_every_verb_of_the_console_command_is_in_the_readme(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    listed = re.search(r"`meddinov3-stroke (demo \|[^`]*)`", text)
    assert listed is not None
    assert {verb.strip() for verb in listed.group(1).split("|")} == set(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_every_verb_answers_without_torch(verb: str) -> None:
    probe = (
        "import sys\nfrom meddinov3_stroke.cli import main\n"
        f"try:\n    main([{verb!r}, '--help'])\n"
        "except SystemExit as stop:\n    assert stop.code in (0, None), stop.code\n"
        "sys.exit(40 if 'torch' in sys.modules else 0)"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("readme", READMES)
def test_every_linked_file_exists(readme: str) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", (ROOT / readme).read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
