"""Functions as a user would write them, good and bad, for the step that applies them."""

# mypy: ignore-errors

from __future__ import annotations

from typing import Literal


def scale(xp, block, factor: float = 2.0, mode: Literal["up", "down"] = "up", shifts: tuple[int, ...] = ()):
    return (block * factor if mode == "up" else block / factor) + sum(shifts)


def needs(np, block, low: int, *, high: int):
    return np.clip(block, low, high)


def anything(xp, block, **options):
    return block + len(options)


def untyped(xp, block, values=None):
    return block * 1


def narrow(xp, block):
    return block.astype("float16")


def with_torch(torch, block, power: int = 2):
    return torch.pow(block, power)


def first(xp, block):
    return block.sum(axis=0)


def same(xp, block):
    return block


def reverse(xp, block):
    return block[..., ::-1]


def changes(xp, block):
    block += 1
    return block


def nothing(xp, block):
    block.mean()


def a_list(xp, block):
    return block.tolist()


def masked(xp, block):
    return xp.ma.masked_array(block * 1)


def text(xp, block):
    return block.astype(str)


def raises(xp, block):
    raise KeyError("no such thing")


def by_value(xp, block):
    return block * 1 if block.dtype == "float32" else (block * 1).astype("float64" if block.max() > 1 else "float32")


def no_block(array):
    return array


def named_otherwise(block, xp):
    return block


def taken(xp, block, returns=3):
    return block


def array_parameter(xp, block, weights: Elsewhere = None):  # noqa: F821
    return block


def tensor_view(torch, block):
    return block.T


def tensor_bfloat(torch, block):
    return block.to(torch.bfloat16)


def tensor_gradient(torch, block):
    return block.requires_grad_() * 2


def not_a_tensor(torch, block):
    return block.numpy() * 2


def tensor_meta(torch, block):
    return block.to("meta")


def tensor_from_numpy(xp, block):
    import torch

    return torch.ones(block.shape)


class FromElsewhere:
    __cuda_array_interface__ = {}  # noqa: RUF012


def device_array(xp, block):
    return FromElsewhere()


NUMBER = 3
