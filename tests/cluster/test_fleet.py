"""The indices say at every look what counting all workers anew would say."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gpuflow.cluster.fleet import DEPTH, Fleet, WorkerView

addresses = st.sampled_from([f"w{number}" for number in range(6)])
workers = st.dictionaries(addresses, st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 7)), max_size=6)


@given(st.lists(workers, max_size=8), st.randoms(use_true_random=False))
def test_any_sequence_of_looks(looks: list[dict[str, tuple[str, int, int]]], random: object) -> None:
    fleet, made = Fleet(), dict[tuple[object, ...], WorkerView]()
    for look in looks:
        views = [made.setdefault((address, *rest), WorkerView(address, *rest)) for address, rest in look.items()]
        random.shuffle(views)  # type: ignore[attr-defined]
        fleet.see(views)
        working = [view for view in views if view.threads]
        assert fleet.threads == Counter({n: sum(v.threads for v in working if v.node == n) for n in {v.node for v in working}})
        assert fleet.reachable == Counter(view.node for view in views)
        assert fleet.room == {view.address: view for view in views if view.processing < DEPTH * view.threads}
        assert fleet.idle == sum(max(view.threads - view.processing, 0) for view in views)


def test_a_node_without_a_thread_serves_and_does_not_count() -> None:
    fleet = Fleet()
    fleet.see([WorkerView("w0", "a", 0, 3), WorkerView("w1", "b", 2, 1)])
    assert (dict(fleet.threads), dict(fleet.reachable)) == ({"b": 2}, {"a": 1, "b": 1})
    assert set(fleet.room) == {"w1"}
