"""Run by test_tensorrt.py in a process of its own that has TensorRT's real bindings over stub libraries.

Every object that our code gets is an autospec of the real class: a name that this TensorRT does not have is an AttributeError,
and a call that does not fit the signature in the binding's docstring is a TypeError.
"""

from __future__ import annotations

import inspect
import re
import threading
import traceback
import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorrt_bindings as trt

from dtkd_edge.deploy.backends import tensorrt as runner_module
from dtkd_edge.errors import ArtifactError, DtkdEdgeError, MissingDependency, MissingDevice, NotHereError
from dtkd_edge.export import tensorrt as builder_module
from dtkd_edge.export.targets import request


def signatures(method: Any) -> list[inspect.Signature]:
    """pybind11 writes signatures into the docstring, one per overload."""
    found = []
    for line in (method.__doc__ or "").splitlines():
        match = re.match(r"(?:\d+\. )?\w+\((self: [^,)]*.*)\) -> ", line.strip())
        if not match:
            continue
        parameters = []
        for part in re.split(r", (?=\w+: )", match.group(1)):
            name, _, rest = part.partition(": ")
            optional = " = " in rest or bool(parameters and parameters[-1].default is None)  # pybind11 lets a required one follow
            default = None if optional else inspect.Parameter.empty
            parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
        found.append(inspect.Signature(parameters))
    return found


def spec(cls: type, **results: Any) -> Any:
    """An instance that has what the class has, takes what its methods take, and returns what `results` says."""
    double = mock.create_autospec(cls, instance=True, spec_set=True)
    for name in dir(cls):
        member = getattr(cls, name)
        if name.startswith("_") or not callable(member):
            continue
        fits = signatures(member)

        def call(*args: Any, _name: str = name, _fits: list = fits, **kwargs: Any) -> Any:
            failures = []
            for signature in _fits:
                try:
                    signature.bind(None, *args, **kwargs)
                    break
                except TypeError as error:
                    failures.append(error)
            else:
                if failures:
                    raise failures[0]
            result = results.get(_name)
            return result(*args, **kwargs) if isinstance(result, types.FunctionType) else result

        getattr(double, name).side_effect = call
    for name, value in results.items():
        if not callable(getattr(cls, name)):
            setattr(double, name, value)
    return double


class Stage:
    """The tensorrt module as our builder sees it: real enumerations and logger, specs where the libraries would be needed."""

    def __init__(self, *, parses: bool = True, engine: bytes | None = b"ENGINE", errors: list[Any] | None = None) -> None:
        errors = errors or []
        # In use these are C++ objects that hand out buffers; bytes are a buffer too.
        self.cache = spec(trt.ITimingCache, serialize=b"TIMINGS")
        self.config = spec(trt.IBuilderConfig, create_timing_cache=self.cache, set_timing_cache=True, get_timing_cache=self.cache)
        self.network = spec(trt.INetworkDefinition)
        self.builder = spec(
            trt.Builder, create_network=self.network, create_builder_config=self.config, build_serialized_network=engine
        )
        self.parser = spec(trt.OnnxParser, parse_from_file=parses, get_error=lambda index: errors[index], num_errors=len(errors))
        self.logger: Any = None
        self.module = types.SimpleNamespace(**{name: getattr(trt, name) for name in dir(trt) if not name.startswith("__")})
        self.module.__version__ = trt.__version__
        self.module.Builder = self._builder
        self.module.OnnxParser = lambda network, logger: self.parser

    def _builder(self, logger: Any) -> Any:
        assert isinstance(logger, trt.ILogger)
        self.logger = logger
        return self.builder


def build(stage: Stage, folder: Path, precision: str = "fp16", **options: Any) -> Path:
    (folder / "model.onnx").write_bytes(b"onnx")
    builder_module.build_engine(
        stage.module, folder / "model.onnx", folder / "model.engine", request("tensorrt", precision, **options),
        timing_cache=folder / "cache" / "timing.cache", log=folder / "build.log",
    )  # fmt: skip
    return folder / "model.engine"


