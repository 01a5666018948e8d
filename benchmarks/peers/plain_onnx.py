"""The exported artefact against a plain export: `python -m dtkd_edge.benchmarks.peers.plain_onnx RUN [--threads 1]`.

Both in ONNX Runtime, one clip at a time, from the same decoded uint8 frames. Plain is `torch.onnx.export(model, float clip)`
with the normalisation in numpy before it, as most scripts have it; its graph alone is measured too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dtkd_edge.benchmarks.peers.students import constants, normalised, open_plain_onnx
from dtkd_edge.benchmarks.peers.turns import clip_artifacts, compare, options
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.exits import reported


def main(argv: Sequence[str] | None = None) -> None:
    asked = options(__doc__, argv)
    ours = next((a for a in clip_artifacts(asked.run) if a.manifest.target == "onnx" and a.manifest.precision == "fp32"), None)
    if ours is None:
        raise SystemExit(f"{asked.run}: no onnx artefact in fp32; run: dtkd-edge export {asked.run} --target onnx")
    session, info = open_plain_onnx(asked.run, asked.threads)
    name = session.get_inputs()[0].name
    mean, std = constants(info)
    frames = np.random.default_rng(0).integers(0, 256, [1, *ours.manifest.input.shape[1:]], np.uint8)
    ready = normalised(frames[0], mean, std)
    with open_backend(ours, device="cpu", threads=asked.threads) as backend:
        difference = np.abs(session.run(None, {name: ready})[0] - next(iter(backend.run(frames).values()))).max()
        print(f"largest difference of their logits: {difference:.1e}")
        compare(
            {
                ours.folder.name: lambda i: backend.run(frames),
                "plain, numpy normalisation": lambda i: session.run(None, {name: normalised(frames[0], mean, std)}),
                "plain, graph alone": lambda i: session.run(None, {name: ready}),
            },
            asked,
        )


if __name__ == "__main__":
    reported(main)
