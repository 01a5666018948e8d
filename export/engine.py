"""Build a TensorRT engine out of an engine-ready folder, on the device that is to run it. No torch."""

from __future__ import annotations

import shutil

from dtkd_edge.artifact import Artifact, new_artifact, now, unfinished
from dtkd_edge.console import say
from dtkd_edge.export import verify
from dtkd_edge.export.golden import GOLDEN
from dtkd_edge.export.stored import latency, refuse, stored_clips, verify_stored
from dtkd_edge.export.targets import Request


def build(artifact: Artifact, request: Request) -> Artifact:
    """Build the engine of an engine-ready folder on this device; the folder is replaced whole by one that has it."""
    from dtkd_edge.deploy.backends.tensorrt import Cuda, current_key, import_tensorrt
    from dtkd_edge.export import tensorrt

    trt = import_tensorrt()
    tensorrt.check_version(trt)
    key = tensorrt.engine_key(current_key(trt, Cuda(0)), request)
    golden = stored_clips(artifact)  # before the minutes of the build
    say(f"building a TensorRT {key.tensorrt} engine for {key.gpu}; this takes minutes, the second time less")
    onnx_path = artifact.file(".onnx")
    manifest = artifact.manifest.model_copy(
        update={"engine_key": key, "created": now(), "tools": {**artifact.manifest.tools, "tensorrt": key.tensorrt}}
    )
    with new_artifact(artifact.folder, manifest) as aside:
        shutil.copy2(onnx_path, aside / onnx_path.name)
        shutil.copy2(artifact.folder / GOLDEN, aside / GOLDEN)
        log = artifact.folder.with_name(artifact.folder.name + ".build.log")  # outside: kept when the build fails
        engine = aside / "model.engine"
        tensorrt.build_engine(trt, onnx_path, engine, request, timing_cache=tensorrt.cache_path(key), log=log)
        shutil.copy2(log, aside / "build.log")
        manifest.verify = verify_stored(unfinished(aside, manifest), golden)
    built = Artifact.open(artifact.folder)
    log.unlink(missing_ok=True)
    assert built.manifest.verify is not None
    say(verify.verdict(built, built.manifest.verify, latency(built, golden)))
    refuse(built, built.manifest.verify)
    return built
