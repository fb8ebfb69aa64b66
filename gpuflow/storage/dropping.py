"""Replicas that a node gives up: the row goes first, then the file.

A crash in between leaves a file without a row, which is nobody's chunk: the doctor lists it, the next commit of the chunk replaces it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

from gpuflow.storage.disk import store_errors
from gpuflow.storage.node import NodeStore

_AT_ONCE = 256  # in a transaction, which other writers wait for


def drop(store: NodeStore, dataset: str, array: str, generations: Mapping[int, int]) -> list[int]:
    """Give up replicas, each if it is still at the given generation and no commit of it is under way. Which chunks they were of.

    That others hold them is for the caller to know."""
    gone, chunks = list[int](), sorted(generations)
    with store_errors(store.root):
        for start in range(0, len(chunks), _AT_ONCE):
            part = {chunk: generations[chunk] for chunk in chunks[start : start + _AT_ONCE]}
            rows = store.manifest.forget(dataset, array, part)
            with store.manifest.transaction():  # nobody announces a commit meanwhile
                for chunk in rows:
                    if store.manifest.replica(dataset, array, chunk) is None and not store.manifest.has_intent(
                        dataset, array, chunk
                    ):
                        with suppress(FileNotFoundError):
                            os.unlink(store.path(dataset, array, chunk))
            gone += rows
    return gone
