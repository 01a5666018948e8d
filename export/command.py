"""`dtkd-edge export`: strip, trace, convert, verify, and put the artefact in its place whole. No torch at module level."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtkd_edge import __version__
from dtkd_edge.artifact import (
    MANIFEST,
    AccuracyPart,
    Artifact,
    BuiltFrom,
    InputPart,
    Manifest,
    ModelPart,
    OutputPart,
    StatePart,
    StreamPart,
    VerifyPart,
    new_artifact,
    now,
    unfinished,
)
from dtkd_edge.console import say
from dtkd_edge.deploy.backends import Backend, open_backend
from dtkd_edge.errors import ArtifactError, MissingDependency, NotHereError, UsageError, VerificationError
from dtkd_edge.export import clips as find_clips
from dtkd_edge.export import targets, verify
from dtkd_edge.export.accuracy import Gate, open_gate
from dtkd_edge.export.golden import CLIPS, GOLDEN, Golden, make_golden, real_clips, reference_run, same_type
from dtkd_edge.export.targets import Request
from dtkd_edge.files import check_place, sha256
from dtkd_edge.recipe_reader import load
from dtkd_edge.runs import find_run

if TYPE_CHECKING:
    from dtkd_edge.export.int8 import Int8
    from dtkd_edge.models.base import VideoModel
    from dtkd_edge.models.saved import ModelCard
    from dtkd_edge.models.streaming import StreamForm

Ms = dict[str, float]  # median latencies by name, the artefact's own as 'here'


def export(
    run: Path | None = None,
    *,
    target: str = "onnx",
    precision: str | None = None,
    mode: str = "clip",
    batch: int = 1,
    dynamic_batch: bool = False,
    out: Path | None = None,
    clips: int = CLIPS,
    overrides: list[str] | None = None,
    verify_only: bool = False,
    workspace: int | None = None,
    optimization_level: int | None = None,
    hardware_compatible: bool = False,
    version_compatible: bool = False,
    dla: int | None = None,
    calibration_clips: int | None = None,
    max_drop: float | None = None,
) -> Path:
    """Export a run's student, or build the engine of an engine-ready folder; returns the artefact's folder.

    run:       a run folder (None: the newest), or an artefact folder for `verify_only` and for building its engine
    clips:     real validation clips to verify on; overrides: `data.…=value` where the data has moved since the training
    precision: "auto" builds all of the target's, and returns the fastest that loses no more than `max_drop` points of top-1
    workspace: MiB that TensorRT may use while it builds; the four after it: see targets.Request
    calibration_clips: training clips that int8's ranges are measured on

    Raises UsageError (a combination the table does not have), CheckpointError (no finished student), MissingDependency,
    VerificationError (the artefact is kept and marked).
    """
    is_artifact = run is not None and (run / MANIFEST).is_file()
    if verify_only:
        if run is None or not is_artifact:
            raise UsageError(
                "--verify-only needs an artefact folder", "dtkd-edge export --verify-only RUN/export/TARGET-PRECISION"
            )
        return verify_artifact(run)
    options: dict[str, Any] = {
        "workspace": workspace, "optimization_level": optimization_level, "hardware_compatible": hardware_compatible,
        "version_compatible": version_compatible, "dla": dla,
    }  # fmt: skip
    if run is not None and is_artifact:
        if out is not None:
            raise UsageError(
                f"--out {out}: an engine is built in the folder of its graph", "leave --out away, or copy the folder"
            )
        return _from_artifact(_named(run), target, precision, mode, options)
    options |= {"calibration_clips": calibration_clips, "max_drop": max_drop}
    request = targets.request(target, precision, mode, batch=batch, dynamic_batch=dynamic_batch, **options)
    targets.check_needs(request.target, request.precision)
    folder = find_run(run)
    if request.precision == targets.AUTO:
        if out is not None:
            raise UsageError(
                f"--out {out}: --precision auto makes a folder for each", "leave --out away, or name one --precision"
            )
        from dtkd_edge.export import auto

        def build(one: Request) -> Artifact:
            return _export_run(folder, folder / "export" / one.folder, one, clips, overrides or [], gated=True)[0]

        return auto.fastest(request, build)
    if out is not None:
        out = _named(out)
        _check_out(out)
    place = out or folder / "export" / request.folder
    artifact, _ = _export_run(folder, place, request, clips, overrides or [])
    if request.target.name == "tensorrt":
        try:
            build_engine(artifact, request)
        except NotHereError as error:
            raise MissingDependency(
                f"{place}: the engine-ready ONNX is there, the engine is not: {error.message}",
                f"copy that folder to the device and run there: dtkd-edge export {place.name} --target tensorrt",
            ) from error
    return place


def verify_artifact(folder: Path) -> Path:
    """Repeat the verification from the stored clips, on this machine, without torch. The artefact is not changed."""
    artifact = Artifact.open(folder)
    part = _verify_stored(artifact, _stored_clips(artifact))
    say(verify.verdict(artifact, part))
    _refuse(artifact, part, "it computes something else on this machine: export it again, or use another device or --precision")
    return folder


def build_engine(artifact: Artifact, request: Request) -> Artifact:
    """Build the engine of an engine-ready folder on this device; the folder is replaced whole by one that has it."""
    from dtkd_edge.deploy.backends.tensorrt import Cuda, current_key, import_tensorrt
    from dtkd_edge.export import tensorrt

    trt = import_tensorrt()
    tensorrt.check_version(trt)
    key = tensorrt.engine_key(current_key(trt, Cuda(0)), request)
    golden = _stored_clips(artifact)  # before the minutes of the build
    say(f"building a TensorRT {key.tensorrt} engine for {key.gpu}; this takes minutes, the second time less")
    onnx_path = artifact.file(".onnx")
    manifest = artifact.manifest.model_copy(
        update={"engine_key": key, "created": now(), "tools": {**artifact.manifest.tools, "tensorrt": key.tensorrt}}
    )
    with new_artifact(artifact.folder, manifest) as aside:
        shutil.copy2(onnx_path, aside / onnx_path.name)
        shutil.copy2(artifact.folder / GOLDEN, aside / GOLDEN)
        log = artifact.folder.with_name(artifact.folder.name + ".build.log")  # outside: kept when the build fails
        engine = aside / "model.engine"
        tensorrt.build_engine(trt, onnx_path, engine, request, timing_cache=tensorrt.cache_path(key), log=log)
        shutil.copy2(log, aside / "build.log")
        manifest.verify = _verify_stored(unfinished(aside, manifest), golden)
    built = Artifact.open(artifact.folder)
    log.unlink(missing_ok=True)
    assert built.manifest.verify is not None
    say(verify.verdict(built, built.manifest.verify))
    _refuse(built, built.manifest.verify)
    return built


def _named(folder: Path) -> Path:
    """'.' and '..' by their real name: a folder is replaced by one that is made beside it."""
    return folder.resolve() if folder.name in ("", "..") else folder


def _check_out(out: Path) -> None:
    """An export replaces its folder whole: UsageError where that would delete something that is no artefact."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        Artifact.open(out, check_files=False)
    except ArtifactError as error:
        raise UsageError(
            f"--out {out}: the folder holds something else than an artefact, and would be replaced", "name a new folder"
        ) from error


