"""`--mode stream`: one frame and the past's states in, logits and the new states out.

What a model is frame by frame is the model's own: `VideoModel.stream_form` (dtkd_edge/models/streaming.py). Here it gets its
input of uint8 frames, is traced and checked.
"""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dtkd_edge.artifact import MANIFEST, AccuracyPart, Artifact, InputPart, StreamPart, unfinished
from dtkd_edge.console import say
from dtkd_edge.data.catalogue import open_split
from dtkd_edge.deploy.backends import Backend, open_backend
from dtkd_edge.deploy.window import frame_spacing
from dtkd_edge.errors import ArtifactError, DataError
from dtkd_edge.export import clips, graph
from dtkd_edge.export.accuracy import open_gate
from dtkd_edge.export.targets import OPSET
from dtkd_edge.models.base import VideoModel
from dtkd_edge.models.saved import ModelCard
from dtkd_edge.models.streaming import StreamForm
from dtkd_edge.recipe import DataConfig

if TYPE_CHECKING:
    import onnx

BESIDE = 100  # validation clips that a late stream and the clip model are compared on; each costs frames + delay steps


class StreamGraph(nn.Module):
    """What is traced: frame uint8 `[N, H, W, 3]` and the states → logits of every head, then the new states.

    States are float32 and empty (zero) at the start. No tensor has more than four dimensions.
    """

    def __init__(self, form: StreamForm) -> None:
        super().__init__()
        self.form, self.heads = form, list(form.heads)
        self.edge = graph.Normalise(form.info)

    def forward(self, frames: Tensor, states: list[Tensor]) -> tuple[Tensor, ...]:
        logits, after = self.form(self.edge(frames), states)
        return (*(logits[head] for head in self.heads), *after)


def to_stream_onnx(form: StreamForm, card: ModelCard, path: Path, *, batch: int = 1, opset: int = OPSET) -> onnx.ModelProto:
    """Trace, clean and check the streaming graph, write it to `path` and return it."""
    stream = StreamGraph(form).eval()
    states = form.states(batch)
    example = torch.zeros(batch, card.size, card.size, 3, dtype=torch.uint8)
    proto = graph.trace(
        stream, (example, list(states.values())), opset, form.info.name,
        inputs=["frames", *states], outputs=[*stream.heads, *(f"{name}_next" for name in states)],
    )  # fmt: skip
    shapes = {name: list(value.shape) for name, value in states.items()}
    return graph.finish(proto, card, path, opset, shape=list(example.shape), states=shapes)


def beside_clip(model: VideoModel, card: ModelCard, stream: Backend, data: DataConfig, others: Path) -> StreamPart:
    """Top-1 of a float32 stream that is another function than the clip model, beside that one's; said, and returned.

    It is the same for every target and precision: what an artefact below `others` has of the same weights and clips is taken
    over. None where no validation clip has a label of the model.
    """
    manifest = stream.artifact.manifest
    subject = _subject(model, data)
    for path in sorted(others.glob(f"*/{MANIFEST}")):
        with suppress(ArtifactError):
            known = Artifact.open(path.parent, check_files=False).manifest
            if known.stream and known.stream.accuracy and known.stream.accuracy_of == subject:
                part = StreamPart(delay=manifest.delay, accuracy=known.stream.accuracy, accuracy_of=subject)
                _say_beside(card, part, f"; measured for {path.parent.name}")
                return part
    part = StreamPart(delay=manifest.delay, accuracy=_measure(model, card, stream, data), accuracy_of=subject)
    if part.accuracy:
        _say_beside(card, part)
    return part


def _subject(model: VideoModel, data: DataConfig) -> str:
    """Of the weights, and of the clips that they are compared on."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    catalogue = open_split(data, "val")
    digest.update(repr(catalogue.classes).encode("utf-8", "surrogateescape"))
    for number in clips.spread(catalogue, BESIDE):
        clip = catalogue[int(number)]
        digest.update(f"{clip.path}\t{clip.start}\t{clip.end}\t{clip.labels}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _measure(model: VideoModel, card: ModelCard, stream: Backend, data: DataConfig) -> AccuracyPart | None:
    manifest = stream.artifact.manifest
    shape = [1, card.frames, card.size, card.size, 3]
    clip = manifest.model_copy(update={"mode": "clip", "input": InputPart(shape=shape), "stream": None})
    with tempfile.TemporaryDirectory(prefix="dtkd-edge-") as scratch:
        graph.to_onnx(model, card, Path(scratch) / "model.onnx")
        with open_backend(unfinished(Path(scratch), clip, target="onnx"), device="cpu") as reference:
            try:
                gate = open_gate(data, card.preprocess, card.labels, 100.0, reference, most=BESIDE)
            except DataError as error:
                say(f"accuracy of the stream beside the clip model's: not measured: {error.message}")
                return None
            return gate.measure(stream)


def _say_beside(card: ModelCard, stream: StreamPart, more: str = "") -> None:
    part, delay = stream.accuracy, stream.delay
    assert part is not None
    seconds = delay * frame_spacing(card.preprocess.sampling)
    say(
        f"frame by frame {card.model} is another function than on clips: top-1 {part.top1:.1%} of {part.clips} clips, "
        f"{part.top1_reference:.1%} on clips (drop {part.drop:.1f} ± {part.stderr:.1f} points), a label comes {delay} frames "
        f"({seconds:.1f} s) late; trained with --set student.options.causal=true both are one function and no label is late{more}"
    )
