"""The house keeps its own rules."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "meddinov3_stroke"
MODULES = sorted(SOURCE.rglob("*.py"))
LONGEST_FUNCTION = 60
LONGEST_MODULE = 320


def calls(name: str) -> set[Path]:
    """Modules that call a dotted name."""
    found = set()
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                found.add(module.relative_to(SOURCE))
    return found


def test_the_layers_hold() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout


def test_torch_load_has_one_door() -> None:
    assert calls("torch.load") == {Path("system/torch_file.py")}


@pytest.mark.parametrize("name", ["np.save", "np.savez", "torch.save", "json.dump", "pickle.load", "pickle.loads"])
def test_nothing_is_written_or_unpickled_past_the_doors(name: str) -> None:
    allowed = {"np.save": {Path("system/atomic.py")}, "torch.save": {Path("system/torch_file.py")}}
    assert calls(name) <= allowed.get(name, set())


@pytest.mark.parametrize("init", sorted(SOURCE.rglob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_rooms_re_export_and_do_nothing_else(init: Path) -> None:
    body = ast.parse(init.read_text(encoding="utf-8")).body
    assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr) for node in body)


def test_no_function_is_a_wall_of_text() -> None:
    walls = [
        f"{module.relative_to(SOURCE)}:{node.name}"
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert walls == []


def test_no_module_is_too_long_to_read() -> None:
    lengths = {module.relative_to(SOURCE): len(module.read_text(encoding="utf-8").splitlines()) for module in MODULES}
    assert {path: n for path, n in lengths.items() if n > LONGEST_MODULE} == {}


def test_importing_the_package_needs_no_torch() -> None:
    probe = "import sys, meddinov3_stroke; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], timeout=60, check=False).returncode == 0


def test_the_public_api_is_what_is_promised() -> None:
    probe = "from meddinov3_stroke import ICHPredictor, load_backbone, read_volume, backbone; backbone.vit_base"
    assert subprocess.run([sys.executable, "-c", probe], timeout=120, check=False).returncode == 0


@pytest.mark.parametrize(
    "module",
    [
        *("config", "feature_extractor", "meddinov3_infer", "head_train", "head_eval", "rsna_pipeline", "rsna_split"),
        *("rsna_train", "ich_infer", "head_model", "infer_utils"),
    ],
)
def test_user_named_modules_exist(module: str) -> None:
    assert (SOURCE / f"{module}.py").is_file()


def test_every_error_class_carries_a_code_of_its_own() -> None:
    from meddinov3_stroke import errors

    named = [value for value in vars(errors).values() if isinstance(value, type)]
    classes = [value for value in named if issubclass(value, errors.MedDINOError)]
    codes = [cls.code for cls in classes]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"E-[A-Z-]+", code) for code in codes)
