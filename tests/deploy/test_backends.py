"""The runtimes against torch on the same frames, and what they say about where they ran."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_cases import manifest

from dtkd_edge.artifact import Artifact, new_artifact
from dtkd_edge.benchmarks.queries import OPEN_BATCH, make_inputs, make_query
from dtkd_edge.benchmarks.scenarios import SCENARIOS
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.deploy.backends.openvino import OpenVinoBackend
from dtkd_edge.errors import ArtifactError, MissingDevice, UsageError


def expected(graph: Any, clips: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return np.asarray(graph(torch.from_numpy(clips)).numpy())


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_matches_torch_for_any_number_of_clips(
    target: str, request: pytest.FixtureRequest, torch_graph: Any, clips: np.ndarray
) -> None:
    artifact = Artifact.open(request.getfixturevalue(f"{target}_artifact"))
    want = expected(torch_graph, clips)
    assert np.ptp(want) > 1  # the clips and the model tell something apart
    with open_backend(artifact, device="cpu", threads=1) as backend:
        for count in (1, 3, 2):
            out = backend.run(clips[:count])
            assert list(out) == ["action"]
            assert out["action"].dtype == np.float32 and out["action"].shape == (count, 8)
            np.testing.assert_allclose(out["action"], want[:count], atol=2e-4)
        assert backend.effective_precision == "fp32"
        assert backend.device == "cpu" and len(backend.device_name) > 2
        first = backend.run(clips)["action"]
        kept = first.copy()
        backend.run(255 - clips)
        np.testing.assert_array_equal(first, kept)  # a result is the caller's own
        np.testing.assert_array_equal(backend.run(clips)["action"], kept)  # deterministic


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_run_blocks_until_the_result_is_on_the_host(target: str, request: pytest.FixtureRequest, clips: np.ndarray) -> None:
    """The frames may be overwritten the moment run returns, and the result is whole by then; the TensorRT backend has the same
    test in tests/export/trt_cases.py."""
    artifact = Artifact.open(request.getfixturevalue(f"{target}_artifact"))
    inputs = [clips[:1], 255 - clips[:1]]
    with open_backend(artifact, device="cpu", threads=1) as backend:
        wanted = [backend.run(frames)["action"].copy() for frames in inputs]
        assert not np.array_equal(*wanted)
        frames = np.empty_like(inputs[0])
        for turn in range(50):
            np.copyto(frames, inputs[turn % 2])
            out = backend.run(frames)["action"]
            frames.fill(turn)
            seen = out.copy()
            np.testing.assert_array_equal(seen, wanted[turn % 2])
        time.sleep(0.05)
        np.testing.assert_array_equal(out, seen)  # nothing writes into it any more


def test_openvino_runs_in_the_precision_that_the_manifest_asks_for(openvino_artifact: Path) -> None:
    artifact = Artifact.open(openvino_artifact)
    bf16 = artifact.manifest.model_copy(update={"precision": "bf16"})
    with open_backend(Artifact(artifact.folder, bf16)) as backend:
        assert backend.effective_precision in ("bf16", "fp32")  # fp32: a CPU without bf16
    fp16 = artifact.manifest.model_copy(update={"precision": "fp16"})
    with open_backend(Artifact(artifact.folder, fp16)) as backend:  # left alone, OpenVINO takes bf16 on a CPU that has no f16
        assert backend.effective_precision in ("fp16", "fp32")


@pytest.mark.parametrize("threads", [None, 1])
def test_throughput_gives_every_clip_its_own_answer(openvino_artifact: Path, clips: np.ndarray, threads: int | None) -> None:
    """Many requests side by side: the order is kept, also over several calls and for numbers of clips that do not divide."""
    artifact = Artifact.open(openvino_artifact)
    many = np.stack([np.roll(clips[i % len(clips)], 3 * i, axis=2) for i in range(23)])
    with open_backend(artifact, device="cpu", threads=threads) as one:
        wanted = one.run(many)["action"]
        assert one.at_once == 1 and one.properties["PERFORMANCE_HINT"] == "LATENCY" and one.properties["NUM_STREAMS"] == "1"
    assert len(np.unique(wanted.round(4), axis=0)) == len(many)
    with open_backend(artifact, device="cpu", threads=threads, hint="throughput") as wide:
        for count in (23, 1, 5, 2):
            np.testing.assert_allclose(wide.run(many[:count])["action"], wanted[:count], atol=1e-5)
        settings = wide.properties
    assert settings["PERFORMANCE_HINT"] == "THROUGHPUT" and int(settings["requests"]) >= int(settings["NUM_STREAMS"]) >= 1
    assert settings["INFERENCE_PRECISION_HINT"] == "f32" and (threads is None or settings["INFERENCE_NUM_THREADS"] == "1")


def test_throughput_shares_out_an_open_batch(onnx_artifact: Path, clips: np.ndarray, tmp_path: Path) -> None:
    """A graph that takes any number of clips gets a part of them on each request, and a bench's query no more than that."""
    ov = pytest.importorskip("openvino")
    graph = Artifact.open(onnx_artifact).file(".onnx")
    shape = [-1, *clips.shape[1:]]
    with new_artifact(tmp_path / "openvino-fp32", manifest("openvino", batch=-1)) as aside:
        ov.save_model(ov.convert_model(graph, input=[("frames", shape)]), aside / "model.xml", compress_to_fp16=False)
    artifact = Artifact.open(tmp_path / "openvino-fp32")
    many = np.stack([np.roll(clips[i % len(clips)], 3 * i, axis=2) for i in range(23)])
    with open_backend(artifact, device="cpu") as one:
        wanted = one.run(many)["action"]
    with open_backend(artifact, device="cpu", hint="throughput") as wide:
        assert isinstance(wide, OpenVinoBackend)
        wide._take(wide._compiled, 4)  # on any machine as many
        for count in (23, 1, 5, 4):
            np.testing.assert_allclose(wide.run(many[:count])["action"], wanted[:count], atol=1e-5)
        wide.run(many[:22])
        sizes = [request.get_tensor("frames").shape[0] for request in wide._requests]
        assert sizes == [6, 6, 6, 6]
        inputs = make_inputs(artifact.manifest.preprocess)
        assert make_query(wide, SCENARIOS["offline"], (), inputs)[1] == 4 * OPEN_BATCH
        assert make_query(wide, SCENARIOS["multi-stream"], (), inputs)[1] == 8


