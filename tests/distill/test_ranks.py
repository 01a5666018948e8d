"""Losses of a batch that several processes hold parts of: real processes, real gloo."""

from __future__ import annotations

import os
import socket

import pytest
import torch

from dtkd_edge.distill.ranks import batch_mean, gather_batch
from dtkd_edge.distill.rivals import dist_loss
from dtkd_edge.distill.rkd import relational_loss
from dtkd_edge.distill.sdd import (
    DeepBranch,
    FixedProjection,
    feature_distance,
    project_standardised,
    residual,
    unit_variances,
)


def rkd(student, teacher):
    return relational_loss(gather_batch(student), gather_batch(teacher))


def dist(student, teacher):
    return dist_loss(gather_batch(student), gather_batch(teacher))


def sdd(student, teacher):
    widths = [2, 4]
    phi = [FixedProjection(width, 3, (1, 1, 1), seed) for seed, width in enumerate(widths)]
    cnn, vit = project_standardised(phi, [t[..., None, None, None] for t in teacher.split(widths, 1)])
    return feature_distance(student[:, :3].reshape(-1, 3, 1, 1, 1), unit_variances([residual(vit, cnn)])[0][0])


def deep_branch(student, teacher):
    """Whose norms are of each clip by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        branch = DeepBranch(3, 2, hidden=4, grid=(2, 1, 1)).double()
    torch.nn.init.ones_(branch.non_local.norm.weight)
    target = unit_variances([teacher[:, :4].reshape(-1, 2, 2, 1, 1)])[0][0]
    return feature_distance(branch(student.reshape(-1, 3, 2, 1, 1)), target)


def test_nothing_changes_in_one_process():
    x = torch.randn(3, 4)
    assert gather_batch(x) is x and batch_mean(x) is x


LOSSES = [rkd, dist, sdd, deep_branch]
BATCH = 6


def _rank(rank, world, port, student, teacher, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for loss in LOSSES:
        mine = torch.tensor(student[part], dtype=torch.float64, requires_grad=True)
        value = loss(mine, torch.tensor(teacher[part], dtype=torch.float64))
        value.backward()
        queue.put((loss.__name__, rank, value.item(), mine.grad.tolist()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def said_by_two():
    """A batch's features (student's, teacher's), and of every loss what two processes with half of the batch each say."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(BATCH, 6, dtype=torch.float64, generator=generator).tolist() for _ in range(2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, 2, port, student, teacher, queue)) for r in range(2)]
    for process in ranks:
        process.start()
    results = sorted(queue.get(timeout=120) for _ in ranks for _ in LOSSES)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return student, teacher, results


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_two_ranks_make_one_batch(loss, said_by_two):
    """The mean of the ranks' losses is the whole batch's, and the mean of their gradients its gradient."""
    student, teacher, every = said_by_two
    whole = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    want = loss(whole, torch.tensor(teacher, dtype=torch.float64))
    want.backward()
    results = [result[1:] for result in every if result[0] == loss.__name__]
    assert [rank for rank, _, _ in results] == [0, 1]
    assert sum(value for _, value, _ in results) / 2 == pytest.approx(want.item(), rel=1e-12)
    gradient = torch.cat([torch.tensor(part, dtype=torch.float64) for _, _, part in results])
    torch.testing.assert_close(gradient / 2, whole.grad)
