"""A GPU made of host memory behind CUDA's real Python bindings.

Every call goes through the real function first: it refuses arguments that it does not take, and answers with as many values as it
returns. Without a driver that answer is an error, and the device here stands in with values of the bindings' own types. Work put
on a stream is done when somebody waits for the stream, as on a GPU that is slower than the host.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

runtime = pytest.importorskip("cuda.bindings.runtime", reason="the wheel cuda-bindings is not installed")

HAS_GPU = int(runtime.cudaGetDeviceCount()[0]) == 0  # then the real calls would be more than a check of their arguments
NAME = "Test GPU"

Work = Callable[[], None]


class Gpu:
    """In place of the module `cuda.bindings.runtime`. calls: names as called; fails: name → the error that it returns."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, Any] = {}
        self.memory: dict[int, Any] = {}  # what is allocated, by address
        self.streams: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}  # captured, or instantiated
        self.capturing: list[Work] | None = None

    def __getattr__(self, name: str) -> Any:
        real = getattr(runtime, name)  # AttributeError: the bindings have no such name
        if not name.startswith("cuda") or isinstance(real, type):
            return real

        def call(*args: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            returned = len(real(*args)) if not HAS_GPU else None
            if name in self.fails:
                return self.fails[name], *[None] * ((returned or 1) - 1)
            answer = getattr(self, f"_{name}", lambda *_: ())(*args)
            assert returned in (None, 1 + len(answer)), f"{name} returns {returned} values"
            return runtime.cudaError_t.cudaSuccess, *answer

        return call

    def put(self, work: Work, stream: int) -> None:
        """Put work on a stream, as a kernel's launch does."""
        (self.streams[int(stream)] if self.capturing is None else self.capturing).append(work)

    def _new(self, size: int) -> int:
        block = ctypes.create_string_buffer(b"\xaa" * size, size)  # not zero: nobody may count on that
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def _cudaGetDeviceCount(self) -> tuple[int]:
        return (1,)

    def _cudaGetDeviceProperties(self, index: int) -> tuple[Any]:
        properties = runtime.cudaDeviceProp()
        properties.name, properties.major, properties.minor = NAME.encode().ljust(256, b"\0"), 8, 7
        return (properties,)

    def _cudaStreamCreate(self) -> tuple[Any]:
        stream = self._new(8)
        self.streams[stream] = []
        return (runtime.cudaStream_t(stream),)

    def _cudaStreamDestroy(self, stream: int) -> tuple[()]:
        del self.streams[int(stream)], self.memory[int(stream)]
        return ()

    def _cudaMalloc(self, size: int) -> tuple[int]:
        return (self._new(size),)

    _cudaMallocHost = _cudaMalloc

    def _cudaFree(self, address: int) -> tuple[()]:
        del self.memory[address]  # KeyError: freed twice, or never allocated
        return ()

    _cudaFreeHost = _cudaFree

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: int) -> tuple[()]:
        assert size <= len(self.memory[to]) and size <= len(self.memory[source])
        self.put(lambda: ctypes.memmove(to, source, size), stream)  # type: ignore[arg-type, return-value]
        return ()

    def _cudaStreamSynchronize(self, stream: int) -> tuple[()]:
        work, self.streams[int(stream)] = self.streams[int(stream)], []
        for each in work:
            each()
        return ()

    def _cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[()]:
        assert self.capturing is None and int(stream) in self.streams
        self.capturing = []
        return ()

    def _cudaStreamEndCapture(self, stream: int) -> tuple[Any]:
        graph = self._new(8)
        self.graphs[graph], self.capturing = list(self.capturing or ()), None
        return (runtime.cudaGraph_t(graph),)

    def _cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any]:
        executable = self._new(8)
        self.graphs[executable] = self.graphs[int(graph)]
        return (runtime.cudaGraphExec_t(executable),)

    def _cudaGraphLaunch(self, graph: int, stream: int) -> tuple[()]:
        self.streams[int(stream)] += self.graphs[int(graph)]
        return ()

    def _cudaGraphDestroy(self, graph: Any) -> tuple[()]:
        del self.graphs[int(graph)], self.memory[int(graph)]
        return ()

    _cudaGraphExecDestroy = _cudaGraphDestroy

    def read(self, address: int, like: np.ndarray) -> np.ndarray:
        """What stands at a device address now, as an array of that shape and type."""
        return np.frombuffer(self.memory[address], like.dtype, like.size).reshape(like.shape).copy()
