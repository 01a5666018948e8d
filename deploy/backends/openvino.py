"""OpenVINO: Intel and other x86 CPUs, ARM CPUs, Intel GPUs and NPUs."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.backends.base import Backend
from dtkd_edge.deploy.backends.devices import parse_device
from dtkd_edge.errors import ArtifactError, MissingDependency, MissingDevice
from dtkd_edge.files import cache_folder

# Asked for by name, because OpenVINO otherwise picks bf16 on CPUs that have it and f16 on GPUs. What an int8 graph leaves in
# float runs in the precision that held its accuracy gate (`quantization.rest`).
HINT = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
EFFECTIVE = {
    "f32": "fp32",
    "float": "fp32",
    "float32": "fp32",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "f16": "fp16",
    "float16": "fp16",
}
PROPERTIES = ("PERFORMANCE_HINT", "NUM_STREAMS", "INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT")
CACHED = 16  # compiled models that are kept, the last ones made


class OpenVinoBackend(Backend):
    name = "openvino"
    hints = ("latency", "throughput")
    _request: Any = None
    _requests: tuple[Any, ...] = ()  # those that run side by side
    _kept: dict[str, Any] | None = None  # a stream's states that the runtime keeps, by their names in the manifest

    def __init__(self, artifact: Artifact, *, device: str = "auto", threads: int | None = None, hint: str = "latency") -> None:
        super().__init__(artifact)
        try:
            import openvino as ov
        except ImportError as error:
            raise MissingDependency("openvino is not installed", extra="openvino") from error
        kind, index = parse_device(device)
        core = ov.Core()
        have = core.available_devices
        chosen = self._choose(kind, index, device, have)
        precision = artifact.manifest.precision
        quantization = artifact.manifest.quantization
        floats = precision if precision != "int8" else quantization.rest if quantization else "fp32"
        if floats == "fp16" and "FP16" not in core.get_property(chosen, "OPTIMIZATION_CAPABILITIES"):
            floats = "fp32"  # asked for f16, a CPU that has only bf16 would take that, whose mantissa is eight times coarser
        if artifact.manifest.mode == "stream":
            hint = "latency"  # a frame needs the states of the one before
        config = {"PERFORMANCE_HINT": hint.upper(), "INFERENCE_PRECISION_HINT": HINT.get(floats, "f32")}
        if threads and chosen == "CPU":
            config["INFERENCE_NUM_THREADS"] = str(threads)
        compiled = _compile(core, artifact, chosen, config)
        self.device = chosen.lower()
        self.device_name = str(core.get_property(chosen, "FULL_DEVICE_NAME"))
        effective = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.effective_precision = EFFECTIVE.get(effective, effective)
        if precision == "int8":
            self.effective_precision = "int8" if self.effective_precision == "fp32" else f"int8+{self.effective_precision}"
        self._take(compiled, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if hint == "throughput" else 1)

    @property
    def properties(self) -> dict[str, str]:
        """The hint, what OpenVINO made of it, and the requests that run side by side."""
        found = {}
        for name in PROPERTIES:
            with suppress(RuntimeError):  # a GPU has no threads
                found[name] = _plain(self._compiled.get_property(name))
        return {**found, "requests": str(self.at_once)}

    def _take(self, compiled: Any, at_once: int = 1) -> None:
        self._compiled = compiled
        self._requests = tuple(compiled.create_infer_request() for _ in range(at_once))
        self._request, self.at_once = self._requests[0], at_once
        self._names = {port.any_name: port for port in compiled.outputs}
        inside = {state.name: state for state in self._request.query_state()}
        names = [state.name for state in self.artifact.manifest.input.states]
        self._kept = {name: inside[variable(name)] for name in names if variable(name) in inside}
        self.reset()

    def reset(self) -> None:
        super().reset()
        if self._request is not None and self._kept:
            self._request.reset_state()
            self._states = {}  # the runtime has them

    @property
    def states(self) -> dict[str, NDArray]:
        return super().states | {name: np.array(kept.state.data, np.float32) for name, kept in (self._kept or {}).items()}

    @staticmethod
    def _choose(kind: str, index: int, device: str, have: list[str]) -> str:
        if kind in ("auto", "cpu"):  # never GPU by itself: it would lower the precision of a plain call
            return "CPU"
        if kind == "cuda":
            raise MissingDevice(f"--device {device}: OpenVINO has no CUDA", "use the onnx or tensorrt target, or --device cpu")
        name = kind.upper()
        found = f"{name}.{index}" if f"{name}.{index}" in have else name
        if found not in have:
            raise MissingDevice(
                f"--device {device}: OpenVINO finds {', '.join(have)} here", "install its driver, or --device cpu"
            )
        return found

    def _infer(self, inputs: dict[str, NDArray]) -> dict[str, NDArray]:
        results = self._request.infer(inputs, share_inputs=True)  # outputs are copies
        return {name: np.asarray(results[port]) for name, port in self._names.items()}

    def _infer_side_by_side(self, inputs: list[dict[str, NDArray]]) -> list[dict[str, NDArray]]:
        """In turn to each request, as soon as it is free; the results in the order of the inputs."""
        out: list[dict[str, NDArray]] = []
        waiting = min(len(self._requests), len(inputs))
        for number, each in enumerate(inputs):
            if number >= waiting:
                out.append(self._result(number - waiting, waiting))
            self._requests[number % waiting].start_async(each, share_inputs=True)
        return out + [self._result(number, waiting) for number in range(len(inputs) - waiting, len(inputs))]

    def _result(self, number: int, waiting: int) -> dict[str, NDArray]:
        request = self._requests[number % waiting]
        request.wait()
        return {name: np.array(request.get_tensor(port).data) for name, port in self._names.items()}

    def close(self) -> None:
        self._request, self._kept, self._requests, self._compiled = None, None, (), None


def _plain(value: Any) -> str:
    """A property's value as a word: enumerations and types have their own."""
    return str(value.to_string() if hasattr(value, "to_string") else getattr(value, "name", value))