def test_a_strongly_typed_network_and_pure_engine_bytes(tmp_path: Path) -> None:
    stage = Stage()
    assert build(stage, tmp_path, workspace=256, optimization_level=4).read_bytes() == b"ENGINE"
    (flags,) = stage.builder.create_network.call_args.args
    assert flags == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    stage.config.set_memory_pool_limit.assert_called_once_with(trt.MemoryPoolType.WORKSPACE, 256 << 20)
    assert stage.config.builder_optimization_level == 4
    stage.config.set_flag.assert_not_called()  # precision is in the graph alone
    stage.config.clear_flag.assert_not_called()
    assert (tmp_path / "build.log").exists()


def test_fp32_is_fp32_and_not_tf32(tmp_path: Path) -> None:
    stage = Stage()
    build(stage, tmp_path, "fp32")
    stage.config.clear_flag.assert_called_once_with(trt.BuilderFlag.TF32)


def test_a_build_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage()
    build(stage, tmp_path)
    assert isinstance(stage.config.progress_monitor, trt.IProgressMonitor)
    monitor = builder_module.make_monitor(trt, every=0)
    monitor.phase_start("Timing graph nodes", "Building Engine", 40)
    assert monitor.step_complete("Timing graph nodes", 9) is True  # False would cancel the build
    monitor.phase_finish("Timing graph nodes")
    assert capsys.readouterr().err == "TensorRT: Timing graph nodes, 10 of 40\n"
    methods = {"phase_start": 3, "step_complete": 2, "phase_finish": 1}
    for name, count in methods.items():  # called by position, from C++
        assert len(inspect.signature(getattr(monitor, name)).parameters) == count
        assert (getattr(trt.IProgressMonitor, name).__doc__ or "").count("arg") in (0, count)


def test_the_timing_cache_is_kept_and_read_again(tmp_path: Path) -> None:
    first, second = Stage(), Stage()
    build(first, tmp_path)
    first.config.create_timing_cache.assert_called_once_with(b"")
    assert (tmp_path / "cache" / "timing.cache").read_bytes() == b"TIMINGS"
    build(second, tmp_path)
    second.config.create_timing_cache.assert_called_once_with(b"TIMINGS")


def test_parser_errors_become_node_names_and_advice(tmp_path: Path) -> None:
    error = spec(
        trt.ParserError, node_name="node_conv_3", node_operator="Conv", desc="no kernel\nfor that", node=3,
        code=trt.ErrorCode.UNSUPPORTED_NODE,
    )  # fmt: skip
    with pytest.raises(DtkdEdgeError) as caught:
        build(Stage(parses=False, errors=[error, error]), tmp_path)
    assert "node node_conv_3 (Conv): no kernel for that (and 1 more)" in caught.value.message
    assert "replace that operation" in caught.value.hint
    assert not (tmp_path / "model.engine").exists()


def test_a_failed_build_quotes_tensorrt_and_keeps_the_log(tmp_path: Path) -> None:
    stage = Stage(engine=None)
    stage.builder.build_serialized_network.side_effect = lambda *_: stage.logger.log(trt.ILogger.ERROR, "out of memory")
    with pytest.raises(DtkdEdgeError, match="out of memory"):
        build(stage, tmp_path)
    assert "out of memory" in (tmp_path / "build.log").read_text()
    assert not (tmp_path / "model.engine").exists()


@pytest.mark.parametrize("options", [{"parses": False}, {"engine": None}, {}])
def test_a_failed_build_keeps_none_of_tensorrts_objects(tmp_path: Path, options: dict[str, Any]) -> None:
    """The real ones, collected in the middle of another build, wait for a lock which that one holds."""
    stage = Stage(**options)
    stage.builder.num_DLA_cores = 0
    with pytest.raises(DtkdEdgeError) as caught:
        build(stage, tmp_path, **({} if options else {"dla": 0}))
    theirs = {id(one) for one in (stage.builder, stage.config, stage.network, stage.parser)}
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb)]
    inside = [frame for frame in frames if frame.f_code.co_filename == builder_module.__file__]
    assert inside and not [name for frame in inside for name, value in frame.f_locals.items() if id(value) in theirs]


