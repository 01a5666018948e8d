"""Depthwise 3-D convolutions: the kernels for CUDA against torch's convolution in float64, values and gradients.

Without a GPU the kernels run in Triton's interpreter, which has to be chosen before Triton is imported: in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from dtkd_edge.models import create_model, depthwise
from dtkd_edge.models.depthwise import Conv3d, _Depthwise, _is_fast, is_depthwise

# channels, kernel, stride, padding, input: X3D's stem and blocks, MViT's pools, and what neither has
CASES = [
    (24, (5, 1, 1), (1, 1, 1), (2, 0, 0), (1, 6, 4, 4)),
    (22, (3, 3, 3), (1, 1, 1), (1, 1, 1), (2, 4, 6, 5)),
    (70, (3, 3, 3), (1, 2, 2), (1, 1, 1), (2, 3, 7, 6)),
    (8, (3, 3, 3), (1, 8, 8), (1, 1, 1), (1, 2, 17, 24)),
    (5, (3, 3, 3), (2, 2, 1), (0, 1, 1), (2, 5, 7, 6)),
    (6, (1, 3, 3), (1, 1, 3), (0, 0, 2), (3, 2, 3, 4)),
    (3, (3, 3, 3), (1, 1, 1), (1, 1, 1), (2, 3, 9, 10)),  # the weight's gradient in several shares, the last one not full
]


def compare(device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Of every case: output and both gradients, and the same bits when asked again."""
    for channels, kernel, stride, padding, (batch, *size) in CASES:
        generator = torch.Generator().manual_seed(channels)
        x = torch.randn(batch, channels, *size, generator=generator).to(device, dtype).requires_grad_()
        weight = torch.randn(channels, 1, *kernel, generator=generator).to(device, dtype).requires_grad_()
        expected = F.conv3d(x.double(), weight.double(), None, stride, padding, 1, channels)
        grad = torch.randn(expected.shape, generator=generator).to(device, dtype)
        wanted = [expected.detach(), *torch.autograd.grad(expected, (x, weight), grad.double())]
        runs = []
        for _ in range(2):
            y = _Depthwise.apply(x, weight, stride, padding)
            runs.append([y.detach(), *torch.autograd.grad(y, (x, weight), grad)])
        for name, ours, again, reference in zip(("output", "input", "weight"), *runs, wanted, strict=True):
            assert ours.dtype is dtype and ours.shape == reference.shape and torch.equal(ours, again), (name, kernel, stride)
            error = float((ours.double() - reference).norm() / reference.norm())
            assert error < tolerance, (name, kernel, stride, error)


def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch's builds for CUDA")
    program = "import test_depthwise as t, torch; t.compare('cpu', torch.float32, 1e-6)"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_kernels_on_a_gpu(dtype: torch.dtype, tolerance: float) -> None:
    compare("cuda", dtype, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["x3d_s", "mvit_v2_s"])
def test_a_network_on_a_gpu_learns_as_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and all gradients with and without the kernels, and logits under autocast."""
    torch.manual_seed(0)
    model = create_model(name, 5, **({"frames": 4, "size": 64} if name == "x3d_s" else {})).cuda().eval()
    clips = torch.randn(2, 3, model.info.frames, model.info.size, model.info.size, device="cuda")

    def learn() -> list[torch.Tensor]:
        model.zero_grad()
        logits = model(clips)["action"]
        logits.float().square().sum().backward()
        return [logits.detach(), *[p.grad.clone() for p in model.parameters() if p.grad is not None]]

    apply, taken = _Depthwise.apply, []

    def counted(*given: Any) -> Any:
        taken.append(1)
        return apply(*given)

    monkeypatch.setattr(_Depthwise, "apply", counted)
    ours = learn()
    assert len(taken) == sum(isinstance(module, Conv3d) and is_depthwise(module) for module in model.modules())
    with monkeypatch.context() as patch:
        patch.setattr("dtkd_edge.models.depthwise._kernels", lambda: None)
        theirs = learn()
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).norm()) <= 2e-3 * float(b.norm()) + 1e-6  # other convolutions run in TF32
    with torch.autocast("cuda", torch.bfloat16):
        half = learn()
    assert float((half[0] - theirs[0]).norm()) < 0.05 * float(theirs[0].norm())


def test_elsewhere_it_is_torchs_convolution() -> None:
    torch.manual_seed(0)
    ours, x = Conv3d(6, 6, 3, stride=(1, 2, 2), padding=1, groups=6, bias=False), torch.randn(2, 6, 4, 9, 9)
    theirs = nn.Conv3d(6, 6, 3, stride=(1, 2, 2), padding=1, groups=6, bias=False)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), theirs(x))
    same = Conv3d(6, 6, 3, padding="same", groups=6)
    assert torch.equal(same(x), F.conv3d(x, same.weight, same.bias, padding=1, groups=6))


def test_without_a_compiler_it_is_torchs_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object) -> torch.Tensor:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(depthwise, "_kernels", lambda: SimpleNamespace(forward=forward))
    depthwise._works.cache_clear()
    with pytest.warns(UserWarning, match=r"Failed to find C compiler.*gcc"):
        assert not depthwise._works(torch.device("cpu"))
    assert not depthwise._works(torch.device("cpu"))  # said once
    depthwise._works.cache_clear()


def test_what_the_kernels_do_not_do_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """By tensors that only say that they are on a GPU."""
    monkeypatch.setattr(depthwise, "_kernels", SimpleNamespace)
    monkeypatch.setattr(depthwise, "_works", lambda device: True)
    ours: dict[str, Any] = {"kernel_size": 3, "padding": 1, "groups": 6, "bias": False, "device": "cuda"}
    size = (2, 6, 4, 9, 9)

    def fast(shape: tuple[int, ...], on: str = "cuda", **options: Any) -> bool:
        with FakeTensorMode():
            return _is_fast(torch.empty(shape, device=on), Conv3d(6, 6, **{**ours, **options}))

    assert fast(size) and fast(size, stride=(1, 2, 2)) and fast(size, kernel_size=1)
    assert not fast(size, "cpu", device="cpu") and not fast(size, device="cpu")
    others: dict[str, Any] = {"bias": True, "dilation": 2, "groups": 3, "kernel_size": 5, "padding_mode": "replicate"}
    assert not [name for name, value in others.items() if fast(size, "cuda", **{name: value})]
    assert not [shape for shape in [(0, 6, 4, 9, 9), (6, 4, 9, 9), (2, 5, 4, 9, 9), (2, 6, 1024, 512, 512)] if fast(shape)]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fast(size)


@pytest.mark.parametrize("name", ["x3d_xs", "mvit_v2_s"])
def test_the_networks_have_them(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, 5)
    deep = [module for module in model.modules() if isinstance(module, nn.Conv3d) and is_depthwise(module)]
    assert len(deep) > 20 and all(isinstance(module, Conv3d) for module in deep)
