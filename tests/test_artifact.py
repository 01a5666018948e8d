from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtkd_edge.artifact import MANIFEST, SCHEMA, Artifact, Manifest, digest, new_artifact
from dtkd_edge.errors import ArtifactError


def manifest() -> Manifest:
    return Manifest.model_validate(
        {
            "schema": SCHEMA,
            "name": "tiny-onnx-fp32",
            "created": "2026-01-01T00:00:00+00:00",
            "target": "onnx",
            "precision": "fp32",
            "effective_precision": "fp32",
            "model": {"name": "tsm_tiny", "frames": 8, "stride": 1, "size": 40, "parameters": 1, "macs": 1},
            "input": {"shape": [1, 8, 40, 40, 3]},
            "preprocess": {"resize_short": 40, "crop": 40, "sampling": {"frames": 8}},
            "outputs": [{"name": "action", "head": "action", "classes": 2}],
            "labels": {"action": ["a", "b"]},
        }
    )


def make(folder: Path, content: bytes = b"weights") -> Path:
    with new_artifact(folder, manifest()) as aside:
        (aside / "model.onnx").write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "artefact")


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], seal: bool = True) -> None:
    path = folder / MANIFEST
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps({**raw, "sha256": digest(raw)} if seal else raw))


def test_comes_back_as_it_was_written(folder: Path) -> None:
    artifact = Artifact.open(folder)
    written = {"files": artifact.manifest.files, "sha256": artifact.manifest.sha256}
    assert artifact.manifest == manifest().model_copy(update=written)
    assert list(artifact.manifest.files) == ["model.onnx"]
    assert artifact.file(".onnx").read_bytes() == b"weights"


def test_the_folder_can_move(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "elsewhere")
    assert Artifact.open(tmp_path / "elsewhere").manifest.name == "tiny-onnx-fp32"


@pytest.mark.parametrize("content", [b"weightz", b"weight", b"", b"weights "])
def test_a_changed_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx: changed since it was exported") as caught:
        Artifact.open(folder)
    assert caught.value.hint == "export the run again"


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx: missing from the artefact"):
        Artifact.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["labels"]["action"].reverse(),
        lambda raw: raw["preprocess"]["sampling"].update(stride=2),
        lambda raw: raw.update(sha256="0" * 64),
        lambda raw: raw.pop("sha256"),
    ],
)
def test_an_edited_manifest_is_refused(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(folder, change, seal=False)
    with pytest.raises(ArtifactError, match=r"manifest\.json: changed since it was exported"):
        Artifact.open(folder)


def test_how_a_manifest_is_laid_out_does_not_matter(folder: Path) -> None:
    edit(folder, lambda raw: None, seal=False)  # other spaces, no last line end
    assert Artifact.open(folder).manifest.labels == {"action": ["a", "b"]}


@pytest.mark.parametrize("schema", ["dtkd-edge/artifact/2", None, 1, "", ["dtkd-edge/artifact/1"]])
def test_an_unknown_schema_is_refused(folder: Path, schema: object) -> None:
    edit(folder, lambda raw: raw.update(schema=schema))
    with pytest.raises(ArtifactError, match=r"manifest\.json: schema is .*, this version reads 'dtkd-edge/artifact/1'"):
        Artifact.open(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw["labels"]["action"].pop(), "labels: head action has 1, the output action has 2"),
        (lambda raw: raw.update(labels={}), "labels: head action has 0, the output action has 2"),
        (lambda raw: raw.update(outputs=[]), "outputs: there is none"),
        (lambda raw: raw["input"].update(shape=[1, 4, 40, 40, 3]), "input.shape: "),
        (lambda raw: raw.update(mode="stream"), "input.shape: "),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(folder: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    edit(folder, change)
    with pytest.raises(ArtifactError, match=f"manifest.json: {said}") as caught:
        Artifact.open(folder)
    assert caught.value.hint == "export the run again"


REQUIRED = ["name", "created", "target", "precision", "effective_precision", "model", "input", "preprocess", "outputs", "labels"]


@pytest.mark.parametrize("field", REQUIRED)
def test_a_missing_field_is_named(folder: Path, field: str) -> None:
    edit(folder, lambda raw: raw.pop(field))
    with pytest.raises(ArtifactError, match=rf"manifest\.json: {field}: Field required"):
        Artifact.open(folder)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda raw: raw["model"].pop("macs"), "model.macs"),
        (lambda raw: raw.update(surprise=1), "surprise"),
        (lambda raw: raw.update(precision="fp8"), "precision"),
        (lambda raw: raw["input"].update(color="BGR"), "input.color"),
        (lambda raw: raw["preprocess"].update(crop=80), "larger than resize_short"),
        (lambda raw: raw.update(labels=["a", "b"]), "labels"),
        (lambda raw: raw.update(files={}), "names no file"),
        (lambda raw: raw.pop("files"), "names no file"),
    ],
)
def test_a_wrong_field_is_named(folder: Path, change: Callable[[dict[str, Any]], Any], where: str) -> None:
    edit(folder, change)
    with pytest.raises(ArtifactError, match=where):
        Artifact.open(folder)


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/passwd", "a/b.onnx", "..", ".", "", "manifest.json", "./model.onnx"])
@pytest.mark.parametrize("check_files", [True, False])
def test_names_cannot_leave_the_folder(folder: Path, name: str, check_files: bool) -> None:
    (folder.parent / "secret.onnx").write_bytes(b"weights")
    edit(folder, lambda raw: raw.update(files={name: next(iter(raw["files"].values()))}))
    with pytest.raises(ArtifactError, match="not the name of a file in the artefact's folder"):
        Artifact.open(folder, check_files=check_files)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "42", '"x"', "[" * 100_000, "\x00", '{"schema":'])
