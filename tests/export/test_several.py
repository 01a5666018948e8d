"""Several targets in one command: all of them are built, and one that fails does not cost the others."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dtkd_edge.artifact import Artifact
from dtkd_edge.cli import app
from dtkd_edge.errors import DtkdEdgeError, MissingDependency, UsageError, VerificationError
from dtkd_edge.export.several import export_each


def test_one_that_fails_does_not_cost_the_others(run: Path) -> None:
    """There is no TensorRT here, so that one is left engine-ready; the other target, which comes later, is there."""
    result = CliRunner().invoke(app, ["export", str(run), "--target", "tensorrt", "--target", "onnx", "--clips", "2"])
    assert isinstance(result.exception, MissingDependency)
    assert result.exception.message.startswith("1 of 2 exports did not end well: tensorrt-fp16; finished: ")
    assert result.exception.message.endswith("onnx-fp32")
    for name in ("tensorrt-fp16", "onnx-fp32"):
        part = Artifact.open(run / "export" / name).manifest.verify
        assert part is not None and part.passed and f"{name}: verified" in result.stderr
    assert "error: tensorrt-fp16: " in result.stderr


@pytest.mark.parametrize("arguments", [["--target", "onnx", "--target", "openvino"], ["--target", "onnx, openvino,onnx"]])
def test_repeated_and_comma_separated_are_the_same(run: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The gravest failure gives the exit code: a wrong result is not hidden by something that is missing."""
    asked: list[tuple[str, str]] = []

    def fails(folder: Path, *, target: str, precision: str, **_: Any) -> Path:
        asked.append((target, precision))
        if precision == "fp16":
            raise {"onnx": MissingDependency, "openvino": VerificationError}[target]("no", "yes")
        return folder / target

    monkeypatch.setattr("dtkd_edge.export.several.export", fails)
    result = CliRunner().invoke(app, ["export", str(run), *arguments, "--precision", "fp32", "--precision", "fp16"])
    assert asked == [("onnx", "fp32"), ("onnx", "fp16"), ("openvino", "fp32"), ("openvino", "fp16")]
    assert isinstance(result.exception, VerificationError)
    assert "2 of 4 exports did not end well: onnx-fp16, openvino-fp16" in result.exception.message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": ["onnx", "openvio"]}, "--target openvio"),
        ({"target": ["onnx,openvino"], "precision": ["bf16"]}, "--precision bf16: the onnx"),
        ({"target": ["onnx,openvino"], "workspace": 5}, "--workspace"),
        ({"target": ["onnx,openvino"], "max_drop": 1.0}, "--max-drop"),
        ({"target": ["onnx,openvino"], "out": Path("x")}, "--out x"),
    ],
)
def test_all_are_checked_before_the_first_is_built(
    run: Path, arguments: dict, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtkd_edge.export.several.export", lambda *_, **__: pytest.fail("something was built"))
    with pytest.raises(UsageError, match=words):
        export_each(run, **arguments)


def test_an_option_goes_to_those_that_have_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple] = []

    def look(folder: Path, **given: Any) -> Path:
        seen.append((given["target"], given["precision"], given.get("workspace"), given.get("max_drop")))
        return folder

    monkeypatch.setattr("dtkd_edge.export.several.export", look)
    export_each(run, target=["onnx,tensorrt"], precision=["fp32,int8"], workspace=64, max_drop=2.0)
    assert seen == [
        ("onnx", "fp32", None, None),
        ("onnx", "int8", None, 2.0),
        ("tensorrt", "fp32", 64, None),
        ("tensorrt", "int8", 64, 2.0),
    ]


def test_several_targets_are_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="an exported artefact"):
        export_each(tmp_path, target=["tensorrt,onnx"])


def test_a_defect_in_one_costs_that_one(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(folder: Path, *, target: str, **_: Any) -> Path:
        if target == "onnx":
            raise RuntimeError("a converter's own words")
        return folder / target

    monkeypatch.setattr("dtkd_edge.export.several.export", fails)
    with pytest.raises(DtkdEdgeError, match="1 of 2 exports did not end well: onnx-fp32; finished: ") as raised:
        export_each(run, target=["onnx", "openvino"])
    assert raised.value.exit_code == 1 and "error: onnx-fp32: RuntimeError: a converter's own words" in capsys.readouterr().err
