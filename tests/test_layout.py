"""The rooms and who may import whom, what is declared, and that the runtime needs no torch."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

import pytest

import dtkd_edge

ROOT = Path(__file__).resolve().parents[1]
TOP_ROOMS = ("export", "deploy", "benchmarks")  # installed inside dtkd_edge

GROUND = (
    "errors",
    "files",
    "artifact",
    "preprocess",
    "decoder",
    "video",
    "frames",
    "fonts",
    "recipe",
    "recipe_reader",
    "runs",
    "console",
    "exits",
    "plots",
    "page",
    "recipe_page",
)
ML = ("data", "models", "distill", "train")
# room -> the rooms it may import at module level; `cli` sees all. A room may always import itself.
MAY = {
    **{module: {*GROUND} for module in GROUND},
    "data": {*GROUND},
    "models": {*GROUND},
    "distill": {*GROUND, "models"},
    "train": {*GROUND, "data", "models", "distill"},
    "export": {*GROUND, *ML, "deploy"},
    "deploy": {*GROUND},
    "benchmarks": {*GROUND, "deploy"},
    "recipes": set(),
}
MAY_INSIDE_FUNCTIONS = {
    **MAY,
    "benchmarks": {*GROUND, "deploy", "data"},  # the clips that accuracy is measured on
    "train": {*MAY["train"], "deploy"},  # `eval` of an artefact
}
ALWAYS = {"__init__"}  # dtkd_edge itself: the version

NO_TORCH = (*GROUND, "cli", "deploy", "benchmarks")
TORCH = {"torch", "torchvision", "timm", "safetensors"}

# import name -> distribution, where they differ
DISTRIBUTION = {"yaml": "pyyaml", "PIL": "pillow", "decord": "decord2", "cuda": "cuda-python", "cv2": "opencv"}
# imported where present, never needed: inside functions only
OPTIONAL = {"pynvml", "jtop", "cv2", "nncf", "matplotlib", "psutil", "triton"}  # Triton comes with torch, on CUDA


def modules() -> dict[str, Path]:
    """Module name as installed -> file."""
    found = {}
    for top in ("dtkd_edge", *TOP_ROOMS):
        for file in sorted((ROOT / top).rglob("*.py")):
            if "peers" in file.parts:
                continue  # side-by-side scripts, each for an environment of its own
            parts = list(file.relative_to(ROOT).with_suffix("").parts)
            if top != "dtkd_edge":
                parts.insert(0, "dtkd_edge")
            if parts[-1] == "__init__":
                parts.pop()
            found[".".join(parts)] = file
    return found


MODULES = modules()


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(file: Path, *, everywhere: bool = False) -> Iterator[str]:
    """Names imported when the module is (or, with `everywhere`, also inside functions); not what only a type checker reads."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for other in child.orelse:
                    yield from walk(other)
            elif isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: imports are written in full"
                base = child.module or ""
                if base == "dtkd_edge":
                    yield from (
                        f"dtkd_edge.{alias.name}" if f"dtkd_edge.{alias.name}" in MODULES else base for alias in child.names
                    )
                else:
                    yield base
            elif everywhere or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child)

    yield from walk(ast.parse(file.read_text(encoding="utf-8"), str(file)))


@pytest.mark.parametrize("module", MODULES)
def test_who_imports_whom(module: str) -> None:
    own = room(module)
    if own in ("cli", "__main__", "__init__"):
        return
    for everywhere, allowed in ((False, MAY), (True, MAY_INSIDE_FUNCTIONS)):
        ours = {room(name) for name in imports(MODULES[module], everywhere=everywhere) if name.split(".")[0] == "dtkd_edge"}
        assert ours - allowed[own] - ALWAYS <= {own}, f"{module} may not import {sorted(ours - allowed[own] - ALWAYS - {own})}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in NO_TORCH])
def test_the_runtime_does_not_import_torch(module: str) -> None:
    everywhere = room(module) == "deploy"
    tops = {name.split(".")[0] for name in imports(MODULES[module], everywhere=everywhere)}
    assert not tops & TORCH, f"{module} imports {sorted(tops & TORCH)}"


def test_no_page_installs_the_package_from_an_index_that_lacks_it() -> None:
    pages = [*ROOT.glob("*.md"), *(page for room in ("docs", "dtkd_edge", *TOP_ROOMS) for page in (ROOT / room).rglob("*.md"))]
    indexed = re.compile(r"pip install\b[^\n]*\bdtkd-edge\[")
    assert len(pages) > 10 and not [page for page in pages if indexed.search(page.read_text(encoding="utf-8"))]


def test_the_package_lists_what_it_offers() -> None:
    offered = {name for name in dir(dtkd_edge) if not name.startswith("_")}
    assert {"load", "Classifier"} <= offered and not offered & {"Any", "TYPE_CHECKING", "annotations"}