def _from_artifact(folder: Path, target: str, precision: str | None, mode: str, options: dict[str, Any]) -> Path:
    artifact = Artifact.open(folder)
    have = artifact.manifest
    if target != "tensorrt" or have.target != "tensorrt":
        raise UsageError(
            f"{folder}: an exported artefact (target {have.target}); only engines are built from one",
            "give the run folder instead, or: dtkd-edge export RUN --target tensorrt",
        )
    if precision not in (None, have.precision):
        raise UsageError(
            f"--precision {precision}: that folder's graph is {have.precision}", "export the run again for another one"
        )
    if have.engine_key is not None:  # built again as it was built
        kept = have.engine_key.model_dump(include={"hardware_compatible", "version_compatible", "dla"})
        options = {**options, **{name: value for name, value in kept.items() if options.get(name) in (None, False)}}
    request = targets.request("tensorrt", have.precision, mode, batch=max(have.input.shape[0], 1), **options)
    return build_engine(artifact, request).folder


def _export_run(
    run: Path, place: Path, request: Request, clips: int, overrides: list[str], *, gated: bool = False
) -> tuple[Artifact, Ms]:
    """Make one artefact → it and the latencies of its verdict. `gated`: through the accuracy gate even where it is no int8."""
    from dtkd_edge.export import strip
    from dtkd_edge.export.int8 import Int8

    model, card = strip.strip(run)
    check_place(place)
    recipe = load(run / "recipe.yaml", overrides)
    say(f"exporting {card.model} of {run} for {request.target.name} in {request.precision}")
    form = model.stream_form().eval() if request.mode == "stream" else None
    int8 = request.precision == "int8"
    calibration = find_clips.calibration(recipe.data, card.preprocess, request.calibration_clips, recipe.seed) if int8 else None
    manifest = _manifest(run, model, card, request, form)
    golden = make_golden(form.reference(model) if form else model, real_clips(recipe.data, card.preprocess, clips))
    with tempfile.TemporaryDirectory(prefix="dtkd-edge-") as scratch, new_artifact(place, manifest) as aside:
        float32 = _trace(model, card, request, Path(scratch), manifest, form)
        with open_backend(float32, device="cpu") as reference:
            if form and form.delay:
                from dtkd_edge.export import stream

                manifest.stream = stream.beside_clip(model, card, reference, recipe.data, run / "export")
            gate = None
            if int8 or gated:
                _check_reference(reference, golden)
                gate = open_gate(recipe.data, card.preprocess, card.labels, request.max_drop, reference)
            quantizer = Int8(calibration, gate, reference, manifest) if calibration and gate else None
            _write(float32, card, request, aside, manifest, quantizer)
        golden.save(aside / GOLDEN)
        part, ms, manifest.effective_precision, manifest.accuracy = _verify_here(
            unfinished(aside, manifest), model, golden, request, float32, None if int8 else gate
        )
        manifest.verify = part
    artifact = Artifact.open(place)
    say(verify.verdict(artifact, part, ms))
    say(f"artefact: {place}")
    _refuse(artifact, part)
    return artifact, ms


