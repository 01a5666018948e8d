"""ONNX Runtime: the portable artefact, on the CPU and on CUDA."""

from __future__ import annotations

import platform
from typing import Any

from numpy.typing import NDArray

from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.backends.base import Backend
from dtkd_edge.deploy.backends.devices import cpu_name, nvidia_gpus, parse_device
from dtkd_edge.errors import ArtifactError, MissingDependency, MissingDevice


class OnnxRuntimeBackend(Backend):
    name = "onnxruntime"

    def __init__(self, artifact: Artifact, *, device: str = "auto", threads: int | None = None) -> None:
        super().__init__(artifact)
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MissingDependency("onnxruntime is not installed", "pip install onnxruntime") from error
        ort.set_default_logger_severity(3)
        kind, index = parse_device(device)
        cuda = "CUDAExecutionProvider" in ort.get_available_providers()
        if kind in ("gpu", "npu"):
            raise MissingDevice(f"--device {device}: ONNX Runtime runs on cpu and cuda here", "use the openvino target for it")
        if kind == "cuda" and not cuda:
            raise MissingDevice(
                f"--device {device}: this ONNX Runtime has no CUDA", "pip install onnxruntime-gpu, or --device cpu"
            )
        options = ort.SessionOptions()
        options.use_deterministic_compute = True
        options.inter_op_num_threads = 1
        if threads:
            options.intra_op_num_threads = threads
        self._session = self._open(ort, options, cuda=cuda and kind != "cpu", index=index)
        on_cuda = self._session.get_providers()[0] == "CUDAExecutionProvider"
        if kind == "cuda" and not on_cuda:  # ONNX Runtime falls back to the CPU without a word
            raise MissingDevice(f"--device {device}: CUDA did not start", "see: dtkd-edge doctor; or --device cpu")
        self.device = f"cuda:{index}" if on_cuda else "cpu"
        names = {gpu.number: gpu.name for gpu in nvidia_gpus()} if on_cuda else {}
        self.device_name = names.get(index, self.device) if on_cuda else cpu_name()
        self.effective_precision = _effective(artifact.manifest.precision, on_cuda)

    def _open(self, ort: Any, options: Any, *, cuda: bool, index: int) -> Any:
        providers: list[Any] = ["CPUExecutionProvider"]
        if cuda:
            if hasattr(ort, "preload_dlls"):  # finds the CUDA libraries that pip installed
                ort.preload_dlls()
            # Exhaustive cuDNN search picks by timing, so two sessions may differ in the last bits.
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": index, "cudnn_conv_algo_search": "HEURISTIC"}))
        path = self.artifact.file(".onnx")
        try:
            return ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the runtime's exceptions share no base class
            reason = str(error).strip().splitlines()[0]
            raise ArtifactError(f"{path}: ONNX Runtime does not open it: {reason}", "export the run again") from error

    def _infer(self, inputs: dict[str, NDArray]) -> dict[str, NDArray]:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, inputs), strict=True))

    def close(self) -> None:
        self._session = None


def _effective(precision: str, cuda: bool) -> str:
    """ONNX Runtime's x86 CPU kernels have no half precision: it casts to float32 and back around each node."""
    if precision in ("fp16", "bf16") and not cuda and platform.machine() in ("x86_64", "AMD64"):
        return "fp32"
    return precision


open_backend = OnnxRuntimeBackend
