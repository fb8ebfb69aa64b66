"""Who may keep a copy: never more than allowed, also while several ask at once, and not for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpuflow.cluster import claims
from gpuflow.cluster.claims import Claims

ARRAY = ("d", "x")
ONE = frozenset({"n0"})


def test_claims_count_as_copies_until_they_expire() -> None:
    asked = Claims()
    assert asked.grant("n1", ARRAY, [0, 1], [ONE, ONE], 2, 0.0) == [0, 1]
    assert asked.grant("n2", ARRAY, [0, 1, 2], [ONE, ONE, ONE], 2, 1.0) == [2]
    assert asked.grant("n2", ("d", "y"), [0], [ONE], 2, 1.0) == [0]
    assert asked.grant("n2", ARRAY, [0], [ONE], 2, claims._SECONDS) == [0]  # n1 never reported
    assert asked.grant("n1", ARRAY, [1], [ONE], 2, claims._SECONDS) == [1]
    assert asked.grant("n9", ARRAY, [], [], 2, 10 * claims._SECONDS) == []
    assert not asked._nodes
    assert not asked._order


def test_who_has_it_or_asked_before_is_not_granted_it_again() -> None:
    asked = Claims()
    assert asked.grant("n0", ARRAY, [0], [ONE], 3, 0.0) == []
    assert asked.grant("n1", ARRAY, [0], [ONE], 3, 0.0) == [0]
    assert asked.grant("n1", ARRAY, [0], [ONE], 3, 0.0) == []
    assert asked.grant("n2", ARRAY, [0], [ONE | {"n1"}], 3, 0.0) == [0]  # n1 has reported: it counts once


@given(
    st.lists(st.tuples(st.sampled_from(["n1", "n2", "n3", "n4"]), st.booleans(), st.floats(0, 20)), max_size=40),
    st.integers(1, 4),
)
def test_there_are_never_more_than_allowed(steps: list[tuple[str, bool, float]], most: int) -> None:
    """Nodes claim, and report at some time before a claim expires, or never."""
    asked, holders, open_claims, now = Claims(), {"n0"}, dict[str, float](), 0.0
    for node, reports, seconds in steps:
        now += seconds
        for other, since in list(open_claims.items()):
            if now - since >= claims._SECONDS:
                del open_claims[other]  # it died
        if reports and node in open_claims:
            holders.add(node)
            del open_claims[node]
        elif asked.grant(node, ARRAY, [7], [frozenset(holders)], most, now):
            open_claims[node] = now
        assert len(holders | open_claims.keys()) <= max(most, 1)