def test_compatible_engines_and_dla_cores(tmp_path: Path) -> None:
    stage = Stage()
    stage.builder.num_DLA_cores = 2
    build(stage, tmp_path, hardware_compatible=True, version_compatible=True, dla=1)
    assert stage.config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert stage.config.default_device_type == trt.DeviceType.DLA and stage.config.DLA_core == 1
    flags = [call.args[0] for call in stage.config.set_flag.call_args_list]
    assert flags == [trt.BuilderFlag.VERSION_COMPATIBLE, trt.BuilderFlag.GPU_FALLBACK]


def test_dla_is_refused_where_there_is_none(tmp_path: Path) -> None:
    stage = Stage()
    stage.builder.num_DLA_cores = 0
    with pytest.raises(MissingDevice, match=r"--dla 0: TensorRT .* finds 0 DLA cores here"):
        build(stage, tmp_path, dla=0)
    stage.parser.parse_from_file.assert_not_called()


def test_an_old_gpu_builds_no_hardware_compatible_engine() -> None:
    from dtkd_edge.artifact import EngineKey

    asked = request("tensorrt", hardware_compatible=True)
    with pytest.raises(MissingDevice, match=r"compute capability 7\.5"):
        builder_module.engine_key(EngineKey(gpu="T4", compute_capability="7.5", tensorrt="10.3.0"), asked)
    key = builder_module.engine_key(EngineKey(gpu="A2", compute_capability="8.6", tensorrt="10.3.0"), asked)
    assert key.hardware_compatible and not key.version_compatible and key.dla is None


def test_an_old_tensorrt_is_refused(tmp_path: Path) -> None:
    stage = Stage()
    stage.module.__version__ = "8.6.1"
    with pytest.raises(MissingDependency, match=r"8\.6\.1 is too old"):
        build(stage, tmp_path)


def test_every_error_code_we_advise_on_exists() -> None:
    source = inspect.getsource(builder_module.parse_error)
    codes = set(re.findall(r'"([A-Z_]{8,})"', source))
    assert codes and codes <= set(trt.ErrorCode.__members__)


REAL_CUDA = runner_module.Cuda


class Device:
    """A GPU made of host memory, for the runner."""

    name, compute_capability = "Test GPU", "8.7"

    def __init__(self, index: int) -> None: ...
    def stream(self) -> int:
        return 1

    def capture(self, stream: int, work: Any) -> int:
        raise NotHereError("CUDA error 900: nothing here can be captured")

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> Any:
        from dtkd_edge.deploy.backends import tensorrt

        return tensorrt._Buffer(np.zeros(shape, dtype), 2, 3)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(REAL_CUDA, name):
            raise AttributeError(name)
        return lambda *_: None


class Recorder(Device):
    """A GPU on which a launch takes longer than all that it stands for, or the other way round, or that cannot capture."""

    plain_ms, graph_ms, captures = 1.0, 0.0, True

    def __init__(self, index: int) -> None:
        self.calls: list[str] = []
        self.clock = 0.0

    def to_device(self, *_: Any) -> None:
        self.clock += self.plain_ms
        self.calls.append("to_device")

    def capture(self, stream: int, work: Any) -> int:
        if not self.captures:
            return super().capture(stream, work)
        return 7

    def launch(self, graph: int, stream: int) -> None:
        assert graph == 7
        self.clock += self.graph_ms
        self.calls.append("launch")

    def forget(self, graph: int) -> None:
        self.calls.append("forget")


CLIP = {"frames": (trt.TensorIOMode.INPUT, trt.DataType.UINT8), "action": (trt.TensorIOMode.OUTPUT, trt.DataType.FLOAT)}


