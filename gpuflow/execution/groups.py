"""Chunks of one array, grouped into tasks.

Pure. Chunks of a group have the same holders and are neighbours where they can be. 32 chunks a task cost the scheduler 31 us each
against 673 for one each; but a worker should get several tasks, so that the last ones to finish are small."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

MOST_CHUNKS = 32
MOST_NBYTES = 256 * 2**20
"""Encoded bytes of a group, whatever its number of chunks: what one task may cost when it has to be done again."""
_TASKS_PER_SLOT = 8


def group_chunks(
    chunks: Sequence[int], keys: Sequence[K], nbytes: Sequence[int], slots: Mapping[K, int], threads: int
) -> list[tuple[K, list[int]]]:
    """Groups of (key, chunks). keys: what each chunk's task is routed by; nbytes: of each chunk; slots: threads that serve a key;
    threads: of the whole cluster, which share the work of a key that has too much.

    The order of the groups goes round the keys, so that every node has work from the start."""
    by_key: dict[K, list[tuple[int, int]]] = {}
    for chunk, key, size in sorted(zip(chunks, keys, nbytes, strict=True), key=lambda row: row[0]):
        by_key.setdefault(key, []).append((chunk, size))
    queues = []
    for key, rows in by_key.items():
        fair = min(len(rows) // max(slots.get(key, 1), 1), len(chunks) // max(threads, 1))
        most = max(1, min(MOST_CHUNKS, fair // _TASKS_PER_SLOT))
        queues.append([(key, part) for part in _cut(rows, most)])
    rounds = ((number, key, part) for queue in queues for number, (key, part) in enumerate(queue))
    return [(key, part) for _, key, part in sorted(rounds, key=lambda row: row[0])]


def _cut(rows: Sequence[tuple[int, int]], most: int) -> list[list[int]]:
    parts: list[list[int]] = []
    total = 0
    for chunk, size in rows:
        if not parts or len(parts[-1]) == most or total + size > MOST_NBYTES:
            parts.append([])
            total = 0
        parts[-1].append(chunk)
        total += size
    return parts
