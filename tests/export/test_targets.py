import itertools
import re
from importlib import metadata
from pathlib import Path

import pytest

from dtkd_edge.errors import MissingDependency, UsageError
from dtkd_edge.export.build import say_what_is_faster
from dtkd_edge.export.support import support_table
from dtkd_edge.export.targets import HOW, RUN, TARGETS, check_needs, request

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
MODES = ("clip", "stream")


@pytest.mark.parametrize(("target", "precision", "mode"), list(itertools.product(TARGETS, PRECISIONS, MODES)))
def test_every_combination_is_legal_or_refused_with_a_legal_one(target: str, precision: str, mode: str) -> None:
    row = TARGETS[target]
    if precision in row.precisions and mode in row.modes:
        assert request(target, precision, mode).folder.startswith(f"{target}-{precision}")
        return
    with pytest.raises(UsageError) as caught:
        request(target, precision, mode)
    for advice in caught.value.hint.removeprefix("nearest: ").split(", or "):
        words = advice.split()
        asked = {words[i].lstrip("-"): words[i + 1] for i in range(0, len(words), 2)}
        request(asked["target"], asked.get("precision"), asked.get("mode", "clip"))  # the advice itself is legal


def test_defaults() -> None:
    assert request("onnx").precision == "fp32"
    assert request("openvino").precision == "fp32"
    assert request("tensorrt").precision == "fp16"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "openvio"}, "openvino"),
        ({"target": "onnx", "precision": "fp61"}, "fp16"),
        ({"target": "onnx", "precision": "bf16"}, "--target openvino --precision bf16"),
        ({"target": "all"}, "one or several of them: --target onnx,openvino,tensorrt"),
        ({"target": "openvino", "mode": "streaming"}, "--target openvino --mode stream"),
        ({"target": "onnx", "batch": 0}, "--batch 1"),
        ({"target": "tensorrt", "dynamic_batch": True}, "--batch 1"),
        ({"target": "onnx", "workspace": 5}, "--target tensorrt"),
        ({"target": "openvino", "version_compatible": True}, "--target tensorrt"),
        ({"target": "tensorrt", "precision": "fp32", "dla": 0}, "--precision fp16 --dla"),
    ],
)
def test_refusals_name_the_nearest(arguments: dict, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        request(**arguments)
    assert words in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_the_help_names_every_target() -> None:
    from typer.testing import CliRunner

    from dtkd_edge.cli import app

    text = CliRunner().invoke(app, ["export", "--help"]).output
    assert all(name in text for name in TARGETS)


def test_the_page_in_docs_has_the_table() -> None:
    from typer.testing import CliRunner

    from dtkd_edge.cli import app

    page = Path(__file__).parents[2] / "docs" / "export.md"
    table = CliRunner().invoke(app, ["export", "--markdown"]).stdout
    assert table == support_table()
    assert table in page.read_text(encoding="utf-8"), "put the output of `dtkd-edge export --markdown` into docs/export.md"


def test_the_support_table_has_a_row_for_each_and_explains_its_words() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in support_table().splitlines() if line.startswith("|")][2:]
    assert [(row[0], row[2].partition(" ")[0]) for row in rows] == [(t.name, p) for t in TARGETS.values() for p in t.precisions]
    devices = [part for row in rows for part in row[5].split(", ")]
    words = {how if how == RUN else f"not run ({how})": text for how, text in HOW.items()}
    for device, _, how in (part.partition(": ") for part in devices):
        assert how in words and f"- **{how}**: {words[how]}." in support_table()
        assert (how == RUN) == (device == "x86-64 CPU")  # the only kind of machine that the tests have run on
    extras = {extra for row in rows for extra in re.findall(r"`(\w+)`", row[-1] + row[-2])}
    with (Path(__file__).parents[2] / "pyproject.toml").open(encoding="utf-8") as lines:
        assert extras <= {line.partition(" =")[0].strip() for line in lines}


def test_a_library_that_is_too_old_is_exit_4_with_the_line_that_upgrades_it(monkeypatch: pytest.MonkeyPatch) -> None:
    row = TARGETS["openvino"]
    check_needs(row, "fp32")
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2024.6.0-1" if name == "openvino" else real(name))
    with pytest.raises(MissingDependency, match=r"openvino 2025\.0 or newer, 2024\.6\.0-1 is installed") as caught:
        check_needs(row, "fp32")
    assert caught.value.exit_code == 4 and caught.value.hint == 'pip install --upgrade "openvino>=2025.0"'


def test_a_module_of_another_distribution_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:  # onnxruntime-gpu brings the module onnxruntime
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", unknown)
    check_needs(TARGETS["onnx"], "fp32")


def test_an_int8_that_is_slower_than_a_float_is_said(capsys: pytest.CaptureFixture) -> None:
    int8 = request("openvino", "int8")
    say_what_is_faster(int8, {"here": 3.0, "torch": 1.0, "fp32": 4.0, "bf16": 2.0})
    said = capsys.readouterr().err
    assert "bf16 takes 2.00 ms, int8 3.00" in said and "--target openvino --precision auto" in said
    say_what_is_faster(int8, {"here": 1.0, "fp32": 4.0, "bf16": 2.0})
    assert not capsys.readouterr().err