def _runner(
    monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Any] = CLIP, shapes: dict[str, tuple[int, ...]] | None = None
) -> tuple[Any, Any, Any]:
    """The runner's module with doubles of engine, context and device → (module, engine, context)."""
    from dtkd_edge.deploy.backends import tensorrt

    shapes = shapes or {"frames": (1, 8, 8, 8, 3), "action": (1, 2)}
    context = spec(
        trt.IExecutionContext, set_input_shape=True, set_tensor_address=True, execute_async_v3=True,
        get_tensor_shape=lambda name: shapes[name],
    )  # fmt: skip
    engine = spec(
        trt.ICudaEngine, num_io_tensors=len(tensors), get_tensor_name=lambda i: list(tensors)[i],
        create_execution_context=lambda *_: context,
        get_tensor_mode=lambda name: tensors[name][0], get_tensor_dtype=lambda name: tensors[name][1],
        get_tensor_shape=lambda name: shapes[name],
    )  # fmt: skip
    runtime = spec(trt.Runtime, deserialize_cuda_engine=lambda data: engine if data == b"ENGINE" else None)
    module = types.SimpleNamespace(**{name: getattr(trt, name) for name in dir(trt) if not name.startswith("__")})
    module.__version__ = trt.__version__
    module.Runtime = lambda logger: runtime
    monkeypatch.setattr(tensorrt, "import_tensorrt", lambda: module)
    monkeypatch.setattr(tensorrt, "Cuda", Device)
    return tensorrt, engine, context


@pytest.fixture
def engine_folder(tmp_path: Path) -> Path:
    """An artefact with an engine for the device above, made by the real command path's own pieces."""
    from dtkd_edge.artifact import EngineKey, InputPart, Manifest, ModelPart, OutputPart, new_artifact, now
    from dtkd_edge.preprocess import Preprocess, Sampling

    manifest = Manifest(
        schema="dtkd-edge/artifact/1", name="t", created=now(), target="tensorrt", precision="fp16", effective_precision="fp16",
        model=ModelPart(name="m", frames=8, stride=1, size=8, parameters=1, macs=1), input=InputPart(shape=[1, 8, 8, 8, 3]),
        preprocess=Preprocess(resize_short=8, crop=8, sampling=Sampling()),
        outputs=[OutputPart(name="action", head="action", classes=2)],
        labels={"action": ["a", "b"]},
        engine_key=EngineKey(gpu="Test GPU", compute_capability="8.7", tensorrt=trt.__version__),
    )  # fmt: skip
    with new_artifact(tmp_path / "artifact", manifest) as aside:
        (aside / "model.engine").write_bytes(b"ENGINE")
        (aside / "model.onnx").write_bytes(b"onnx")
    return tmp_path / "artifact"


