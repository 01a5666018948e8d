"""Processes, precision and gradients of a training: what a loop over batches needs to know about the machine.

One process is the ordinary case. Started by `torchrun` or `accelerate launch`, every process (rank) takes a share of each batch,
gradients are averaged over ranks, and rank 0 alone writes and speaks.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed, nn

from dtkd_edge.errors import MissingDevice, NotHereError, RecipeError, UsageError
from dtkd_edge.train.memory import keep_freed_memory

T = TypeVar("T")
Precision = Literal["fp32", "bf16", "fp16"]
# How many processes a launcher started that sets no WORLD_SIZE.
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_LOST = ("closed by peer", "reset by peer", "remote process exited")  # in the words of gloo and NCCL
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(device: str) -> torch.device:
    """The device that auto, cpu or cuda means here; MissingDevice where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingDevice("device: cuda: torch finds no CUDA device here", "--set device=cpu, or install the GPU's driver")
    return torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")


class Engine:
    """The device of this process, its place among the others, and the precision that networks run in.

    device:    auto, cpu or cuda; with several processes each has a GPU of its own, or all share the CPU
    precision: fp32, or bf16 / fp16 autocast; weights, optimiser and losses stay in float32
    """

    def __init__(self, device: str = "auto", precision: Precision = "fp32") -> None:
        self.device = find_device(device)
        self.rank, self.world = 0, int(os.environ.get("WORLD_SIZE", "1"))
        if "WORLD_SIZE" not in os.environ and any(os.environ.get(name, "1") != "1" for name in _LAUNCHED):
            raise UsageError(
                "mpirun or srun: each of its processes would train alone",
                "start them by torchrun, or set WORLD_SIZE=1 for a single one",
            )
        if self.world > 1:
            from accelerate import PartialState

            state = PartialState(cpu=self.device.type == "cpu")  # joins the others, by torchrun's variables
            self.rank, self.world, self.device = state.process_index, state.num_processes, state.device
        keep_freed_memory()
        self.precision = precision
        if precision == "fp16" and self.device.type == "cpu":
            raise RecipeError("precision: fp16 trains on GPUs only", "--set precision=bf16, or fp32")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @contextmanager
    def others_end(self) -> Iterator[None]:
        """NotHereError where this process only fails because another one of the training has ended."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not any(said in str(error) for said in _LOST):
                raise
            raise NotHereError("another process of this training has ended", "see what that one said") from error

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _HALF[self.precision])

    def distribute(self, task: nn.Module, sync_bn: bool = True) -> nn.Module:
        """The module to call: the task itself, or the task in a wrapper that averages gradients over ranks, with batch norms
        that share their statistics where `sync_bn` says so."""
        if self.world == 1:
            return task
        if sync_bn:
            from dtkd_edge.train.rank_norm import synchronise

            synchronise(task, self.device)
        parallel = nn.parallel.DistributedDataParallel
        # Shared statistics are the same everywhere; of others `average_norms` makes one, where rank 0's would replace the rest.
        # Before torch 2.14 this also leaves out sending the first ones; all ranks begin with the same.
        renamed = "forward_sync_buffers" in inspect.signature(parallel).parameters
        no_broadcast: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        on = [self.device.index] if self.device.type == "cuda" else None
        # A 1×1 kernel counts as either memory layout, and its gradient may come in the other one, which costs a copy of little.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return parallel(task, device_ids=on, **no_broadcast)

    def average_norms(self, model: nn.Module) -> None:
        """The running statistics of batch norms become their mean over ranks: every rank evaluates and keeps the same network."""
        if self.world > 1:
            from timm.utils import distribute_bn

            distribute_bn(model, self.world, reduce=True)

    @contextmanager
    def accumulating(self, module: nn.Module, more: bool) -> Iterator[None]:
        """Leave the averaging over ranks to the last of several backward passes."""
        quiet = more and isinstance(module, nn.parallel.DistributedDataParallel)
        with module.no_sync() if quiet else nullcontext():  # type: ignore[operator]
            yield

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over ranks."""
        if self.world > 1:
            value = value.clone()
            distributed.all_reduce(value)
            value /= self.world
        return value

    def gather(self, value: T) -> list[T]:
        """A picklable value of every rank, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def agree(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            distributed.barrier()

    def close(self) -> None:
        if self.world > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()
