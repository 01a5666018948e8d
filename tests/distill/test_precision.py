"""The device that a loss leaves autocast on."""

import torch

from dtkd_edge.distill.precision import _device, full_precision


def test_the_device_is_that_of_the_first_tensor_in_lists_too():
    there = torch.empty(1, device="meta")
    assert _device([1, "mse", [torch.nn.Identity()], [[there]]]) == "meta"
    assert _device([torch.empty(1), [there]]) == "cpu" and _device(["mse", [], 1]) is None


def test_lists_of_half_precision_tensors_come_as_float32():
    seen = full_precision(lambda tensors, product: (tensors[0].dtype, product(tensors[0]).dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert seen([torch.ones(2, 2, dtype=torch.bfloat16)], lambda x: x @ x) == (torch.float32, torch.float32)
