import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_runs import write_run

from dtkd_edge.artifact import Artifact, digest, new_artifact
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.errors import ArtifactError, CheckpointError, InputError, MissingDependency, UsageError, VerificationError
from dtkd_edge.export import verify
from dtkd_edge.export.command import export
from dtkd_edge.export.golden import Golden
from dtkd_edge.export.targets import TARGETS
from dtkd_edge.runs import run_artifacts


@pytest.fixture(scope="module")
def onnx_artifact(run: Path) -> Path:
    return export(run, target="onnx")


def cli(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dtkd_edge", *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=200, check=False)


def test_an_onnx_artefact_is_whole(onnx_artifact: Path, run: Path) -> None:
    artifact = Artifact.open(onnx_artifact)
    manifest = artifact.manifest
    assert onnx_artifact == run / "export" / "onnx-fp32"
    assert set(manifest.files) == {"model.onnx", "golden.npz"}
    assert manifest.verify is not None and manifest.verify.passed
    assert manifest.verify.clips == 6 and manifest.verify.top1_agreement == 1.0
    assert manifest.verify.max_abs < 1e-4 and manifest.verify.speedup
    assert manifest.model.parameters > 10_000 and manifest.model.macs > 1e6
    assert manifest.labels == {"action": ["left", "right"]}
    assert str(run) not in (onnx_artifact / "manifest.json").read_text()  # no path of this machine
    assert run_artifacts(run) == [onnx_artifact] or onnx_artifact in run_artifacts(run)


def test_openvino(run: Path) -> None:
    import openvino as ov

    folder = export(run, target="openvino", precision="fp16", batch=2)
    manifest = Artifact.open(folder).manifest
    assert manifest.verify is not None and manifest.verify.passed
    model = ov.Core().read_model(folder / "model.xml")
    assert model.get_rt_info(["dtkd_edge", "precision"]).astype(str) == "fp16"
    assert model.inputs[0].any_name == "frames" and str(model.inputs[0].get_element_type()) == "<Type: 'uint8_t'>"
    assert [port.any_name for port in model.outputs] == ["action"]


ROWS = [(t.name, precision, mode) for t in TARGETS.values() for precision in t.precisions for mode in t.modes]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision", "mode"), ROWS)
def test_every_row_of_the_support_table(causal: Path, target: str, precision: str, mode: str) -> None:
    """What the table calls `run` on a CPU is; what it calls `bindings` is run as a graph."""
    options = {"max_drop": 100.0} if precision == "int8" else {}  # an untrained network has no accuracy to lose
    folder = causal / "export" / f"{target}-{precision}{'-stream' if mode == 'stream' else ''}"
    if target == "tensorrt":
        with pytest.raises(MissingDependency, match="the engine-ready ONNX is there"):
            export(causal, target=target, precision=precision, mode=mode, **options)
    else:
        assert export(causal, target=target, precision=precision, mode=mode, **options) == folder
    artifact = Artifact.open(folder)
    manifest = artifact.manifest
    assert (manifest.target, manifest.precision, manifest.mode) == (target, precision, mode)
    assert set(TARGETS[target].files) - {"model.engine"} <= set(manifest.files)
    assert manifest.verify is not None and manifest.verify.passed
    assert (manifest.quantization is not None) == (precision == "int8")
    export(folder, verify_only=True)


def test_tensorrt_leaves_the_engine_ready_folder_and_says_what_to_run(run: Path) -> None:
    result = cli("export", str(run), "--target", "tensorrt", "--dla", "0", "--hardware-compatible")
    assert result.returncode == 4, result.stderr
    folder = run / "export" / "tensorrt-fp16"
    assert (
        "dtkd-edge export tensorrt-fp16 --target tensorrt --hardware-compatible --dla 0" in result.stderr
        and str(folder) in result.stderr
    )
    assert "Traceback" not in result.stderr
    manifest = Artifact.open(folder).manifest
    assert manifest.target == "tensorrt" and manifest.precision == "fp16" and manifest.engine_key is None
    assert manifest.verify is not None and manifest.verify.passed
    with pytest.raises(MissingDependency):  # what the device would run, here
        export(folder, target="tensorrt")
    assert Artifact.open(folder).manifest == manifest  # and it left the folder as it was
    with pytest.raises(UsageError):
        export(folder, target="onnx")
    with pytest.raises(UsageError):
        export(folder, target="tensorrt", precision="fp32")


def test_out_never_replaces_what_is_no_artefact(run: Path, tmp_path: Path) -> None:
    """An export replaces its folder whole, so a mistyped --out must not cost somebody a project."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "mine" / "manifest.json").write_text('{"name": "a web page has one too"}')
    (tmp_path / "model.onnx").write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    folders, others = ("mine", ".", run), ("model.onnx", "link", "dangling")
    for out, why in [*((out, "holds something else") for out in folders), *((out, "would be replaced by") for out in others)]:
        with pytest.raises(UsageError, match=why):
            export(run, target="onnx", out=tmp_path / out)
    assert (tmp_path / "model.onnx").read_text() == "a file"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years" and (run / "recipe.yaml").is_file()


def test_out_may_be_new_or_empty_or_an_older_artefact(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    export(run, target="onnx", out=Path())  # '.', which has no name to put a folder beside
    before = Artifact.open(tmp_path / "there").manifest
    export(run, target="onnx", out=tmp_path / "there", batch=2)
    assert before.input.shape[0] == 1 and Artifact.open(tmp_path / "there").manifest.input.shape[0] == 2


def test_an_engine_is_not_built_elsewhere(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="the engine is not"):
        export(run, target="tensorrt")
    with pytest.raises(UsageError, match="--out"):
        export(run / "export" / "tensorrt-fp16", target="tensorrt", out=tmp_path / "new")


def test_openvino_that_cannot_write_names_the_folder(onnx_artifact: Path, tmp_path: Path) -> None:
    from dtkd_edge.export.openvino import convert, write_ir

    (tmp_path / "model.xml").mkdir()  # what a full disk is like to OpenVINO: a RuntimeError
    with pytest.raises(InputError, match=f"{tmp_path}: OpenVINO cannot write there") as caught:
        write_ir(convert(onnx_artifact / "model.onnx"), tmp_path, precision="fp32", entries={})
    assert "disk full" in caught.value.hint


def test_verify_only_needs_no_torch_and_no_run(onnx_artifact: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(onnx_artifact, tmp_path / "there")
    blocker = tmp_path / "block"
    for name in ("torch", "onnx", "timm"):
        (blocker / name).mkdir(parents=True)
        (blocker / name / "__init__.py").write_text("raise ImportError('not on this device')")
    before = (moved / "manifest.json").read_bytes()
    result = cli("export", "--verify-only", str(moved), PYTHONPATH=str(blocker))
    assert result.returncode == 0, result.stderr
    assert "verified" in result.stderr and re.search(r", \d+\.\d\d ms on one thread\n", result.stderr)
    assert (moved / "manifest.json").read_bytes() == before


def test_a_graph_that_computes_something_else_is_refused_and_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dtkd_edge.export import graph

    monkeypatch.setattr(graph.EdgeGraph, "forward", lambda self, frames: tuple(
        self.student(frames.float().permute(0, 4, 1, 2, 3) * self.edge.scale[:, None]).values()))  # fmt: skip
    with pytest.raises(VerificationError, match=r"of the logits. spread, 0.0005 is allowed") as caught:
        export(run, target="onnx", out=tmp_path / "wrong")
    assert caught.value.exit_code == 5
    kept = Artifact.open(tmp_path / "wrong")
    assert kept.manifest.verify is not None and not kept.manifest.verify.passed


def test_a_wrong_graph_is_found_later_too(onnx_artifact: Path, tmp_path: Path) -> None:
    """The stored clips alone find weights that were exchanged, manifest and hashes included."""
    import onnx

    from dtkd_edge.files import sha256

    folder = shutil.copytree(onnx_artifact, tmp_path / "exchanged")
    proto = onnx.load(folder / "model.onnx")
    weight = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    values = onnx.numpy_helper.to_array(weight) * 1.05
    weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weight.name))
    onnx.save(proto, folder / "model.onnx")
    with pytest.raises(ArtifactError, match="changed"):
        export(folder, verify_only=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = sha256(folder / "model.onnx")
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest(manifest)}))
    with pytest.raises(VerificationError):
        export(folder, verify_only=True)


def test_golden_clips_are_real_and_adversarial(onnx_artifact: Path) -> None:
    artifact = Artifact.open(onnx_artifact)
    golden = Golden.load(artifact)
    assert golden.real.tolist() == [True] * 4 + [False] * 3
    black, white, noise = golden.frames[4:]
    assert (black == 0).all() and (white == 255).all() and 100 < noise.mean() < 155
    with open_backend(artifact) as backend:
        part = verify.compare(backend, golden, "fp32")
    assert part.passed and part.clips == 4


def test_an_unfinished_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\nstudent: {model: tsm_tiny}\n")
    with pytest.raises(CheckpointError) as caught:
        export(tmp_path)
    assert "--resume" in caught.value.hint


def test_a_run_of_another_version_or_model(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("export"))
    card = json.loads((other / "student.json").read_text())
    (other / "student.json").write_text(json.dumps({**card, "schema": "dtkd-edge/model/0"}))
    with pytest.raises(CheckpointError, match="schema: "):
        export(other)
    (other / "student.json").write_text(json.dumps({**card, "version": "9.1.0", "colour": "red"}))
    with pytest.raises(CheckpointError, match=r"written by dtkd-edge 9\.1\.0, this is .*: colour: ") as caught:
        export(other)
    assert caught.value.hint == "use dtkd-edge 9.1.0, or train again"
    (other / "student.json").write_text(json.dumps({**card, "options": {"width": 24}}))
    with pytest.raises(CheckpointError, match="does not fit"):
        export(other)
    assert not (other / "export").exists()


def test_data_that_is_gone(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        export(run, out=tmp_path / "out", overrides=[f"data.root={tmp_path / 'nowhere'}"])
    assert not (tmp_path / "out").exists()


def test_an_unwritable_output(onnx_artifact: Path, tmp_path: Path) -> None:
    manifest = Artifact.open(onnx_artifact).manifest
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    root = os.geteuid() == 0
    if root:  # root writes everywhere
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(InputError, match="not writable"), new_artifact(locked / "x", manifest):
            pass
    finally:
        if root:
            os.seteuid(0)


def test_an_impossible_output_is_refused_before_the_work(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    from dtkd_edge.export import build

    monkeypatch.setattr(build, "make_golden", lambda *_: pytest.fail("the network ran"))
    for out in (tmp_path / "file" / "x", Path("/proc/x")):
        with pytest.raises(InputError, match=str(out)):
            export(run, out=out)


def test_a_failed_export_leaves_the_earlier(
    onnx_artifact: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dtkd_edge.export import build

    folder = shutil.copytree(onnx_artifact, tmp_path / "kept")
    before = {f.name: f.read_bytes() for f in folder.iterdir()}

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_verify_here", dies)
    with pytest.raises(KeyboardInterrupt):
        export(run, out=folder)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_usage_errors_come_before_the_work(run: Path, tmp_path: Path) -> None:
    result = cli("export", str(run), "--target", "openvino", "--precision", "fp8")
    assert result.returncode == 2 and "nearest: --target openvino" in result.stderr
    result = cli("export", str(run), "--verify-only")
    assert result.returncode == 2


def test_a_half_written_export_is_no_artefact_and_the_next_export_replaces_it(
    onnx_artifact: Path, run: Path, tmp_path: Path
) -> None:
    half = shutil.copytree(onnx_artifact, run / "export" / "onnx-fp16")  # a copy that was cut off, where fp16 will go
    (half / "manifest.json").unlink()
    (half / "model.onnx").write_bytes((onnx_artifact / "model.onnx").read_bytes()[:1000])
    assert half not in run_artifacts(run)
    with pytest.raises(UsageError, match="needs an artefact folder"):
        export(half, verify_only=True)
    export(run, precision="fp16", clips=2)
    assert Artifact.open(half).manifest.precision == "fp16" and half in run_artifacts(run)


def test_a_missing_library_is_exit_4_with_the_install_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)  # how Python itself marks a module that cannot be imported
    with pytest.raises(MissingDependency, match="--precision int8 needs nncf") as caught:
        export(run, target="openvino", precision="int8")
    assert caught.value.exit_code == 4 and caught.value.hint == 'pip install "dtkd-edge[int8]"'


@pytest.mark.slow
def test_missing_openvino(run: Path, tmp_path: Path) -> None:
    """A module finder that hides openvino stands for a machine without it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass Hide:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'openvino': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    result = cli("export", str(run), "--target", "openvino", PYTHONPATH=str(tmp_path))
    assert result.returncode == 4, result.stderr
    assert 'pip install "dtkd-edge[openvino]"' in result.stderr


@pytest.mark.slow
def test_a_timm_student(videos: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "mobile", videos, "tsm_mobilenetv2_035", 64)
    for target, precision in (("onnx", "fp16"), ("openvino", "fp32")):
        manifest = Artifact.open(export(run, target=target, precision=precision)).manifest
        assert manifest.verify is not None and manifest.verify.passed
