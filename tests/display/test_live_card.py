"""The card of a call that is under way."""

from __future__ import annotations

import re
from html import unescape

import pytest

from gpuflow.display.live_card import LiveCard


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_says_how_far_each_pass_is_and_goes_away() -> None:
    cards: list[str] = []
    clock = Clock()
    with LiveCard("a -> b", cards.append, clock) as live:
        live.begin("statistics", 4)
        for _ in range(4):
            clock.now += 0.1
            live.advance(1)
        live.begin("map", 10)
        clock.now += 3.0
        live.advance(6)
        text = unescape(re.sub(r"<style>.*?</style>|<[^>]+>", "", cards[-1], flags=re.DOTALL))
    assert "a -> b" in text
    assert "statistics: 4 of 4 chunks in 400 ms" in text
    assert "map: 6 of 10 chunks in 3.0 s, about 2.0 s to go" in text
    assert 'width="336.0"' in cards[-2], "six tenths of the bar"
    assert cards[-1] == "", "it makes room for the receipt"


def test_it_is_drawn_some_times_a_second_and_at_the_end_of_a_pass() -> None:
    cards: list[str] = []
    clock = Clock()
    live = LiveCard("a -> b", cards.append, clock)
    live.begin("map", 1000)
    for _ in range(1000):
        clock.now += 0.001
        live.advance(1)
    assert len(cards) == 1 + 3 + 1
    assert "1,000 of 1,000 chunks" in cards[-1]


def _fail(live: LiveCard) -> None:
    live.begin("map", 10)
    raise KeyError


def test_after_an_error_it_stays_and_a_call_without_chunks_shows_none() -> None:
    cards: list[str] = []
    live = LiveCard("a -> b", cards.append)
    with pytest.raises(KeyError), live:
        _fail(live)
    assert "0 of 10 chunks" in cards[-1]
    with LiveCard("a -> b", cards.append):
        pass
    assert len(cards) == 1
