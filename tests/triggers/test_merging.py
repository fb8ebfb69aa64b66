"""Pages of several nodes as one stream."""

from __future__ import annotations

import numpy as np
import pytest

from gpuflow.errors import ConfigError
from gpuflow.storage.seals import SEALED_DTYPE
from gpuflow.storage.tail import News, Page
from gpuflow.triggers.event import Cursor, Event
from gpuflow.triggers.merging import PATIENCE_SECONDS, Merging

_EMPTY = bytes(16)


def _page(*rows: tuple[int, int, int], news: tuple[News, ...] = (), version: int = 1) -> Page:
    """rows: (sequence number, chunk, generation) of d/x."""
    table = np.array(
        [(1, chunk, generation, 9, seq, 0, _EMPTY, _EMPTY, _EMPTY, 0) for seq, chunk, generation in rows], SEALED_DTYPE
    )
    until = max([seq for seq, _, _ in rows] + [one.seq for one in news], default=0)
    return Page(until, until, False, table, {1: ("d", "x")}, {"d": version}, ((1, 5.0, "r"),), news)


def _told(events: object) -> list[tuple[str, int | None, int]]:
    return [(event.kind, event.chunk, event.generation) for event in events if isinstance(event, Event)]  # type: ignore[attr-defined]


def _news(seq: int, kind: str, version: int) -> News:
    return News(seq, 5.0, kind, "d", "", version)


def test_what_several_nodes_hold_is_told_once_and_nothing_older() -> None:
    merging = Merging()
    assert _told(merging.events("a", _page((1, 0, 1), (2, 700, 3)), 0.0)) == [("created", 0, 1), ("updated", 700, 3)]
    assert _told(merging.events("b", _page((1, 0, 1), (2, 700, 2), (3, 1, 1)), 0.0)) == [("created", 1, 1)]
    assert _told(merging.events("b", _page((4, 0, 2)), 0.0)) == [("updated", 0, 2)]


def test_published_comes_when_every_node_has_said_so() -> None:
    merging = Merging()
    assert _told(merging.events("a", _page((1, 0, 1), news=(_news(2, "published", 2),)), 0.0)) == [("created", 0, 1)]
    assert _told(merging.due({"a", "b"}, 0.1)) == []
    assert merging.held("a") == 2
    assert _told(merging.events("b", _page((1, 1, 1), news=(_news(2, "published", 2),)), 0.2)) == [("created", 1, 1)]
    assert _told(merging.due({"a", "b"}, 0.2)) == [("published", None, 2)]
    assert merging.held("a") is None
    assert _told(merging.due({"a", "b"}, 9.0)) == []
    assert _told(merging.events("c", _page(news=(_news(1, "published", 2),)), 9.0)) == []


def test_published_does_not_wait_for_ever() -> None:
    merging = Merging()
    assert _told(merging.events("a", _page(news=(_news(2, "published", 2),)), 0.0)) == []
    assert _told(merging.due({"a", "b"}, PATIENCE_SECONDS + 0.1)) == [("published", None, 2)]


def test_a_dataset_made_anew_begins_at_generation_1_whatever_others_still_tell_of_the_old_one() -> None:
    merging = Merging()
    list(merging.events("a", _page((1, 0, 7)), 0.0))
    page = _page((3, 0, 1), news=(_news(2, "removed", 2),), version=3)
    assert _told(merging.events("a", page, 0.0)) == [("removed", None, 2), ("created", 0, 1)]
    assert _told(merging.events("b", _page((9, 0, 8), version=1), 0.0)) == [], "of the dataset that was removed"
    assert _told(merging.events("b", _page((11, 0, 1), news=(_news(10, "removed", 2),), version=3), 0.0)) == []


def test_time_and_run_are_those_of_the_commit() -> None:
    (event,) = Merging().events("a", _page((1, 0, 1)), 0.0)
    assert (event.time, event.run, event.node, event.sequence) == (5.0, "r", "a", 1)
    assert event.to_dict()["time"] == "1970-01-01T00:00:05.000+00:00"
    assert event.identity == ("d", "x", 0, 1)


def test_a_cursor_is_text() -> None:
    cursor = Cursor({"b": 3, "a": 2**40})
    assert Cursor.parse(f" {cursor}\n") == cursor
    for text in ("", "nonsense!", str(cursor)[:-3], str(cursor)[1:], "A" * 400, "W10"):
        with pytest.raises(ConfigError, match="is no cursor; give the whole text"):
            Cursor.parse(text)