def _trace(
    model: VideoModel, card: ModelCard, request: Request, scratch: Path, manifest: Manifest, form: StreamForm | None = None
) -> Artifact:
    """The float32 graph in `scratch`: what everything else is made of, and held against."""
    from dtkd_edge.export import graph

    path = scratch / "model.onnx"
    if form:
        from dtkd_edge.export import stream

        stream.to_stream_onnx(form, card, path, batch=request.batch)
    else:
        if request.target.name == "onnx":  # ONNX Runtime's 3-D kernels are slow, those of the other two are not
            from dtkd_edge.export import frames

            model = frames.over_frames(model)
        graph.to_onnx(model, card, path, batch=request.batch, dynamic_batch=request.dynamic_batch)
    return unfinished(scratch, manifest.model_copy(update={"precision": "fp32"}), target="onnx")


def _check_reference(reference: Backend, golden: Golden) -> None:
    """The gate compares with the traced graph, which runs faster than torch: it has to be the same function."""
    part = verify.compare(reference, golden, "fp32")
    if not part.passed:
        raise VerificationError(f"the traced float32 graph: {part.reason}", "report this")


def _write(
    float32: Artifact, card: ModelCard, request: Request, folder: Path, manifest: Manifest, quantizer: Int8 | None
) -> None:
    """The target's own files into `folder`."""
    import onnx

    from dtkd_edge.export import graph, precision, tensorrt_ops

    traced = float32.file(".onnx")
    if request.target.name == "openvino":
        from dtkd_edge.export import openvino

        model = openvino.convert(traced)
        if quantizer:
            model = quantizer.openvino(model)
            manifest.tools["nncf"] = metadata.version("nncf")
        openvino.write_ir(model, folder, precision=request.precision, entries=graph.metadata(card))
        manifest.tools["openvino"] = openvino.version()
    else:
        proto = onnx.load(str(traced))
        if request.precision == "fp16":
            proto = precision.to_fp16(proto)
        elif quantizer:
            proto = quantizer.onnx(proto)
        if request.precision != "fp32":
            states = {state.name: state.shape for state in manifest.input.states}
            graph.check_graph(proto, heads=card.heads, shape=manifest.input.shape, states=states)
        tensorrt_ops.check_ops(proto)
        traced = folder / "model.onnx"
        graph.save_onnx(proto, traced)
    manifest.built_from.onnx_sha256 = sha256(traced)


def _manifest(run: Path, model: VideoModel, card: ModelCard, request: Request, form: StreamForm | None = None) -> Manifest:
    from dtkd_edge.models.measure import count_macs

    size, macs = card.size, count_macs(form or model)
    shape, states = [-1 if request.dynamic_batch else request.batch, card.frames, size, size, 3], []
    if form:
        shape, empty = [request.batch, size, size, 3], form.states(request.batch)
        states = [StatePart(name=name, shape=list(value.shape), dtype="float32") for name, value in empty.items()]
    return Manifest(
        name=f"{run.resolve().name}-{request.folder}",
        created=now(),
        target=request.target.name,
        precision=request.precision,
        mode=request.mode,
        effective_precision=request.precision,
        model=ModelPart(
            name=card.model, frames=card.frames, stride=card.stride, size=size,
            parameters=sum(p.numel() for p in model.parameters()), macs=macs,
        ),
        input=InputPart(shape=shape, states=states),
        preprocess=card.preprocess,
        outputs=[OutputPart(name=head, head=head, classes=classes) for head, classes in card.heads.items()],
        labels=card.labels,
        stream=StreamPart(delay=form.delay) if form else None,
        built_from=BuiltFrom(run=run.resolve().name),
        tools={
            "dtkd-edge": __version__, "opset": str(targets.OPSET),
            **{name: metadata.version(name) for name in ("torch", "onnx", "onnxruntime")},
        },
    )  # fmt: skip


