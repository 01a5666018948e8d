"""A GPU made of host memory behind CUDA's real Python bindings.

Every call goes through the real function first: it refuses arguments that it does not take, and answers with as many values as it
returns. Without a driver that answer is an error, and the device here stands in with values of the bindings' own types. Work put
on a stream is done when somebody waits for the stream, as on a GPU that is slower than the host.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

runtime = pytest.importorskip("cuda.bindings.runtime", reason="the wheel cuda-bindings is not installed")

HAS_GPU = int(runtime.cudaGetDeviceCount()[0]) == 0  # then the real calls would be more than a check of their arguments
NAME = "Test GPU"

Work = Callable[[], None]


def _own(name: str) -> str:
    """cudaStreamCreate → _stream_create"""
    return re.sub(r"(?=[A-Z])", "_", name.removeprefix("cuda")).lower()


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
            answer = getattr(self, _own(name), lambda *_: ())(*args)
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

    def _get_device_count(self) -> tuple[int]:
        return (1,)

    def _get_device_properties(self, index: int) -> tuple[Any]:
        properties = runtime.cudaDeviceProp()
        properties.name, properties.major, properties.minor = NAME.encode().ljust(256, b"\0"), 8, 7
        return (properties,)

    def _stream_create(self) -> tuple[Any]:
        stream = self._new(8)
        self.streams[stream] = []
        return (runtime.cudaStream_t(stream),)

    def _stream_destroy(self, stream: int) -> tuple[()]:
        del self.streams[int(stream)], self.memory[int(stream)]
        return ()

    def _malloc(self, size: int) -> tuple[int]:
        return (self._new(size),)

    _malloc_host = _malloc

    def _free(self, address: int) -> tuple[()]:
        del self.memory[address]  # KeyError: freed twice, or never allocated
        return ()

    _free_host = _free

    def _memcpy_async(self, to: int, source: int, size: int, kind: Any, stream: int) -> tuple[()]:
        assert size <= len(self.memory[to]) and size <= len(self.memory[source])
        self.put(lambda: ctypes.memmove(to, source, size), stream)  # type: ignore[arg-type, return-value]
        return ()

    def _stream_synchronize(self, stream: int) -> tuple[()]:
        work, self.streams[int(stream)] = self.streams[int(stream)], []
        for each in work:
            each()
        return ()

    def _stream_begin_capture(self, stream: int, mode: Any) -> tuple[()]:
        assert self.capturing is None and int(stream) in self.streams
        self.capturing = []
        return ()

    def _stream_end_capture(self, stream: int) -> tuple[Any]:
        graph = self._new(8)
        self.graphs[graph], self.capturing = list(self.capturing or ()), None
        return (runtime.cudaGraph_t(graph),)

    def _graph_instantiate(self, graph: Any, flags: int) -> tuple[Any]:
        executable = self._new(8)
        self.graphs[executable] = self.graphs[int(graph)]
        return (runtime.cudaGraphExec_t(executable),)

    def _graph_launch(self, graph: int, stream: int) -> tuple[()]:
        self.streams[int(stream)] += self.graphs[int(graph)]
        return ()

    def _graph_destroy(self, graph: Any) -> tuple[()]:
        del self.graphs[int(graph)], self.memory[int(graph)]
        return ()

    _graph_exec_destroy = _graph_destroy

    def read(self, address: int, like: np.ndarray) -> np.ndarray:
        """What stands at a device address now, as an array of that shape and type."""
        return np.frombuffer(self.memory[address], like.dtype, like.size).reshape(like.shape).copy()