# Of torchvision, timm or accelerate through and through, and themselves imported where they are used.
LATE = {"dtkd_edge.train.rank_norm", "dtkd_edge.data.rand_augment", "dtkd_edge.models.mvit_attention"}


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in ML])
def test_what_takes_long_to_import_waits_until_it_is_needed(module: str) -> None:
    """torchvision and timm together take longer to import than torch, and networks of ours need neither."""
    if module in LATE:
        return
    assert not {name.split(".")[0] for name in imports(MODULES[module])} & {"torchvision", "timm", "transformers", "accelerate"}
    assert not LATE & set(imports(MODULES[module]))


def test_imports_name_the_installed_package() -> None:
    """`import export` works from the repository's folder and nowhere else."""
    for module, file in MODULES.items():
        assert not {name.split(".")[0] for name in imports(file, everywhere=True)} & {*TOP_ROOMS}, module


def declared(extra: str = "") -> set[str]:
    """Distributions of the base, or of one extra, as the installed metadata has them."""
    names = set()
    for line in metadata("dtkd-edge").get_all("Requires-Dist") or []:
        marker = re.search(r'extra == "([^"]+)"', line)
        if (marker.group(1) if marker else "") == extra:
            names.add(re.split(r"[\s<>=!~\[;(]", line, maxsplit=1)[0].lower())
    return names


@pytest.mark.parametrize("module", MODULES)
def test_every_library_is_declared(module: str) -> None:
    base = declared()
    anything = base.union(*(declared(e) for e in ("train", "hf", "openvino", "tensorrt", "demo")))

    def foreign(everywhere: bool) -> set[str]:
        tops = {name.split(".")[0] for name in imports(MODULES[module], everywhere=everywhere)}
        return {DISTRIBUTION.get(top, top).lower() for top in tops - set(sys.stdlib_module_names) - {"dtkd_edge"}}

    assert foreign(everywhere=True) - {DISTRIBUTION.get(o, o) for o in OPTIONAL} <= anything
    at_import = foreign(everywhere=False)
    if room(module) in GROUND or room(module) == "cli":
        assert at_import <= base


def test_every_package_folder_is_installed() -> None:
    listed = set(
        (ROOT / "pyproject.toml")
        .read_text(encoding="utf-8")
        .split("packages = [")[1]
        .split("]")[0]
        .replace('"', "")
        .replace(",", "")
        .split()
    )
    folders = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    assert folders <= listed, f"add to packages in pyproject.toml: {sorted(folders - listed)}"


BLOCK = """
import sys
class Absent:  # as on a machine that has only the base
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False, env={**os.environ, "COLUMNS": "100"}
    )


def test_the_runtime_imports_with_only_the_base_installed(tmp_path: Path) -> None:
    base = declared() | {"typing_extensions"}
    extras = set().union(*(declared(e) for e in ("train", "hf", "openvino", "tensorrt", "demo"))) - base
    absent = {name for name in extras | OPTIONAL | {"cuda"} if name}
    wanted = [m for m in MODULES if room(m) in NO_TORCH]
    lazy = []
    for module in wanted:  # a module may need its extra at import when nothing imports it without need, as the web page does
        tops = {name.split(".")[0].lower() for name in imports(MODULES[module])}
        if tops & absent:
            assert room(module) in ("deploy", "benchmarks"), f"{module} needs {tops & absent}"
            lazy.append(module)
    code = (
        BLOCK.format(absent=absent)
        + f"import importlib\nfor name in {[m for m in wanted if m not in lazy]!r}: importlib.import_module(name)\n"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    code = (
        "import sys, importlib\n" + f"for name in {wanted!r}: importlib.import_module(name)\n" + "print('torch' in sys.modules)"
    )
    done = run(code, tmp_path)
    assert done.stdout.strip() == "False", done.stderr


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
sys.argv = ["dtkd-edge", "--help"]
from dtkd_edge.cli import main
try:
    main()
except SystemExit:
    pass
print("HEAVY", sorted({"torch", "numpy", "pydantic", "yaml", "PIL", "decord", "onnxruntime"} & set(sys.modules)))
"""
    done = run(code, tmp_path)
    assert "HEAVY []" in done.stdout, done.stdout[-300:] + done.stderr
    assert "train" in done.stdout


def test_importing_the_package_is_cheap(tmp_path: Path) -> None:
    done = run("import sys, dtkd_edge; print(sorted({'typer', 'torch', 'numpy', 'pydantic'} & set(sys.modules)))", tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "room", ["dtkd_edge/data", "dtkd_edge/models", "dtkd_edge/distill", "dtkd_edge/train", *TOP_ROOMS, "tests"]
)
def test_every_room_has_a_readme_of_one_screen(room: str) -> None:
    readme = ROOT / room / "README.md"
    assert readme.is_file(), f"{room} has no README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 80