def test_a_runtime_without_hints_is_opened_in_its_one_way(onnx_artifact: Path, clips: np.ndarray) -> None:
    with open_backend(Artifact.open(onnx_artifact), device="cpu", hint="throughput") as backend:
        assert backend.at_once == 1 and backend.run(clips)["action"].shape[0] == len(clips)


@pytest.mark.parametrize(("target", "device"), [("onnx", "cuda"), ("onnx", "gpu"), ("openvino", "cuda"), ("openvino", "npu")])
def test_a_device_that_is_not_here(target: str, device: str, request: pytest.FixtureRequest) -> None:
    artifact = Artifact.open(request.getfixturevalue(f"{target}_artifact"))
    with pytest.raises(MissingDevice, match=device) as caught:
        open_backend(artifact, device=device)
    assert caught.value.exit_code == 4 and caught.value.hint


def test_wrong_frames_are_refused_in_words(onnx_artifact: Path, clips: np.ndarray) -> None:
    with open_backend(Artifact.open(onnx_artifact), device="cpu") as backend:
        with pytest.raises(UsageError, match="uint8"):
            backend.run(clips.astype(np.float32))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"\[N, 8, 40, 40, 3\]"):
            backend.run(clips[:, :, :30])
        with pytest.raises(UsageError, match="not a device"):
            open_backend(Artifact.open(onnx_artifact), device="tpu")


def test_a_model_that_the_runtime_cannot_open(onnx_artifact: Path, tmp_path: Path) -> None:
    artifact = Artifact.open(onnx_artifact)
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ArtifactError, match="does not open it"):
        open_backend(Artifact(tmp_path, artifact.manifest), device="cpu")
    unknown = artifact.manifest.model_copy(update={"target": "abacus"})
    with pytest.raises(ArtifactError, match="abacus"):
        open_backend(Artifact(tmp_path, unknown))


def test_openvino_keeps_what_it_compiled_and_does_not_depend_on_it(
    openvino_artifact: Path, clips: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DTKD_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dtkd_edge.deploy.backends.openvino.CACHED", 2)
    for name in ("older", "oldest"):
        (tmp_path / "cache" / "openvino" / name).mkdir(parents=True)
        os.utime(tmp_path / "cache" / "openvino" / name, (1e9, 1e9 - len(name)))
    artifact = Artifact.open(openvino_artifact)

    def once() -> np.ndarray:
        with open_backend(artifact, device="cpu") as backend:
            assert backend.effective_precision == "fp32"
            return backend.run(clips)["action"]

    first = once()
    assert not (tmp_path / "cache" / "openvino" / "oldest").exists() and (tmp_path / "cache" / "openvino" / "older").exists()
    (kept,) = (tmp_path / "cache" / "openvino").rglob("*.blob")
    written = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(once(), first)
    assert kept.stat().st_mtime_ns == written  # taken, not made again
    kept.write_bytes(kept.read_bytes()[:1000])
    np.testing.assert_array_equal(once(), first)
    monkeypatch.setenv("DTKD_EDGE_CACHE", str(openvino_artifact / "model.xml"))  # a file: nothing can be kept there
    np.testing.assert_array_equal(once(), first)
