from __future__ import annotations

import pickle
import sys

import pytest
import typer

from dtkd_edge import cli, errors, exits


def tree(cls: type[errors.DtkdEdgeError]) -> list[type[errors.DtkdEdgeError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in tree(child))]


# test-only subclasses and those of other rooms belong to the tree too
TREE = tree(errors.DtkdEdgeError)
CODES = {"UsageError": 2, "InputError": 3, "NotHereError": 4, "VerificationError": 5}


@pytest.mark.parametrize("cls", TREE, ids=lambda c: c.__name__)
def test_branch_decides_exit_code(cls: type[errors.DtkdEdgeError]) -> None:
    branch = next((c.__name__ for c in cls.__mro__ if c.__name__ in CODES), None)
    assert cls.exit_code == CODES.get(branch or "", 1)


@pytest.mark.parametrize("cls", TREE, ids=lambda c: c.__name__)
def test_survives_the_way_out_of_a_worker_process(cls: type[errors.DtkdEdgeError]) -> None:
    error = pickle.loads(pickle.dumps(cls("a.mp4: does not decode", "leave it out")))
    assert type(error) is cls
    assert (error.message, error.hint, str(error)) == (
        "a.mp4: does not decode",
        "leave it out",
        "a.mp4: does not decode (leave it out)",
    )


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {line.split("─ ")[-1].split()[0] for line in (errors.__doc__ or "").splitlines() if "── " in line}
    assert drawn == {c.__name__ for c in TREE if c.__module__ == "dtkd_edge.errors"} - {"DtkdEdgeError"}


def test_missing_dependency_gives_the_install_line() -> None:
    error = errors.MissingDependency("openvino is not installed", extra="openvino")
    assert error.hint == 'pip install "dtkd-edge[openvino]"'
    assert pickle.loads(pickle.dumps(error)).hint == error.hint
    assert errors.MissingDependency("no libnvinfer", "apt-get install it", extra="x").hint == "apt-get install it"


def run_main(monkeypatch: pytest.MonkeyPatch, raised: BaseException, *args: str) -> int:
    """The real main() around a command that raises."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command() -> None:
        raise raised

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["dtkd-edge", *args])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("cls", TREE, ids=lambda c: c.__name__)
def test_main_prints_two_lines_and_exits_with_the_code(
    cls: type[errors.DtkdEdgeError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, cls("x.yaml: wrong\nin two lines", "mend it")) == cls.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: x.yaml: wrong in two lines\n  fix: mend it\n"


def test_debug_adds_the_traceback_and_keeps_the_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, errors.RecipeError("x", "y"), "--debug") == 3
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ModuleNotFoundError("No module named 'timm'", name="timm"), 4, 'fix: pip install "dtkd-edge[train]"'),
        (ModuleNotFoundError("No module named 'torch.x'", name="torch.x"), 4, "torch is not installed"),
        (ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn"), 4, 'fix: pip install "dtkd-edge[demo]"'),
        (ModuleNotFoundError("No module named 'else'", name="else"), 4, 'fix: pip install "dtkd-edge[all]"'),
        (
            ModuleNotFoundError("No module named 'dtkd_edge.x'", name="dtkd_edge.x"),
            1,
            "unexpected: No module named 'dtkd_edge.x'",
        ),
        (OSError(28, "No space left on device"), 3, "no space left on device"),
        (PermissionError(13, "Permission denied", "/a/b"), 3, "/a/b: permission denied"),
        (OSError(5, "Input/output error"), 1, "unexpected"),
        (ValueError("strange"), 1, "unexpected: ValueError: strange"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_of_others(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, raised) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_extras_named_by_the_command_line_bring_those_libraries() -> None:
    from importlib.metadata import metadata

    declared = metadata("dtkd-edge").get_all("Requires-Dist") or []
    names = {"cuda": "cuda-python"}
    for extra, libraries in exits.EXTRAS.items():
        for library in libraries:
            name = names.get(library, library)
            assert any(r.startswith(name) and f'extra == "{extra}"' in r for r in declared), f"{library} is not in [{extra}]"