def with_states_inside(model: Any, names: list[str]) -> Any:
    """A stream whose states are variables of the runtime: in the layout that its kernels want, and not copied with every call."""
    from openvino.passes import MakeStateful, Manager

    manager = Manager()
    manager.register_pass(MakeStateful({name: f"{name}_next" for name in names}))
    manager.run_passes(model)
    return model


def variable(name: str) -> str:
    """What MakeStateful calls the variable of a state."""
    return f"{name}{name}_next"


def _compile(core: Any, artifact: Artifact, device: str, config: dict[str, str]) -> Any:
    """Compiled for the device, or taken from where an earlier call kept it: opening takes half the time then, or less."""
    path = artifact.file(".xml")
    # OpenVINO 2026.4 does not compile some int8 graphs with variables ("AssignAndReadValueTransformation … out of range").
    inside = device == "CPU" and artifact.manifest.precision != "int8"
    states = [state.name for state in artifact.manifest.input.states] if inside else []

    def model() -> Any:
        return with_states_inside(core.read_model(path), states) if states else path

    cache = _cache(artifact)
    if cache is not None:
        with suppress(RuntimeError):  # a kept one that was cut off, or a full disk
            return core.compile_model(model(), device, {**config, "CACHE_DIR": str(cache)})
    try:
        return core.compile_model(model(), device, config)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ArtifactError(f"{path}: OpenVINO does not open it: {lines[-1]}", "export the run again") from error


def _cache(artifact: Artifact) -> Path | None:
    """A folder for this very model's compiled forms; none for one that is being made, and where nothing can be written.

    OpenVINO tells models apart by the path and the time of the .xml, which a new export at the same place may share.
    """
    files = artifact.manifest.files
    digests = [files[name] for name in sorted(files) if name.startswith("model.")]
    if not digests or not all(digests):
        return None
    folder = cache_folder() / "openvino"
    mine = folder / hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    try:
        mine.mkdir(parents=True, exist_ok=True)
        mine.touch()
        for old in sorted(folder.iterdir(), key=lambda kept: -kept.stat().st_mtime)[CACHED:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:
        return None
    return mine


open_backend = OpenVinoBackend
