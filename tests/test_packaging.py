"""The wheel and the editable install, each in an environment of its own; the scripts that install and check."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("dtkd_edge", "export", "deploy", "benchmarks", "pyproject.toml", "README.md", "LICENSE")
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "MAKE"))}


def call(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env or ENV, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy, so that building leaves nothing behind in the checkout."""
    copy = tmp_path / "source"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An empty environment that borrows the libraries of this one, but not its dtkd-edge (a .pth is not followed twice)."""
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    borrowed = [p for p in sys.path if p.endswith("-packages") and Path(p).is_dir()]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return folder


def install(environment: Path, *what: object) -> None:
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--quiet", "--disable-pip-version-check"]
    call(environment / "bin/python", "-m", "pip", "install", *options, *what)


LOOK = """
import importlib, pathlib, sys
import dtkd_edge, dtkd_edge.export, dtkd_edge.deploy.backends, dtkd_edge.benchmarks
from dtkd_edge import recipe_reader
assert recipe_reader.shipped() == {recipes!r}, recipe_reader.shipped()
for name in recipe_reader.shipped():
    recipe_reader.load(name)
for name in ("export", "deploy", "benchmarks"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{name}} is on everybody's import path")
print(pathlib.Path(dtkd_edge.__file__).parent)
print(pathlib.Path(dtkd_edge.export.__file__).parent)
"""


def works(environment: Path, empty: Path) -> tuple[Path, Path]:
    """Use the installed package from an empty folder; where dtkd_edge and dtkd_edge.export came from."""
    empty.mkdir()
    assert "train" in call(environment / "bin/dtkd-edge", "--help", cwd=empty).stdout
    assert call(environment / "bin/dtkd-edge", "--version", cwd=empty).stdout.startswith("dtkd-edge 0.")
    assert "train" in call(environment / "bin/python", "-m", "dtkd_edge", "--help", cwd=empty).stdout
    recipes = sorted(p.stem for p in (ROOT / "dtkd_edge/recipes").glob("*.yaml"))
    out = call(environment / "bin/python", "-c", LOOK.format(recipes=recipes), cwd=empty).stdout.split("\n")
    assert not list(empty.iterdir())
    return Path(out[0]), Path(out[1])


@pytest.mark.slow
def test_the_wheel_of_the_source_archive(source: Path, environment: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", source)
    assert len(list((tmp_path / "dist").glob("dtkd_edge-*.tar.gz"))) == 1
    (wheel,) = (tmp_path / "dist").glob("dtkd_edge-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dtkd_edge"}
    wanted = {"dtkd_edge/py.typed"}
    for pattern, inside in (
        ("dtkd_edge/recipes/*.yaml", ""),
        ("dtkd_edge/models/figures.json", ""),
        ("deploy/web/*", "dtkd_edge/"),
        ("deploy/jetson/*", "dtkd_edge/"),
        ("dtkd_edge/**/*.py", ""),
        ("export/**/*.py", "dtkd_edge/"),
        ("deploy/**/*.py", "dtkd_edge/"),
    ):
        wanted |= {inside + str(f.relative_to(ROOT)) for f in ROOT.glob(pattern) if f.is_file() and f.name != "README.md"}
    assert wanted <= names, sorted(wanted - names)
    assert any(name.endswith("licenses/LICENSE") for name in names)

    install(environment, wheel)
    package, export = works(environment, tmp_path / "empty")
    assert package.is_relative_to(environment)
    assert export == package / "export"


@pytest.mark.slow
def test_the_editable_install(source: Path, environment: Path, tmp_path: Path) -> None:
    install(environment, "--editable", source)
    package, export = works(environment, tmp_path / "empty")
    assert (package, export) == (source / "dtkd_edge", source / "export")
    (source / "export" / "added.py").write_text("answer = 42\n")  # a file added later is there without a new install
    found = call(environment / "bin/python", "-c", "from dtkd_edge.export.added import answer; print(answer)", cwd=tmp_path)
    assert found.stdout == "42\n"


SCRIPTS = [*sorted(p for p in (ROOT / "scripts").iterdir() if p.suffix == "" and p.is_file()), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_bash_and_executable(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    call("bash", "-n", script)


Make = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "-C", str(ROOT), f"VENV={tmp_path / 'env'}", *args]
        return subprocess.run(command, env=ENV, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    return run


def test_make_installs_once(make: Make, tmp_path: Path) -> None:
    assert "scripts/install" in make("-n", "quickstart").stdout
    stamp = tmp_path / "env" / ".installed-dev"
    stamp.parent.mkdir()
    stamp.touch()
    os.utime(stamp, (stamp.stat().st_mtime + 10,) * 2)
    assert "scripts/install" not in make("-n", "test").stdout
    done = make("install")  # what was installed for development has it all
    assert done.returncode == 0, done.stderr
    assert "installing" not in done.stderr


def test_make_names_what_it_offers(make: Make) -> None:
    out = make().stdout
    assert "make quickstart" in out
    assert "make test" in out


@pytest.mark.parametrize("python", ["/nowhere/python3", "/bin/false"])
def test_an_unsuitable_python_is_named(make: Make, tmp_path: Path, python: str) -> None:
    done = make("install", f"PYTHON={python}")
    assert done.returncode != 0
    assert f"PYTHON={python} is not a Python of version 3.10 or newer" in done.stderr
    assert not (tmp_path / "env").exists()


def test_install_never_deletes_a_folder_that_is_no_virtual_environment(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    kept = tmp_path / "mine" / "thesis.txt"
    kept.write_text("all of it")
    done = subprocess.run(
        [ROOT / "scripts" / "install", kept.parent, "dev"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 3 and "no virtual environment" in done.stderr and "fix:" in done.stderr
    assert kept.read_text() == "all of it"
