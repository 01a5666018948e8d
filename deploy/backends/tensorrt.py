"""TensorRT engines, 10.3 (JetPack 6) to 11.x: named I/O tensors, device memory by the CUDA runtime's bindings, no torch."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import Artifact, EngineKey
from dtkd_edge.deploy.backends.base import Backend
from dtkd_edge.deploy.backends.devices import jetson_model, parse_device
from dtkd_edge.errors import ArtifactError, MissingDependency, MissingDevice, NotHereError

# What to do, on a PC and on a Jetson: there the libraries are JetPack's, and pip's are of desktop GPUs.
ADVICE = {
    "missing": (
        'pip install "dtkd-edge[tensorrt]"',
        "sudo apt install python3-libnvinfer, in an environment made with: python3 -m venv --system-site-packages",
    ),
    "too old": (
        'pip install --upgrade "tensorrt>=10.3"',
        "sudo apt update && sudo apt install nvidia-jetpack (JetPack 6.1 or newer has TensorRT 10.3; flash an older one anew)",
    ),
    "no cuda-python": (
        'pip install "dtkd-edge[tensorrt]"',
        'pip install "cuda-python>=12.4,<13" (JetPack 7: "cuda-python>=13")',
    ),
}
TRIALS = 7  # launches of each kind, to see whether a CUDA graph is faster
AMPERE = (8, 0)  # the compute capability from which on engines can be built for other GPUs


class TensorRTBackend(Backend):
    name = "tensorrt"

    def __init__(self, artifact: Artifact, *, device: str = "auto", threads: int | None = None) -> None:
        super().__init__(artifact)
        kind, index = parse_device(device)
        if kind not in ("auto", "cuda"):
            raise MissingDevice(
                f"--device {device}: a TensorRT engine runs on an NVIDIA GPU only", "use the onnx or openvino target"
            )
        self._trt, self._cuda = import_tensorrt(), Cuda(index)
        check_engine_key(artifact, current_key(self._trt, self._cuda))
        self.device, self.device_name = f"cuda:{index}", self._cuda.name
        self.effective_precision = artifact.manifest.effective_precision
        path = artifact.file(".engine")
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        key = artifact.manifest.engine_key
        if key is not None and key.version_compatible:  # such an engine carries a small runtime of its own, which is code
            self._runtime.engine_host_code_allowed = True
        if key is not None and key.dla is not None:
            self._runtime.DLA_core = key.dla
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ArtifactError(f"{path}: TensorRT {self._trt.__version__} does not load it", _rebuild(artifact))
        self._context = self._engine.create_execution_context()
        self._stream = self._cuda.stream()
        self._buffers: dict[str, _Buffer] = {}
        self._graph: int | None = None  # an instantiated CUDA graph of one inference, where that is faster
        self._settled = False
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = self._trt.TensorIOMode.INPUT
        self._input_names = [name for name in names if self._engine.get_tensor_mode(name) == inputs]
        self._output_names = [name for name in names if name not in self._input_names]

    def _infer(self, inputs: dict[str, NDArray]) -> dict[str, NDArray]:
        self._cuda.use()
        for name in self._input_names:
            value = inputs[name]
            if not self._context.set_input_shape(name, value.shape):
                raise ArtifactError(
                    f"{self.artifact.folder}: the engine does not take {name} {list(value.shape)}", "see its profile"
                )
            np.copyto(self._buffer(name, tuple(value.shape)).host, value)
        outputs = {name: self._buffer(name, tuple(self._context.get_tensor_shape(name))) for name in self._output_names}
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._enqueue()
        self._cuda.synchronize(self._stream)
        results = {name: buffer.host.copy() for name, buffer in outputs.items()}
        if not self._settled:
            self._settled = True
            self._graph = self._faster_graph()
        return results

    def _enqueue(self) -> None:
        """One inference from the host's buffers to the host's buffers, put on the stream."""
        for name in self._input_names:
            self._cuda.to_device(self._buffers[name], self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise NotHereError(f"{self.artifact.folder}: TensorRT failed to run the engine", "see its log above")
        for name in self._output_names:
            self._cuda.to_host(self._buffers[name], self._stream)

    def _faster_graph(self) -> int | None:
        """The same as a CUDA graph, where launching that is faster: a small network's kernels are shorter than their launches.

        Asked once the engine has run, which TensorRT wants before a capture. Some engines cannot be captured.
        """
        try:
            graph = self._cuda.capture(self._stream, self._enqueue)
        except NotHereError:
            return None
        taken: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(TRIALS):
            for as_graph, times in taken.items():
                start = time.perf_counter()
                if as_graph:
                    self._cuda.launch(graph, self._stream)
                else:
                    self._enqueue()
                self._cuda.synchronize(self._stream)
                times.append(time.perf_counter() - start)
        if statistics.median(taken[True]) < statistics.median(taken[False]):
            return graph
        self._cuda.forget(graph)
        return None

    def _buffer(self, name: str, shape: tuple[int, ...]) -> _Buffer:
        """The tensor's memory on both sides, made anew when the shape changes (a dynamic batch)."""
        held = self._buffers.get(name)
        if held is None or held.host.shape != shape:
            if held is not None:
                del self._buffers[name]  # first: where the new one finds no memory, the old one must not be given back twice
                self._cuda.free(held)
            self._drop_graph()  # it has the old addresses in it
            held = self._buffers[name] = self._cuda.allocate(shape, self._trt.nptype(self._engine.get_tensor_dtype(name)))
            self._context.set_tensor_address(name, held.device)
        return held

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.forget(self._graph)
        self._graph, self._settled = None, False

    def close(self) -> None:
        self._drop_graph()
        for buffer in self._buffers.values():
            self._cuda.free(buffer)
        self._buffers = {}
        if self._stream:
            self._cuda.destroy(self._stream)
        self._stream = 0
        self._context = self._engine = self._runtime = None


