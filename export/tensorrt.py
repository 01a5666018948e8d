"""A TensorRT engine from an engine-ready artefact, on the device that will run it. TensorRT 10.3 to 11.x. No torch, no onnx.

One path for all versions: a strongly typed network, whose precision is what the ONNX graph states. Flags and calibrators for
precision, which 11 removed, are never touched.
"""

from __future__ import annotations

import platform
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from dtkd_edge.artifact import EngineKey
from dtkd_edge.console import say
from dtkd_edge.deploy.backends.tensorrt import AMPERE, advice, version_numbers
from dtkd_edge.errors import DtkdEdgeError, MissingDependency, MissingDevice
from dtkd_edge.export.targets import Request
from dtkd_edge.files import atomic_path, cache_folder

OLDEST = (10, 3)


def build_engine(
    trt: Any, onnx_path: Path, engine_path: Path, request: Request, *, timing_cache: Path | None = None, log: Path | None = None
) -> None:
    """Parse `onnx_path`, build, write the pure engine bytes. `trt`: the tensorrt module.

    timing_cache: read when it is there, and written back, so that a second build is quick. log: where TensorRT's words are kept.
    Raises MissingDependency (TensorRT too old), DtkdEdgeError that names the node or quotes TensorRT's last error.
    """
    check_version(trt)
    logger = make_logger(trt)
    try:
        _build(trt, logger, onnx_path, engine_path, request, timing_cache)
    except BaseException as error:
        # The traceback holds TensorRT's objects. They go now: collected later, maybe while TensorRT calls our logger in another
        # build, they would wait for a lock that this other build holds, for ever.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        if log is not None:
            log.write_text("\n".join(logger.lines) + "\n", encoding="utf-8")


def _build(trt: Any, logger: Any, onnx_path: Path, engine_path: Path, request: Request, timing_cache: Path | None) -> None:
    builder = trt.Builder(logger)
    config = configure(trt, builder, request)  # first: what this device lacks is said before the work
    config.progress_monitor = make_monitor(trt)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise parse_error(onnx_path, [parser.get_error(i) for i in range(parser.num_errors)])
    cache = _load_cache(config, timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        last = next((line for line in reversed(logger.lines) if line.startswith(("ERROR", "INTERNAL_ERROR"))), "no reason given")
        raise DtkdEdgeError(
            f"{onnx_path}: TensorRT {trt.__version__} builds no engine: {last.partition(': ')[2] or last}",
            "less --workspace where memory is short; the whole log is beside the artefact",
        )
    with atomic_path(engine_path) as aside:
        aside.write_bytes(serialized)
    if cache is not None and timing_cache is not None:
        with atomic_path(timing_cache) as aside:
            aside.write_bytes(config.get_timing_cache().serialize())


def configure(trt: Any, builder: Any, request: Request) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace << 20)
    config.builder_optimization_level = request.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.dla is not None:
        if request.dla >= builder.num_DLA_cores:
            raise MissingDevice(
                f"--dla {request.dla}: TensorRT {trt.__version__} finds {builder.num_DLA_cores} DLA cores here",
                "leave --dla away: the engine then runs on the GPU",
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = request.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)  # for what it lacks: it takes 2-D layers only, no uint8
    if request.precision == "fp32":  # on by default, and not what the word fp32 promises: 10 bits of mantissa
        config.clear_flag(trt.BuilderFlag.TF32)
    return config


def engine_key(here: EngineKey, request: Request) -> EngineKey:
    """What an engine that is built here, so, is tied to. MissingDevice where this GPU is too old for what was asked."""
    if request.hardware_compatible and version_numbers(here.compute_capability) < AMPERE:
        raise MissingDevice(
            f"--hardware-compatible: {here.gpu} has compute capability {here.compute_capability}, 8.0 (Ampere) is needed",
            "leave --hardware-compatible away, or build on a newer GPU",
        )
    asked = {"hardware_compatible": request.hardware_compatible, "version_compatible": request.version_compatible}
    return here.model_copy(update={**asked, "dla": request.dla})


def check_version(trt: Any, root: Path = Path("/")) -> None:
    """MissingDependency where TensorRT is too old, with what upgrades it on this machine: a PC, or a Jetson."""
    if version_numbers(trt.__version__)[:2] < OLDEST:
        raise MissingDependency(f"TensorRT {trt.__version__} is too old, 10.3 or newer is needed", advice("too old", root))


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that keeps the lines instead of printing them."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity != trt.ILogger.VERBOSE:
                self.lines.append(f"{severity.name}: {msg}")

    return Logger()


def make_monitor(trt: Any, every: float = 5.0) -> Any:
    """A TensorRT progress monitor that says which phase a build is in, and how far, at most once in `every` seconds."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.said = time.monotonic()
            self.lock = threading.Lock()  # TensorRT calls from its own threads

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.lock:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.lock:
                now = time.monotonic()
                if now - self.said >= every:
                    self.said = now
                    say(f"TensorRT: {phase_name}, {step + 1} of {self.steps.get(phase_name, 0)}")
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                self.steps.pop(phase_name, None)

    return Monitor()


def parse_error(onnx_path: Path, errors: list[Any]) -> DtkdEdgeError:
    """The parser's first error as a sentence: the node, its operator, the reason, and what to do about that kind."""
    if not errors:
        return DtkdEdgeError(f"{onnx_path}: TensorRT's parser refuses it and gives no reason", "report this")
    first = errors[0]
    code = str(first.code()).rpartition(".")[2]
    advice = {
        "UNSUPPORTED_NODE": "replace that operation in the model, or take a newer TensorRT",
        "UNSUPPORTED_NODE_ATTR": "change that operation's options in the model, or take a newer TensorRT",
        "UNSUPPORTED_NODE_INPUT": "change what goes into that operation, or take a newer TensorRT",
        "UNSUPPORTED_NODE_DATATYPE": "export with --precision fp32",
        "UNSUPPORTED_GRAPH": "export again with this version",
        "MODEL_DESERIALIZE_FAILED": "the file is damaged: copy the whole folder again",
    }.get(code, "export again with this version; see the log beside the artefact")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    node, operator, reason = first.node_name(), first.node_operator(), " ".join(str(first.desc()).split())
    where = f"node {node} ({operator})" if node or operator else f"node {first.node()}"
    return DtkdEdgeError(f"{onnx_path}: {where}: {reason}{more}", advice)


def cache_path(key: EngineKey) -> Path:
    """Timing caches are tied to a GPU and a TensorRT, as engines are."""
    name = (
        "-".join(["timing", key.gpu, key.compute_capability, key.tensorrt, platform.machine()])
        .replace(" ", "_")
        .replace("/", "_")
    )
    return cache_folder() / "tensorrt" / f"{name}.cache"


def _load_cache(config: Any, path: Path | None) -> Any:
    """Attach the stored timing cache, or an empty one when there is none or it is of another machine."""
    if path is None:
        return None
    stored = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache
