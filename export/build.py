"""One artefact out of a run: strip, trace, convert, verify, put in its place whole. No torch at module level."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from dtkd_edge import __version__
from dtkd_edge.artifact import (
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
from dtkd_edge.errors import VerificationError
from dtkd_edge.export import clips as find_clips
from dtkd_edge.export import targets, verify
from dtkd_edge.export.accuracy import Gate, open_gate
from dtkd_edge.export.golden import GOLDEN, Golden, make_golden, real_clips, reference_run
from dtkd_edge.export.stored import refuse
from dtkd_edge.export.targets import Request
from dtkd_edge.files import check_place, sha256
from dtkd_edge.recipe_reader import load_run

if TYPE_CHECKING:
    from dtkd_edge.export.int8 import Int8
    from dtkd_edge.models.base import VideoModel
    from dtkd_edge.models.saved import ModelCard
    from dtkd_edge.models.streaming import StreamForm

Ms = dict[str, float]  # median latencies by name, the artefact's own as 'here'


def build(
    run: Path, place: Path, request: Request, clips: int, overrides: list[str], *, gated: bool = False
) -> tuple[Artifact, Ms]:
    """Make one artefact → it and the latencies of its verdict. `gated`: through the accuracy gate even where it is no int8."""
    from dtkd_edge.export import strip
    from dtkd_edge.export.int8 import Int8

    model, card = strip.strip(run)
    check_place(place)
    recipe = load_run(run, overrides)
    say(f"exporting {card.model} of {run} for {request.target.name} in {request.precision}")
    form = model.stream_form().eval() if request.mode == "stream" else None
    int8 = request.precision == "int8"
    calibration = find_clips.calibration(recipe.data, card.preprocess, request.calibration_clips, recipe.seed) if int8 else None
    manifest = new_manifest(run, model, card, request, form)
    golden = make_golden(form.reference(model) if form else model, real_clips(recipe.data, card.preprocess, clips))
    with tempfile.TemporaryDirectory(prefix="dtkd-edge-") as scratch, new_artifact(place, manifest) as aside:
        float32 = trace(model, card, request, Path(scratch), manifest, form)
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
    if int8 and not gated:  # `--precision auto` compares them all itself
        say_what_is_faster(request, ms)
    say(f"artefact: {place}")
    refuse(artifact, part)
    return artifact, ms


def trace(
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


def new_manifest(run: Path, model: VideoModel, card: ModelCard, request: Request, form: StreamForm | None = None) -> Manifest:
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
                runs["fp32"] = verify.one_call(stack.enter_context(_open_float32(float32, request, "fp32")))
            if request.precision == "int8" and _has_bf16(request):
                runs["bf16"] = verify.one_call(stack.enter_context(_open_float32(float32, request, "bf16")))
            ms = dict(zip(runs, verify.latency(list(runs.values()), frames), strict=True))
        part.speedup = ms["torch"] / ms["here"]
        return part, ms, backend.effective_precision, lost


def _open_float32(float32: Artifact, request: Request, precision: str) -> Backend:
    """The float32 graph in the target's own runtime, computed in fp32 or bf16, on one thread."""
    if request.target.name == "openvino":
        from dtkd_edge.export import openvino

        if not (float32.folder / "model.xml").exists():  # once: what an open model maps into memory must not be written again
            openvino.write_ir(openvino.convert(float32.folder / "model.onnx"), float32.folder, precision="fp32", entries={})
        manifest = float32.manifest.model_copy(update={"precision": precision})
        float32 = unfinished(float32.folder, manifest, target="openvino")
    return open_backend(float32, device="cpu", threads=1)


def _has_bf16(request: Request) -> bool:
    """Whether this machine computes the target's bf16 as such."""
    if "bf16" not in request.target.precisions:
        return False
    from dtkd_edge.export import openvino

    return openvino.has_bf16()


def say_what_is_faster(request: Request, ms: Ms) -> None:
    """int8 is made for speed: where a float precision is faster on this machine, somebody should hear of it before it ships."""
    faster = [name for name in ("fp32", "bf16") if ms.get(name, float("inf")) < ms.get("here", 0.0)]
    if faster:
        best = min(faster, key=lambda name: ms[name])
        say(
            f"int8 is not the fastest here: {best} takes {ms[best]:.2f} ms, int8 {ms['here']:.2f}; "
            f"--target {request.target.name} --precision auto builds all and names the fastest that holds the gate"
        )