class _Buffer:
    """One tensor: page-locked host memory as a numpy view, and a device address."""

    def __init__(self, host: NDArray, host_address: int, device: int) -> None:
        self.host, self.host_address, self.device = host, host_address, device


class Cuda:
    """The few CUDA runtime calls that an inference needs; each checks the returned error code."""

    def __init__(self, index: int) -> None:
        self._rt = _import_cuda()
        error, count = self._rt.cudaGetDeviceCount()
        if int(error) != 0 or index >= count:
            have = 0 if int(error) != 0 else count
            raise MissingDevice(
                f"cuda:{index}: {have} NVIDIA GPUs are usable here", "see: nvidia-smi; or use the onnx target on the CPU"
            )
        self.index = index
        self.use()
        (properties,) = self._call(self._rt.cudaGetDeviceProperties(index))
        name = properties.name
        self.name = name.decode().rstrip("\0") if isinstance(name, bytes) else str(name)
        self.compute_capability = f"{properties.major}.{properties.minor}"

    def use(self) -> None:
        """Make it the calling thread's GPU: CUDA keeps one per thread, and the live demo infers in a thread of its own."""
        self._call(self._rt.cudaSetDevice(self.index))

    def _call(self, result: tuple[Any, ...]) -> tuple[Any, ...]:
        if int(result[0]) != 0:
            error = getattr(result[0], "name", result[0])
            raise NotHereError(f"CUDA error {error}", "is the GPU's memory full? see: nvidia-smi")
        return result[1:]

    def stream(self) -> int:
        return int(self._call(self._rt.cudaStreamCreate())[0])

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> _Buffer:
        size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        host_address = int(self._call(self._rt.cudaMallocHost(size))[0])
        try:
            device = int(self._call(self._rt.cudaMalloc(size))[0])
        except NotHereError:
            self._rt.cudaFreeHost(host_address)
            raise
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(host_address))
        count = int(np.prod(shape))
        return _Buffer(raw[: count * np.dtype(dtype).itemsize].view(dtype).reshape(shape), host_address, device)

    def to_device(self, buffer: _Buffer, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._rt.cudaMemcpyAsync(buffer.device, buffer.host_address, buffer.host.nbytes, kind, stream))

    def to_host(self, buffer: _Buffer, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._rt.cudaMemcpyAsync(buffer.host_address, buffer.device, buffer.host.nbytes, kind, stream))

    def synchronize(self, stream: int) -> None:
        self._call(self._rt.cudaStreamSynchronize(stream))

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """What `work` puts on the stream, as a graph that can be launched. NotHereError: it cannot be captured."""
        self._call(self._rt.cudaStreamBeginCapture(stream, self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        whole = False
        try:
            work()
            whole = True
        finally:
            error, graph = self._rt.cudaStreamEndCapture(stream)
            if int(error) == 0 and not whole:
                self._rt.cudaGraphDestroy(graph)
            if int(error) != 0 or not whole:
                self._rt.cudaGetLastError()  # or whoever asks next takes it for an error of its own
        self._call((error,))
        try:
            return int(self._call(self._rt.cudaGraphInstantiate(graph, 0))[0])
        finally:
            self._call(self._rt.cudaGraphDestroy(graph))

    def launch(self, graph: int, stream: int) -> None:
        self._call(self._rt.cudaGraphLaunch(graph, stream))

    def forget(self, graph: int) -> None:
        self._call(self._rt.cudaGraphExecDestroy(graph))

    def free(self, buffer: _Buffer) -> None:
        results = self._rt.cudaFree(buffer.device), self._rt.cudaFreeHost(buffer.host_address)  # both, whatever one says
        for result in results:
            self._call(result)

    def destroy(self, stream: int) -> None:
        self._call(self._rt.cudaStreamDestroy(stream))


def advice(what: str, root: Path = Path("/")) -> str:
    """What to do about it on this machine; `what`: a key of ADVICE."""
    pc, jetson = ADVICE[what]
    return jetson if jetson_model(root) else pc


def import_tensorrt() -> Any:
    try:
        import tensorrt
    except (ImportError, OSError) as error:  # OSError: the bindings are there, their libraries are not
        raise MissingDependency(f"TensorRT is not usable here: {str(error).splitlines()[0]}", advice("missing")) from error
    return tensorrt


def _import_cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            from cuda import cudart as runtime  # cuda-python before 12.6
        except ImportError as error:
            raise MissingDependency("cuda-python is not installed", advice("no cuda-python")) from error
    return runtime


def current_key(trt: Any, cuda: Cuda) -> EngineKey:
    """What an engine built here and now would be tied to."""
    return EngineKey(gpu=cuda.name, compute_capability=cuda.compute_capability, tensorrt=trt.__version__)


def check_engine_key(artifact: Artifact, here: EngineKey) -> None:
    """An engine is a cache for one GPU and one TensorRT: say so before TensorRT fails to load it."""
    key = artifact.manifest.engine_key
    if not any(name.endswith(".engine") for name in artifact.manifest.files):
        raise ArtifactError(f"{artifact.folder}: the engine is not built yet", _rebuild(artifact).replace(" again", ""))
    if key is None:
        raise ArtifactError(f"{artifact.folder}: the manifest has no engine_key", _rebuild(artifact))
    newer = version_numbers(here.tensorrt) >= version_numbers(key.tensorrt)
    ampere = version_numbers(here.compute_capability) >= AMPERE
    fits = {
        "tensorrt": key.version_compatible and newer,
        "gpu": key.hardware_compatible and ampere,
        "compute_capability": key.hardware_compatible and ampere,
    }
    for field, anyway in fits.items():
        built, now = getattr(key, field), getattr(here, field)
        if built != now and not anyway:
            raise ArtifactError(
                f"{artifact.folder}: the engine was built for {field} {built}, here it is {now}", _rebuild(artifact)
            )


def version_numbers(text: str) -> tuple[int, ...]:
    """'10.3.0' → (10, 3, 0); 'rc' and the like are left out."""
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _rebuild(artifact: Artifact) -> str:
    return f"build it again on this device: dtkd-edge export {artifact.folder} --target tensorrt"


open_backend = TensorRTBackend
