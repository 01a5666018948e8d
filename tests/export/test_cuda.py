"""The TensorRT runner's CUDA calls against the real bindings, cuda-python's: names, arguments, returned values, what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_device import HAS_GPU, NAME, Gpu, runtime

from dtkd_edge.deploy.backends import tensorrt
from dtkd_edge.deploy.backends.tensorrt import Cuda
from dtkd_edge.errors import MissingDevice, NotHereError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    device = Gpu()
    monkeypatch.setattr(tensorrt, "_import_cuda", lambda: device)
    return device


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")
def test_without_a_driver_the_real_bindings_find_no_gpu() -> None:
    assert tensorrt._import_cuda() is runtime
    with pytest.raises(MissingDevice, match=r"cuda:0: 0 NVIDIA GPUs are usable here"):
        Cuda(0)


def test_the_device_says_what_it_is(gpu: Gpu) -> None:
    cuda = Cuda(0)
    assert (cuda.name, cuda.compute_capability) == (NAME, "8.7")
    assert gpu.calls.index("cudaSetDevice") < gpu.calls.index("cudaGetDeviceProperties")
    with pytest.raises(MissingDevice, match=r"cuda:1: 1 NVIDIA GPUs are usable here"):
        Cuda(1)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 3), np.uint8), ((1, 5), np.float16), ((3,), np.float32), ((), np.int64), ((0, 4), np.float32)]
)
def test_a_tensor_goes_there_and_comes_back(gpu: Gpu, shape: tuple[int, ...], dtype: type) -> None:
    cuda = Cuda(0)
    stream = cuda.stream()
    buffer = cuda.allocate(shape, dtype)
    assert buffer.host.shape == shape and buffer.host.dtype == dtype and buffer.host.flags.writeable
    want = np.arange(buffer.host.size).astype(dtype).reshape(shape)
    buffer.host[...] = want
    cuda.to_device(buffer, stream)
    cuda.synchronize(stream)
    assert np.array_equal(gpu.read(buffer.device, buffer.host), want)
    buffer.host[...] = 0
    cuda.to_host(buffer, stream)
    assert not buffer.host.any()  # only put on the stream
    cuda.synchronize(stream)
    assert np.array_equal(buffer.host, want)
    cuda.free(buffer)
    cuda.destroy(stream)
    assert not gpu.memory and not gpu.streams


def test_copies_say_which_way_they_go(gpu: Gpu) -> None:
    """The kind is what a real device goes by; the one of host memory here does not care."""
    seen: list[Any] = []
    copy = gpu._memcpy_async
    gpu._memcpy_async = lambda *args: seen.append(args) or copy(*args)  # type: ignore[method-assign, func-returns-value]
    cuda = Cuda(0)
    stream, buffer = cuda.stream(), cuda.allocate((2, 2), np.float32)
    cuda.to_device(buffer, stream)
    cuda.to_host(buffer, stream)
    kind = runtime.cudaMemcpyKind
    there, back = buffer.host_address, buffer.device
    assert seen == [
        (back, there, 16, kind.cudaMemcpyHostToDevice, stream),
        (there, back, 16, kind.cudaMemcpyDeviceToHost, stream),
    ]


def test_a_captured_graph_repeats_the_work_with_what_the_host_has_then(gpu: Gpu) -> None:
    cuda = Cuda(0)
    stream, buffer = cuda.stream(), cuda.allocate((4,), np.uint8)
    graph = cuda.capture(stream, lambda: cuda.to_device(buffer, stream))
    assert not gpu.streams[stream]  # a capture runs nothing
    for value in (7, 9):
        buffer.host[...] = value
        cuda.launch(graph, stream)
        cuda.synchronize(stream)
        assert (gpu.read(buffer.device, buffer.host) == value).all()
    assert len(gpu.graphs) == 1  # the captured one is gone, the one that is launched is left
    cuda.forget(graph)
    cuda.free(buffer)
    cuda.destroy(stream)
    assert not gpu.graphs and not gpu.memory


def test_a_capture_ends_even_when_the_work_fails(gpu: Gpu) -> None:
    cuda = Cuda(0)
    stream = cuda.stream()

    def fails() -> None:
        raise NotHereError("no")

    gpu.calls.clear()
    with pytest.raises(NotHereError):
        cuda.capture(stream, fails)
    assert gpu.calls == ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphDestroy", "cudaGetLastError"]
    assert gpu.capturing is None and not gpu.graphs


@pytest.mark.parametrize("name", ["cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_graph_that_does_not_come_about_leaves_nothing(gpu: Gpu, name: str) -> None:
    cuda = Cuda(0)
    stream = cuda.stream()
    gpu.fails = {name: runtime.cudaError_t.cudaErrorStreamCaptureInvalidated}
    with pytest.raises(NotHereError, match="cudaErrorStreamCaptureInvalidated"):
        cuda.capture(stream, lambda: None)
    assert not gpu.graphs


CALLS = {
    "cudaSetDevice": lambda cuda, stream, buffer: cuda.use(),
    "cudaStreamCreate": lambda cuda, stream, buffer: cuda.stream(),
    "cudaMallocHost": lambda cuda, stream, buffer: cuda.allocate((2,), np.float32),
    "cudaMalloc": lambda cuda, stream, buffer: cuda.allocate((2,), np.float32),
    "cudaMemcpyAsync": lambda cuda, stream, buffer: cuda.to_device(buffer, stream),
    "cudaStreamSynchronize": lambda cuda, stream, buffer: cuda.synchronize(stream),
    "cudaStreamBeginCapture": lambda cuda, stream, buffer: cuda.capture(stream, lambda: None),
    "cudaGraphLaunch": lambda cuda, stream, buffer: cuda.launch(7, stream),
    "cudaGraphExecDestroy": lambda cuda, stream, buffer: cuda.forget(7),
    "cudaFree": lambda cuda, stream, buffer: cuda.free(buffer),
    "cudaStreamDestroy": lambda cuda, stream, buffer: cuda.destroy(stream),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_each_error_code_is_looked_at_and_named(gpu: Gpu, name: str) -> None:
    cuda = Cuda(0)
    stream, buffer = cuda.stream(), cuda.allocate((2,), np.float32)
    before = set(gpu.memory)
    gpu.fails = {name: runtime.cudaError_t.cudaErrorMemoryAllocation}
    with pytest.raises(NotHereError, match="CUDA error cudaErrorMemoryAllocation") as caught:
        CALLS[name](cuda, stream, buffer)
    assert caught.value.exit_code == 4 and caught.value.hint
    assert set(gpu.memory) == before - ({buffer.host_address} if name == "cudaFree" else set())  # nothing is left behind
