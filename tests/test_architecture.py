"""Size, layering and habits of the code, measured."""

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
MAX_LINES = 28_915
"""Lines under src/. The plan was 14,000 and has not been reached; lower this figure when the code shrinks. A later
capability may raise it by at most 1,800, with the reason here. Raised by 60 for
training curves without matplotlib; by 1,780 for the intended-use gate, the distance to the training set, and NIfTI,
tables and DICOM met in the field; and by the rest for many cases in one run: leases, ledger, cases, status, doctor,
checks before the work, one console. Ray workers, and predict and embed in workers and shards: 560. Calibration
in checkpoint and results, the exposure record, confident errors: 880. Object stores, staging and
submission to Slurm: 640. Views of
a slice and compressed patches: 720. Tokens of the head: 316. Heads on slices and patches,
many fitted at once, sweep: 1,470. The generator of scans: 560."""
MAX_FILES = 159
"""Modules under src/. A later capability may raise this by at most 15, with the reason here. Raised by 10:
charts, leases, codestreams, tars, grouping, ledger, cases, batch, status, doctor; ray_workers; foreign, saving,
exposure, errors; staged, slurm, remote; views, extraction, basis; head_patches; bags,
modules, shallow, registry, fitting, sweeping, sweep, scoring; atlas, generator,
scanner."""
MAX_LINES_BESIDE = {"script": 42, "tools": 387, "benchmarks": 2290}
LONGEST_MODULE = 350
LONGEST_FUNCTION = 60
P90_FUNCTION = 30
MEDIAN_FUNCTION = 11
LEAST_DOCUMENTED = 0.96


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


def test_one_module_makes_consoles_and_bars() -> None:
    assert calls("Console") | calls("Progress") == {Path("system/progress.py")}


def test_no_module_calls_torch_load() -> None:
    assert calls("torch.load") == set()


@pytest.mark.parametrize("name", ["np.save", "np.savez", "torch.save", "json.dump", "pickle.load", "pickle.loads"])
def test_nothing_is_written_or_unpickled_past_the_doors(name: str) -> None:
    allowed = {"np.save": {Path("system/atomic.py")}, "torch.save": {Path("system/torch_file.py")}}
    assert calls(name) <= allowed.get(name, set())


@pytest.mark.parametrize("init", sorted(SOURCE.rglob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_rooms_re_export_and_do_nothing_else(init: Path) -> None:
    body = ast.parse(init.read_text(encoding="utf-8")).body
    assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr) for node in body)


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions() -> list[tuple[str, int]]:
    """(module:name, lines) of every function and method."""
    return [
        (f"{module.relative_to(SOURCE)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_functions_are_short() -> None:
    sizes = sorted(size for _, size in functions())
    assert [name for name, size in functions() if size > LONGEST_FUNCTION] == []
    assert sizes[len(sizes) // 2] <= MEDIAN_FUNCTION
    assert sizes[len(sizes) * 9 // 10] <= P90_FUNCTION


def test_no_module_is_too_long_to_read() -> None:
    lengths = {module.relative_to(SOURCE): lines_of(module) for module in MODULES}
    assert {path: n for path, n in lengths.items() if n > LONGEST_MODULE} == {}


def test_the_package_stays_within_its_size() -> None:
    assert len(MODULES) <= MAX_FILES
    assert sum(map(lines_of, MODULES)) <= MAX_LINES


@pytest.mark.parametrize("folder", sorted(MAX_LINES_BESIDE))
def test_scripts_tools_and_benchmarks_do_not_grow(folder: str) -> None:
    assert sum(map(lines_of, (ROOT / folder).glob("*.py"))) <= MAX_LINES_BESIDE[folder]


def test_public_names_have_docstrings() -> None:
    documented: dict[str, bool] = {}
    for module in MODULES:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for node in (*tree.body, *(member for owner in classes for member in owner.body)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                documented[f"{module.relative_to(SOURCE)}:{node.name}:{node.lineno}"] = bool(ast.get_docstring(node))
    missing = [name for name, has in documented.items() if not has]
    assert len(documented) > 300
    assert 1 - len(missing) / len(documented) >= LEAST_DOCUMENTED, missing


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {
        ".".join(("meddinov3_stroke", *module.relative_to(SOURCE).with_suffix("").parts)): module for module in MODULES
    }
    imports = {name: {found for found in imported(module) if found in modules} for name, module in modules.items()}
    waiting = dict(imports)
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys() - {name}]:
        for name in free:
            del waiting[name]
    assert sorted(waiting) == []


def imported(module: Path) -> set[str]:
    """Dotted names of what a module imports when it is imported itself; packages' re-exports are followed by name."""
    found: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


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
