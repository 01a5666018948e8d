"""Batch norms over ranks against torch's own on the whole batch, in float64: values, gradients, running statistics."""

from __future__ import annotations

import copy
import os
import socket
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from dtkd_edge.train.rank_norm import RankBatchNorm, synchronise

CPU = torch.device("cpu")


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """A norm of every kind behind a layer, and a batch of four for it whose halves differ."""
    torch.manual_seed(0)
    made = {
        "1d": (nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), torch.randn(4, 3)),
        "2d": (nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, momentum=0.3)), torch.randn(4, 3, 4, 2)),
        "3d": (nn.Sequential(nn.Conv3d(3, 5, 1), nn.BatchNorm3d(5, momentum=None)), torch.randn(4, 3, 2, 2, 3)),
        "activation": (nn.Sequential(nn.Conv2d(3, 5, 1), BatchNormAct2d(5)), torch.randn(4, 3, 4, 2)),
        "plain": (nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, affine=False)), torch.randn(4, 3, 4, 2)),
    }
    shifted = {
        name: (net.double(), x.double() + torch.arange(4.0).view(-1, *[1] * (x.ndim - 1))) for name, (net, x) in made.items()
    }
    for net, _ in shifted.values():
        for parameter in net.parameters():
            nn.init.normal_(parameter)
    return shifted


def step(net: nn.Module, x: Tensor) -> dict[str, Any]:
    """Two steps' outputs, the gradients of the second, the state that they leave."""
    for _ in range(2):
        x = x.detach().clone().requires_grad_()
        out = net(x)
        net.zero_grad()
        out.square().mean().backward()
    assert x.grad is not None
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {
        "out": out.detach(),
        "x": x.grad,
        "gradients": gradients,
        "state": {k: v.clone() for k, v in net.state_dict().items()},
    }


@pytest.mark.parametrize("kind", list(networks()))
def test_in_one_process_it_is_the_norm_that_it_replaces(kind: str) -> None:
    net, x = networks()[kind]
    ours = copy.deepcopy(net)
    synchronise(ours, CPU)
    assert isinstance(ours[1], RankBatchNorm) and list(ours.state_dict()) == list(net.state_dict())
    want, got = step(net, x), step(ours, x)
    torch.testing.assert_close(got, want)
    net.eval(), ours.eval()
    torch.testing.assert_close(ours(x), net(x))


def test_the_optimiser_keeps_its_parameters() -> None:
    net, _ = networks()["activation"]
    before = [id(p) for p in net.parameters()]
    synchronise(net, CPU)
    assert [id(p) for p in net.parameters()] == before


def test_the_norms_of_gpus_keep_their_activation() -> None:
    net, x = networks()["activation"]
    want = net.eval()(x)
    assert want.min() == 0
    synchronise(net, torch.device("cuda"))  # the conversion needs no GPU, nor does evaluation
    assert isinstance(net[1], nn.SyncBatchNorm)
    torch.testing.assert_close(net(x), want)


def test_half_precision_goes_through() -> None:
    net, x = networks()["activation"]
    net.float()
    synchronise(net, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x.float())
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def _rank(rank: int, port: int, queue: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for name, (net, x) in networks().items():
        synchronise(net, CPU)
        done = step(net, x[2 * rank : 2 * rank + 2])
        found[name] = {
            key: {k: v.tolist() for k, v in value.items()} if isinstance(value, dict) else value.tolist()
            for key, value in done.items()
        }
    queue.put((rank, found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_norm_as_one_process_with_the_whole_batch() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    (_, first), (_, second) = sorted(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    close = {"rtol": 1e-9, "atol": 1e-12}
    for name, (net, x) in networks().items():
        want = step(net, x)
        for key, share in (("out", 1), ("x", 2)):  # the mean over ranks of gradients is the gradient of the whole batch's mean
            got = torch.tensor(first[name][key] + second[name][key], dtype=torch.float64)
            torch.testing.assert_close(got / share, want[key], **close)
        for key, gradient in want["gradients"].items():
            both = [torch.tensor(found[name]["gradients"][key], dtype=torch.float64) for found in (first, second)]
            torch.testing.assert_close((both[0] + both[1]) / 2, gradient, **close)
        for found in (first, second):
            for key, value in want["state"].items():
                torch.testing.assert_close(torch.tensor(found[name]["state"][key]).to(value.dtype), value, rtol=1e-6, atol=1e-6)
