"""How an array of the output is stored: into what stored objects, and these into what inner chunks, it is cut.

Pure. Zarr's words: `shards` are the stored objects, `chunks` what is read one by one."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from gpuflow.errors import ConfigError, Problem
from gpuflow.pipelines.spec import Cut
from gpuflow.steps.base import ArraySpec
from gpuflow.storage.inner_chunks import inner_chunks

_STORED_NBYTES, _OBJECTS = 32 * 2**20, 64
"""Decoded size that a stored object grows to where `chunks` does not fit the source's: files large enough for any disk. But of an array so
many at least, as tasks for all threads, unless the source's are larger."""


def cut(
    path: str, array: ArraySpec, natural: tuple[int, ...], shards: Cut, chunks: Cut
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the stored objects and of the inner chunks of `array`. natural: how the source's are cut. ConfigError when it cannot be
    cut as it is said."""
    itemsize = array.dtype.itemsize
    if isinstance(shards, str):
        stored = natural
        if isinstance(chunks, str):
            return stored, stored if chunks == "whole" else inner_chunks(stored, itemsize)
        inner = _shape(path, array, chunks, "chunks")
        share = prod(array.shape) * itemsize // _OBJECTS
        nbytes = min(_STORED_NBYTES, max(prod(stored) * itemsize, share))
        return (stored if _divides(inner, stored) else _grown(inner, array.shape, nbytes // itemsize)), inner
    stored = _shape(path, array, shards, "shards")
    if isinstance(chunks, str):
        return stored, stored if chunks == "whole" else inner_chunks(stored, itemsize)
    inner = _shape(path, array, chunks, "chunks")
    if not _divides(inner, stored):
        reason = f"{list(inner)} does not divide the stored objects of array {path!r}, {list(stored)}, as `shards` has them"
        raise ConfigError([Problem(reason, "output.chunks", hint="give a divisor for each dimension, or leave `shards` out")])
    return stored, inner


def _shape(path: str, array: ArraySpec, wanted: tuple[int, ...] | Mapping[str, int], where: str) -> tuple[int, ...]:
    """-1, and dimensions that a mapping leaves out, are whole."""
    dims = array.dims
    if isinstance(wanted, Mapping):
        unknown = [name for name in wanted if dims.count(name) != 1]
        if unknown:
            named = ", ".join(f"`{name}`" for name in dims if name is not None)
            hint = f"its dimensions are {named}" if named else "its dimensions have no names: give a list"
            raise ConfigError([Problem(f"array {path!r} has no dimension `{unknown[0]}`", f"output.{where}", hint=hint)])
        wanted = tuple(wanted.get(name, -1) if name is not None else -1 for name in dims)
    if len(wanted) != len(array.shape):
        reason = f"{list(wanted)} does not have as many dimensions as array {path!r}, {list(array.shape)}"
        hint = "give a size for each dimension, or name them: {time: 1}; or name other arrays under `source`"
        raise ConfigError([Problem(reason, f"output.{where}", hint=hint)])
    return tuple(max(size, 1) if part == -1 else part for part, size in zip(wanted, array.shape, strict=True))


def _divides(inner: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    return not any(size % part for size, part in zip(stored, inner, strict=True))


def _grown(inner: tuple[int, ...], shape: tuple[int, ...], elements: int) -> tuple[int, ...]:
    """A whole number of inner chunks along each axis, the first axes first, of so many elements at most."""
    stored = list(inner)
    for axis, (part, size) in enumerate(zip(inner, shape, strict=True)):
        room = max(1, elements // max(1, prod(stored)))
        stored[axis] = part * max(1, min(room, -(-size // part)))
    return tuple(stored)