def test_a_broken_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json: (not readable|schema is None)"):
        Artifact.open(folder)


def test_not_even_text(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="not readable"):
        Artifact.open(folder)


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_no_artefact(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=f"{place}: no artefact here") as caught:
        Artifact.open(tmp_path / place)
    assert "dtkd-edge export" in caught.value.hint


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_a_half_written_manifest_is_never_believed(folder: Path, data: st.DataObject) -> None:
    whole = (folder / MANIFEST).read_bytes()
    try:
        (folder / MANIFEST).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 3))])
        with pytest.raises(ArtifactError):
            Artifact.open(folder)
    finally:
        (folder / MANIFEST).write_bytes(whole)


def test_an_export_that_fails_leaves_the_previous_artefact(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_artifact(folder, manifest()) as aside:
        (aside / "model.onnx").write_bytes(b"half")
        1 / 0  # noqa: B018
    assert Artifact.open(folder).file(".onnx").read_bytes() == b"weights"
    assert [p.name for p in folder.parent.iterdir()] == ["artefact"]


def test_an_export_that_is_killed_leaves_no_valid_half(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_artifact import manifest
from dtkd_edge.artifact import new_artifact
with new_artifact(Path("artefact"), manifest()) as aside:
    (aside / "model.onnx").write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert done.returncode == -9
    assert not (tmp_path / "artefact").exists()
    assert not list(tmp_path.rglob(MANIFEST))


def test_two_files_of_one_kind_are_ambiguous(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "a", manifest()) as aside:
        (aside / "one.onnx").write_bytes(b"1")
        (aside / "two.onnx").write_bytes(b"2")
    artifact = Artifact.open(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"2 \.onnx files"):
        artifact.file(".onnx")
    with pytest.raises(ArtifactError, match=r"0 \.engine files"):
        artifact.file(".engine")


def test_the_manifest_can_be_rewritten_after_verification(folder: Path) -> None:
    artifact = Artifact.open(folder)
    artifact.rewrite_manifest(artifact.manifest.model_copy(update={"tools": {"onnxruntime": "1"}}))
    assert Artifact.open(folder).manifest.tools == {"onnxruntime": "1"}
