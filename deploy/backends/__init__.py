"""One runtime per file. To add one: write a module with `open_backend(artifact, *, device, threads)` and add it to TARGETS."""

from __future__ import annotations

import importlib

from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.backends.base import Backend
from dtkd_edge.errors import ArtifactError

# The manifest's target → the module here that runs it.
TARGETS = {"onnx": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt"}

__all__ = ["TARGETS", "Backend", "open_backend"]


def open_backend(artifact: Artifact, *, device: str = "auto", threads: int | None = None, hint: str = "latency") -> Backend:
    """Open an artefact on a device ('auto', 'cpu', 'cuda', 'cuda:N', 'gpu', 'npu'); the runtime is imported only now.

    hint: 'latency', or 'throughput' where `run` will get many clips at once; a runtime that makes no difference
    (`Backend.hints`) is opened in its one way.

    Raises MissingDependency (the runtime is not installed), MissingDevice (it is, the device is not here), ArtifactError.
    """
    target = artifact.manifest.target
    if target not in TARGETS:
        raise ArtifactError(f"{artifact.folder}: no runtime for target {target!r}", f"known: {', '.join(TARGETS)}")
    module = importlib.import_module(f"{__name__}.{TARGETS[target]}")
    more = {"hint": hint} if hint in getattr(module.open_backend, "hints", ()) else {}
    backend: Backend = module.open_backend(artifact, device=device, threads=threads, **more)
    return backend
