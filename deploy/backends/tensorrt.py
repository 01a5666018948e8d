"""TensorRT engines, 10.3 (JetPack 6) to 11.x: named I/O tensors, device memory by the CUDA runtime's bindings, no torch."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import Artifact, EngineKey
from dtkd_edge.deploy.backends.base import Backend
from dtkd_edge.deploy.backends.devices import parse_device
from dtkd_edge.errors import ArtifactError, MissingDependency, MissingDevice, NotHereError

INSTALL = (
    'pip install "dtkd-edge[tensorrt]"; on a Jetson JetPack brings tensorrt: make the environment with --system-site-packages'
)


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
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ArtifactError(f"{path}: TensorRT {self._trt.__version__} does not load it", _rebuild(artifact))
        self._context = self._engine.create_execution_context()
        self._stream = self._cuda.stream()
        self._buffers: dict[str, _Buffer] = {}
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
            buffer = self._buffer(name, tuple(value.shape))
            np.copyto(buffer.host, value)
            self._cuda.to_device(buffer, self._stream)
        outputs = {name: self._buffer(name, tuple(self._context.get_tensor_shape(name))) for name in self._output_names}
        if not self._context.execute_async_v3(self._stream):
            raise NotHereError(f"{self.artifact.folder}: TensorRT failed to run the engine", "see its log above")
        for buffer in outputs.values():
            self._cuda.to_host(buffer, self._stream)
        self._cuda.synchronize(self._stream)
        return {name: buffer.host.copy() for name, buffer in outputs.items()}

    def _buffer(self, name: str, shape: tuple[int, ...]) -> _Buffer:
        """The tensor's memory on both sides, made anew when the shape changes (a dynamic batch)."""
        held = self._buffers.get(name)
        if held is None or held.host.shape != shape:
            if held is not None:
                self._cuda.free(held)
            held = self._buffers[name] = self._cuda.allocate(shape, self._trt.nptype(self._engine.get_tensor_dtype(name)))
            self._context.set_tensor_address(name, held.device)
        return held

    def close(self) -> None:
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
            raise NotHereError(f"CUDA error {result[0]}", "is the GPU's memory full? see: nvidia-smi")
        return result[1:]

    def stream(self) -> int:
        return int(self._call(self._rt.cudaStreamCreate())[0])

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> _Buffer:
        size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        host_address = int(self._call(self._rt.cudaMallocHost(size))[0])
        device = int(self._call(self._rt.cudaMalloc(size))[0])
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

    def free(self, buffer: _Buffer) -> None:
        self._call(self._rt.cudaFree(buffer.device))
        self._call(self._rt.cudaFreeHost(buffer.host_address))

    def destroy(self, stream: int) -> None:
        self._call(self._rt.cudaStreamDestroy(stream))


def import_tensorrt() -> Any:
    try:
        import tensorrt
    except (ImportError, OSError) as error:  # OSError: the bindings are there, their libraries are not
        raise MissingDependency(f"TensorRT is not usable here: {str(error).splitlines()[0]}", INSTALL) from error
    return tensorrt


def _import_cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            from cuda import cudart as runtime  # cuda-python before 12.6
        except ImportError as error:
            raise MissingDependency("cuda-python is not installed", extra="tensorrt") from error
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
    for field in ("tensorrt", "gpu", "compute_capability"):
        built, now = getattr(key, field), getattr(here, field)
        if built != now:
            raise ArtifactError(
                f"{artifact.folder}: the engine was built for {field} {built}, here it is {now}", _rebuild(artifact)
            )


def _rebuild(artifact: Artifact) -> str:
    return f"build it again on this device: dtkd-edge export {artifact.folder} --target tensorrt"


open_backend = TensorRTBackend