def _verify_here(
    artifact: Artifact, model: VideoModel, golden: Golden, request: Request, float32: Artifact, gate: Gate | None
) -> tuple[VerifyPart, Ms, str, AccuracyPart | None]:
    """Compare and time on this machine → the result, latencies, the precision that it really ran in, the gate's word.

    An engine-ready graph has no engine yet: ONNX Runtime stands in for it.
    """
    from dtkd_edge.export import graph

    manifest = artifact.manifest
    reference = "torch fp32"
    if request.target.name == "tensorrt":
        artifact = Artifact(artifact.folder, manifest.model_copy(update={"target": "onnx"}))
        reference = "torch fp32; the typed graph was run by ONNX Runtime"
    # One thread each: a ratio that a busy machine and the runtimes' spinning thread pools leave alone.
    with open_backend(artifact, device="cpu", threads=1) as backend:
        part = verify.compare(backend, golden, request.precision, reference=reference)
        verify.add_file(part, artifact, golden)
        lost = gate.measure(backend) if gate else manifest.accuracy
        if lost:
            part.passed = part.passed and lost.passed
        if request.target.name == "tensorrt":
            return part, {}, request.precision, lost  # the engine computes in the types of the graph
        frames = golden.frames[[i % len(golden.frames) for i in range(request.batch)]]
        runs = {"here": verify.one_call(backend), "torch": reference_run(model)}
        with ExitStack() as stack, graph.one_thread():
            if request.precision != "fp32":
                runs["fp32"] = verify.one_call(stack.enter_context(_open_float32(float32, request)))
            ms = dict(zip(runs, verify.latency(list(runs.values()), frames), strict=True))
        part.speedup = ms["torch"] / ms["here"]
        return part, ms, backend.effective_precision, lost


def _open_float32(float32: Artifact, request: Request) -> Backend:
    """The float32 graph in the target's own runtime, on one thread."""
    if request.target.name == "openvino":
        from dtkd_edge.export import openvino

        openvino.write_ir(openvino.convert(float32.file(".onnx")), float32.folder, precision="fp32", entries={})
        float32 = unfinished(float32.folder, float32.manifest, target="openvino")
    return open_backend(float32, device="cpu", threads=1)


def _stored_clips(artifact: Artifact) -> Golden:
    golden = Golden.load(artifact)
    if not same_type(artifact.manifest, golden):
        raise ArtifactError(f"{artifact.folder}: the stored clips do not fit the graph", "export the run again")
    return golden


def _verify_stored(artifact: Artifact, golden: Golden) -> VerifyPart:
    """Against the clips of golden.npz, on the artefact's own device."""
    if artifact.manifest.target == "tensorrt" and "model.engine" not in artifact.manifest.files:
        artifact = Artifact(artifact.folder, artifact.manifest.model_copy(update={"target": "onnx"}))
    manifest = artifact.manifest
    # What was accepted when it was exported, with some room for other kernels; of int8, too, whose accuracy was the judge.
    allowed = manifest.verify.tolerance if manifest.verify else None
    with open_backend(artifact) as backend:
        part = verify.compare(backend, golden, manifest.precision, reference="torch fp32, stored clips", allowed=allowed)
    verify.add_file(part, artifact, golden)
    return part


def _refuse(
    artifact: Artifact, part: VerifyPart, hint: str = "the artefact is kept and marked; use a higher --precision"
) -> None:
    if part.passed:
        return
    lost, made = artifact.manifest.accuracy, artifact.manifest.quantization
    if lost and not lost.passed:
        even = f", even with {len(made.kept)} of {made.layers} layers left out of int8" if made and made.kept else ""
        raise VerificationError(
            f"{artifact.folder}: top-1 drops by {lost.drop:.1f} ± {lost.stderr:.1f} points on {lost.clips} clips, "
            f"{lost.max_drop:g} are allowed{even}",
            "use a float --precision, or allow more with --max-drop; the artefact is kept and marked",
        )
    raise VerificationError(f"{artifact.folder}: not verified: {part.reason}", hint)