def test_an_engine_is_built_again_as_it_was_unless_asked_otherwise(engine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dtkd_edge.artifact import Artifact, new_artifact
    from dtkd_edge.export import command, engine
    from dtkd_edge.export.targets import Request

    built = Artifact.open(engine_folder).manifest
    assert built.engine_key is not None
    built.engine_key.dla, built.engine_key.hardware_compatible = 1, True
    with new_artifact(engine_folder, built) as aside:
        (aside / "model.onnx").write_bytes(b"onnx")
    asked: list[Request] = []

    def build(artifact: Artifact, request: Request) -> Artifact:
        asked.append(request)
        return artifact

    monkeypatch.setattr(engine, "build", build)
    command.export(engine_folder, target="tensorrt")
    command.export(engine_folder, target="tensorrt", dla=0)  # 0 is a core, not nothing
    assert [(one.dla, one.hardware_compatible) for one in asked] == [(1, True), (0, True)]


def test_the_runner_uses_names_that_exist(engine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dtkd_edge.artifact import Artifact

    tensorrt, _, context = _runner(monkeypatch)
    with tensorrt.open_backend(Artifact.open(engine_folder)) as backend:
        out = backend.run(np.zeros((1, 8, 8, 8, 3), np.uint8))
    assert out["action"].shape == (1, 2)
    context.execute_async_v3.assert_called()


@pytest.mark.parametrize(
    ("behaviour", "step"),
    [
        ({"plain_ms": 3.0, "graph_ms": 0.0}, "launch"),
        ({"plain_ms": 0.0, "graph_ms": 3.0}, "to_device"),
        ({"captures": False}, "to_device"),
    ],
)
def test_a_cuda_graph_is_used_where_it_pays(
    engine_folder: Path, monkeypatch: pytest.MonkeyPatch, behaviour: dict, step: str
) -> None:
    from dtkd_edge.artifact import Artifact

    tensorrt, _, _ = _runner(monkeypatch)
    monkeypatch.setattr(tensorrt, "Cuda", type("Recorder", (Recorder,), behaviour))
    frames = np.zeros((1, 8, 8, 8, 3), np.uint8)
    backend = tensorrt.open_backend(Artifact.open(engine_folder))
    monkeypatch.setattr(tensorrt, "time", types.SimpleNamespace(perf_counter=lambda: backend._cuda.clock))
    backend.run(frames)  # settles it
    calls = backend._cuda.calls
    calls.clear()
    assert backend.run(frames)["action"].shape == (1, 2) and calls == [step]
    backend.close()
    backend.close()
    assert calls.count("forget") == (step == "launch")


class Stream:
    """A stream engine: the state counts the frames and sums their brightness, the logits are the state that came in.

    It runs on the real CUDA bindings' device of host memory, at the addresses that the runner gave it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from cuda_device import Gpu

        self.gpu, self.addresses = Gpu(), dict[str, int]()
        inputs = {"frames": trt.DataType.UINT8, "past": trt.DataType.FLOAT}
        outputs = {"action": trt.DataType.FLOAT, "past_next": trt.DataType.FLOAT}
        modes = trt.TensorIOMode
        tensors = {name: (modes.INPUT if name in inputs else modes.OUTPUT, kind) for name, kind in (inputs | outputs).items()}
        shapes = {"frames": (1, 8, 8, 3), "past": (1, 2), "action": (1, 2), "past_next": (1, 2)}
        self.tensorrt, self.engine, context = _runner(monkeypatch, tensors, shapes)
        monkeypatch.setattr(self.tensorrt, "Cuda", REAL_CUDA)
        monkeypatch.setattr(self.tensorrt, "_import_cuda", lambda: self.gpu)
        context.set_tensor_address.side_effect = lambda name, address: self.addresses.update({name: address}) or True
        context.execute_async_v3.side_effect = lambda stream: self.gpu.put(self._compute, stream) or True

    def _compute(self) -> None:
        import ctypes

        frames = self.gpu.read(self.addresses["frames"], np.zeros((1, 8, 8, 3), np.uint8))
        past = self.gpu.read(self.addresses["past"], np.zeros((1, 2), np.float32))
        for name, value in (("action", past), ("past_next", past + np.array([[1, frames.mean()]], np.float32))):
            ctypes.memmove(self.addresses[name], value.ctypes.data, value.nbytes)


@pytest.mark.parametrize("as_graph", [True, False])
def test_a_streams_states_go_from_run_to_run_until_it_is_reset(
    engine_folder: Path, monkeypatch: pytest.MonkeyPatch, as_graph: bool
) -> None:
    from dtkd_edge.artifact import Artifact, InputPart, StatePart, StreamPart, unfinished

    stage = Stream(monkeypatch)
    medians = iter([0.0, 1.0] if as_graph else [1.0, 0.0])  # of a graph's launches, and of the others
    monkeypatch.setattr(stage.tensorrt, "statistics", types.SimpleNamespace(median=lambda times: next(medians)))
    states = [StatePart(name="past", shape=[1, 2], dtype="float32")]
    manifest = Artifact.open(engine_folder).manifest.model_copy(
        update={"mode": "stream", "input": InputPart(shape=[1, 8, 8, 3], states=states), "stream": StreamPart(delay=0)}
    )
    backend = stage.tensorrt.open_backend(unfinished(engine_folder, manifest))
    for _ in range(2):  # the second time from an empty state again
        for number, brightness in enumerate((10, 20, 30)):
            action = backend.run(np.full((1, 8, 8, 3), brightness, np.uint8))["action"]
            assert action.tolist() == [[number, sum((10, 20, 30)[:number])]]
        assert backend.states["past"].tolist() == [[3, 60]]
        backend.reset()
        assert not backend.states["past"].any()
    launches = stage.gpu.calls.count("cudaGraphLaunch")
    assert launches == runner_module.TRIALS + (5 if as_graph else 0)
    backend.close()
    backend.close()
    assert not stage.gpu.memory and not stage.gpu.graphs and not stage.gpu.streams  # all is given back


@pytest.mark.parametrize("built", [{}, {"version_compatible": True}, {"dla": 1}])
def test_how_the_runtime_is_set_before_it_loads_an_engine(
    engine_folder: Path, monkeypatch: pytest.MonkeyPatch, built: dict
) -> None:
    from dtkd_edge.artifact import Artifact

    tensorrt, engine, _ = _runner(monkeypatch)
    runtime = tensorrt.import_tensorrt().Runtime(None)
    runtime.engine_host_code_allowed, runtime.DLA_core = False, -1
    seen: list[tuple[bool, int]] = []

    def load(data: bytes) -> Any:
        seen.append((runtime.engine_host_code_allowed, runtime.DLA_core))
        return engine

    runtime.deserialize_cuda_engine.side_effect = load
    artifact = Artifact.open(engine_folder)
    assert artifact.manifest.engine_key is not None
    artifact.manifest.engine_key = artifact.manifest.engine_key.model_copy(update=built)
    tensorrt.open_backend(artifact).close()
    # Only an engine with a runtime of its own may run its code; everything else stays as TensorRT has it.
    assert seen == [("version_compatible" in built, built.get("dla", -1))]
    for name in ("engine_host_code_allowed", "DLA_core"):
        assert isinstance(inspect.getattr_static(trt.Runtime, name), property)
        assert inspect.getattr_static(trt.Runtime, name).fset is not None


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [
        ({}, {}, True),
        ({}, {"gpu": "Other"}, False),
        ({"hardware_compatible": True}, {"gpu": "Other", "compute_capability": "8.0"}, True),
        ({"hardware_compatible": True}, {"gpu": "Other", "compute_capability": "12.0"}, True),
        ({"hardware_compatible": True}, {"gpu": "Old", "compute_capability": "7.5"}, False),
        ({"hardware_compatible": True}, {"tensorrt": "11.4.0"}, False),
        ({"version_compatible": True}, {"tensorrt": "11.4.0"}, True),
        ({"version_compatible": True}, {"tensorrt": "10.3.0"}, False),
        ({"version_compatible": True}, {"tensorrt": "11.4.0", "gpu": "Other"}, False),
    ],
)
def test_how_far_an_engine_may_travel(engine_folder: Path, built: dict, here: dict, runs: bool) -> None:
    from dtkd_edge.artifact import Artifact, EngineKey

    key = EngineKey(gpu="Test GPU", compute_capability="8.7", tensorrt="10.16.1")
    artifact = Artifact.open(engine_folder)
    artifact.manifest.engine_key = key.model_copy(update=built)
    if runs:
        runner_module.check_engine_key(artifact, key.model_copy(update=here))
        return
    with pytest.raises(ArtifactError, match="the engine was built for"):
        runner_module.check_engine_key(artifact, key.model_copy(update=here))


def test_run_blocks_until_the_result_is_on_the_host(engine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stream whose work is done only when somebody waits for it, as a GPU that is slower than the host."""
    from dtkd_edge.artifact import Artifact

    class Slow(Device):
        def __init__(self, index: int) -> None:
            self.queue: list[Any] = []

        def to_host(self, buffer: Any, stream: int) -> None:
            self.queue.append(buffer)

        def synchronize(self, stream: int) -> None:
            for buffer in self.queue:
                buffer.host[...] += 1
            self.queue.clear()

    tensorrt, _, _ = _runner(monkeypatch)
    monkeypatch.setattr(tensorrt, "Cuda", Slow)
    with tensorrt.open_backend(Artifact.open(engine_folder)) as backend:
        first = backend.run(np.zeros((1, 8, 8, 8, 3), np.uint8))["action"]
        assert (first == 1).all()
        second = backend.run(np.zeros((1, 8, 8, 8, 3), np.uint8))["action"]
        assert (first == 1).all() and (second == 2).all()  # and the first result is the caller's own


def test_each_inference_takes_its_gpu_in_the_thread_that_runs_it(engine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's current device belongs to the thread; the live demo opens in one and infers in another."""
    from dtkd_edge.artifact import Artifact

    tensorrt, _, _ = _runner(monkeypatch)
    used: list[int] = []
    monkeypatch.setattr(Device, "use", lambda self: used.append(threading.get_ident()), raising=False)
    with tensorrt.open_backend(Artifact.open(engine_folder)) as backend:
        thread = threading.Thread(target=backend.run, args=(np.zeros((1, 8, 8, 8, 3), np.uint8),))
        thread.start()
        thread.join()
    assert used == [thread.ident]


def test_an_engine_from_elsewhere_is_refused_before_it_is_loaded(engine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dtkd_edge.artifact import Artifact

    tensorrt, engine, _ = _runner(monkeypatch)
    monkeypatch.setattr(Device, "compute_capability", "9.0")
    with pytest.raises(ArtifactError) as caught:
        tensorrt.open_backend(Artifact.open(engine_folder))
    assert "--target tensorrt" in caught.value.hint
    engine.create_execution_context.assert_not_called()


def test_the_doubles_refuse_what_this_tensorrt_refuses() -> None:
    builder = spec(trt.Builder)
    with pytest.raises(TypeError):
        builder.create_network(1, 2)
    with pytest.raises(AttributeError):
        builder.build_cuda_engine()
    with pytest.raises(AttributeError):
        spec(trt.IBuilderConfig).max_workspace_size = 1


@pytest.mark.parametrize("works", [True, False])
def test_an_engine_ready_folder_becomes_an_engine(engine_folder: Path, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    """The whole command on the device: the folder is replaced by one with engine, key and verification; or it is left alone."""
    from dtkd_edge.artifact import Artifact, new_artifact
    from dtkd_edge.export import command
    from dtkd_edge.export.golden import GOLDEN, Golden

    ready = Artifact.open(engine_folder).manifest.model_copy(update={"engine_key": None})
    golden = Golden.of(np.zeros((4, 8, 8, 8, 3), np.uint8), np.arange(4) < 3, {"action": np.zeros((4, 2), np.float32)})
    with new_artifact(engine_folder, ready) as aside:
        (aside / "model.onnx").write_bytes(b"onnx")
        golden.save(aside / GOLDEN)
    tensorrt, _, _ = _runner(monkeypatch)
    stage = Stage(engine=b"ENGINE" if works else None)
    stage.module.Runtime = tensorrt.import_tensorrt().Runtime
    monkeypatch.setattr(tensorrt, "import_tensorrt", lambda: stage.module)
    monkeypatch.setenv("DTKD_EDGE_CACHE", str(engine_folder.parent / "cache"))
    if works:
        assert command.export(engine_folder, target="tensorrt", workspace=64) == engine_folder
        built = Artifact.open(engine_folder)
        assert set(built.manifest.files) == {"model.onnx", "model.engine", "golden.npz", "build.log"}
        assert built.manifest.engine_key is not None and built.manifest.engine_key.gpu == "Test GPU"
        assert built.manifest.tools["tensorrt"] == trt.__version__
        assert built.manifest.verify is not None and built.manifest.verify.passed
        assert list((engine_folder.parent / "cache" / "tensorrt").glob("timing-Test_GPU-8.7-*.cache"))
    else:
        before = {f.name: f.read_bytes() for f in engine_folder.iterdir()}
        with pytest.raises(DtkdEdgeError, match="builds no engine"):
            command.export(engine_folder, target="tensorrt")
        assert {f.name: f.read_bytes() for f in engine_folder.iterdir()} == before
        assert (engine_folder.parent / "artifact.build.log").exists()


def test_clips_of_an_earlier_version_are_refused_before_the_build(engine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dtkd_edge.artifact import Artifact, new_artifact
    from dtkd_edge.errors import ArtifactError
    from dtkd_edge.export import command
    from dtkd_edge.export.golden import GOLDEN

    ready = Artifact.open(engine_folder).manifest.model_copy(update={"engine_key": None})
    with new_artifact(engine_folder, ready) as aside:
        (aside / "model.onnx").write_bytes(b"onnx")
        np.savez(aside / GOLDEN, **{"frames": np.zeros((4, 8, 8, 8, 3), np.uint8), "logits.action": np.zeros((4, 2), np.float32)})
    tensorrt, _, _ = _runner(monkeypatch)
    stage = Stage(engine=b"ENGINE")
    stage.module.Builder = lambda *_: pytest.fail("the build began")
    monkeypatch.setattr(tensorrt, "import_tensorrt", lambda: stage.module)
    with pytest.raises(ArtifactError, match="stored by an earlier version"):
        command.export(engine_folder, target="tensorrt")
