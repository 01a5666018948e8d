"""A finished run over real video files: what `dtkd-edge train` leaves, made without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import dtkd_edge
from dtkd_edge.models import VideoModel, create_model
from dtkd_edge.models.saved import ModelCard, save_model
from dtkd_edge.preprocess import Preprocess, Sampling

CLASSES = ("left", "right")


def write_video(path: Path, seed: int, frames: int = 16, size: int = 64) -> None:
    """A textured square that moves over noise, as h264."""
    import av

    rng = np.random.default_rng(seed)
    ground = rng.integers(40, 200, (size, size, 3), dtype=np.uint8)
    patch = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            image = ground.copy()
            at = 2 * i if seed % 2 else 2 * (frames - i)
            image[10 + seed % 8 : 24 + seed % 8, at : at + 14] = patch[:, : max(0, size - at)][:, :14]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def trained(model: VideoModel, seed: int = 0) -> VideoModel:
    """Weights and batch-norm statistics that are not the initial ones, so that folding them wrongly shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.weight.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
        for parameter in model.head_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def make_card(model: VideoModel, labels: dict[str, list[str]], options: dict | None = None) -> ModelCard:
    info = model.info
    preprocess = Preprocess(resize_short=info.size, crop=info.size, sampling=Sampling(frames=info.frames))
    return ModelCard(
        version=dtkd_edge.__version__, model=info.name, frames=info.frames, stride=info.stride, size=info.size,
        options=options or {}, labels=labels, preprocess=preprocess,
    )  # fmt: skip


def write_run(
    folder: Path, root: Path, name: str = "tsm_tiny", size: int = 48, frames: int | None = None, **options: object
) -> Path:
    torch.manual_seed(0)
    model = trained(create_model(name, len(CLASSES), size=size, frames=frames, **options))
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "student", model, make_card(model, {"action": list(CLASSES)}, dict(options)))
    text = f"name: {folder.name}\ndata: {{kind: folder, root: {root}}}\nstudent: {{model: {name}, size: {size}}}\n"
    (folder / "recipe.yaml").write_text(text)
    return folder
