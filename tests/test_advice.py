"""Messages, help and documentation name only flags, verbs and scripts that exist."""

from __future__ import annotations

import ast
import importlib
import re
import warnings
from functools import cache
from pathlib import Path

import pytest
import tyro

from meddinov3_stroke.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "src" / "meddinov3_stroke").rglob("*.py"))
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "README.zh-CN.md"]
FLAG = r"(?<![\w-])--[a-z][\w-]*"
OF_OTHERS = {"--array", "--dereference", "--hard-dereference", "--force-reinstall", "--me", "--name"}
"""Flags of sbatch, tar and pip that messages name."""


@cache
def flags_of(verb: str) -> frozenset[str]:
    """Every option of a verb's parser."""
    stage = importlib.import_module(f"meddinov3_stroke.{VERBS[verb][0]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(stage.Args, prog=verb)
    return frozenset(option for action in parser._actions for option in action.option_strings)


def known_flags() -> set[str]:
    return {"--help", "--version"}.union(*map(flags_of, VERBS))


def literals(module: Path) -> list[str]:
    """The string literals of a module; an f-string is one, with {} for its values."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inside = {id(part) for node in joined for part in ast.walk(node) if part is not node}
    texts = ["".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values) for node in joined]
    single = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in inside]
    return texts + [node.value for node in single if isinstance(node.value, str)]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_every_flag_named_in_a_module_exists(module: Path) -> None:
    named = {flag for text in literals(module) for flag in re.findall(FLAG, text)}
    assert named - OF_OTHERS - known_flags() == set()


def commands_in(text: str) -> list[tuple[str, str]]:
    """(verb, what follows up to the end of the command) of each `meddinov3-stroke <verb>` in a text."""
    return re.findall(r"meddinov3-stroke ([a-z][a-z0-9-]*)([^;`|]*)", text.replace("\\\n", " "))


def test_every_command_named_in_a_message_has_its_verb_and_flags() -> None:
    found = [command for module in MODULES for text in literals(module) for command in commands_in(text)]
    assert len(found) >= 4
    for verb, rest in found:
        assert verb in VERBS
        named = re.findall(FLAG, rest.split(", or")[0].split(" (or")[0].split(", which")[0])
        assert set(named) <= flags_of(verb), (verb, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_of_the_documentation_has_its_verb_and_flags(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    spans = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^ *meddinov3-stroke .*", text, re.MULTILINE)]
    for verb, rest in [command for span in spans for command in commands_in(span)]:
        assert verb in VERBS
        assert set(re.findall(FLAG, rest)) <= flags_of(verb), (verb, rest)


def test_every_script_named_in_a_message_exists() -> None:
    names = {name for module in MODULES for text in literals(module) for name in re.findall(r"\w+\.py", text)}
    named = {name for name in names if re.match("download_|train_|test_|infer_|run_|prepare_", name)}
    assert named
    assert named <= {path.name for path in (ROOT / "script").iterdir()}


def test_the_collector_sees_a_flag_inside_an_f_string_and_one_that_does_not_exist(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('def f(x): raise ValueError(f"bad {x}; pass --no-such-flag" " or --quiet")\n')
    named = {flag for text in literals(module) for flag in re.findall(FLAG, text)}
    assert named == {"--no-such-flag", "--quiet"}
    assert named - known_flags() == {"--no-such-flag"}
