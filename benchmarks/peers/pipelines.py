"""From the file to the label, against the pipelines of the usual frameworks:

    python -m dtkd_edge.benchmarks.peers.pipelines RUN [VIDEO …] [--threads 1]

ours         the sampled frames decoded, resized, cropped, the artefact in its runtime (what `predict` does with one video)
torchvision  its video classification reference: the whole video decoded with PyAV (as `read_video` did), transforms v2, torch
mmaction2    its test pipeline: decord with one thread, cv2 resize of the short side, centre crop, numpy normalisation, torch

The same student, frames sampled alike, one video at a time, taking turns. mmaction2's needs cv2 (opencv-python).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.benchmarks.peers.students import constants, normalised, open_torch
from dtkd_edge.benchmarks.peers.turns import Query, clip_artifacts, compare, find_videos, options
from dtkd_edge.deploy.backends import Backend, open_backend
from dtkd_edge.exits import reported
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.video import read_input


def torchvision_clip(path: Path, spec: Preprocess, transform: Callable[[Any], Any]) -> Any:
    """A video as torchvision's reference reads it → float tensor `[1, 3, T, H, W]`."""
    import av
    import torch

    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    picked = np.stack([whole[i] for i in spec.sampling.indices(len(whole))[0]])
    return transform(torch.from_numpy(picked).permute(0, 3, 1, 2)).transpose(0, 1)[None]


def torchvision_transform(spec: Preprocess, info: Any) -> Callable[[Any], Any]:
    import torch
    from torchvision.transforms import v2

    transform: Callable[[Any], Any] = v2.Compose(
        [
            v2.Resize(spec.resize_short, antialias=True),
            v2.CenterCrop(spec.crop),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(info.mean, info.std),
        ]
    )
    return transform


def mmaction_clip(path: Path, spec: Preprocess, mean: NDArray[np.float32], std: NDArray[np.float32]) -> NDArray[np.float32]:
    """DecordInit, SampleFrames, DecordDecode, Resize, CenterCrop, Normalize, FormatShape(NCTHW), without the framework."""
    import cv2
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    frames = reader.get_batch(spec.sampling.indices(len(reader), reader.get_avg_fps())[0]).asnumpy()
    height, width = frames.shape[1:3]
    scale = spec.resize_short / min(height, width)
    size = (round(width * scale), round(height * scale))
    left, top = (size[0] - spec.crop) // 2, (size[1] - spec.crop) // 2
    scaled = [cv2.resize(f, size, interpolation=cv2.INTER_LINEAR)[top : top + spec.crop, left : left + spec.crop] for f in frames]
    return normalised(np.stack(scaled), mean, std)


def ours(backend: Backend, videos: list[Path]) -> Query:
    spec = backend.artifact.manifest.preprocess
    return lambda i: backend.run(read_input(videos[i % len(videos)], spec))


def main(argv: Sequence[str] | None = None) -> None:
    import torch

    asked = options(__doc__, argv, videos=True)
    artifacts, videos = clip_artifacts(asked.run), find_videos(asked.run, asked.videos)
    spec = artifacts[0].manifest.preprocess
    model, info = open_torch(asked.run, asked.threads)
    mean, std = constants(info)

    def in_torch(read: Callable[[Path], Any]) -> Query:
        def query(i: int) -> object:
            with torch.inference_mode():
                return model(torch.as_tensor(read(videos[i % len(videos)])))

        return query

    with ExitStack() as stack:
        queries: dict[str, Query] = {}
        for artifact in artifacts:
            backend = stack.enter_context(open_backend(artifact, device="cpu", threads=asked.threads))
            queries[f"ours, {artifact.folder.name}"] = ours(backend, videos)
        transform = torchvision_transform(spec, info)
        queries["torchvision's reference"] = in_torch(lambda path: torchvision_clip(path, spec, transform))
        try:
            mmaction_clip(videos[0], spec, mean, std)
        except Exception as error:  # no cv2; or decord2 on a frame whose width divides 192
            print(f"without mmaction2's pipeline: {(str(error).strip().splitlines() or ['?'])[0]}")
        else:
            queries["mmaction2's pipeline"] = in_torch(lambda path: mmaction_clip(path, spec, mean, std))
        print(f"{len(videos)} videos")
        compare(queries, asked)


if __name__ == "__main__":
    reported(main)
