"""What computing and shipping cost, as measured so far.

Pure: who measures passes the seconds. Until something has been measured there is a first guess for it."""

from __future__ import annotations

from dataclasses import dataclass, field

_FIRST_COMPUTE = 200e6  # decoded bytes/s until a task of the run has been measured: zstd decode and encode on one core
_FIRST_TRANSFER = 500e6  # bytes/s until a transfer has been measured: the lower of the loopback figures for plain sends
_TRANSFER_LATENCY_SECONDS = 0.002  # a locate and a fetch: two round trips of 384 us and their scheduling
_TELLING_NBYTES = 2**20  # a transfer of so many says half as much as a long one: what a short one takes is latency
_WEIGHT = 0.3  # of the newest measurement in the moving averages
_PACE_WEIGHT = 0.1  # the same for a node's pace: by it nodes are compared, and chance is not to make a difference
_SLOWER, _SLOWER_BY_ONE = 1.5, 8
"""A node is slower than another when its tasks take 1.5 times as long, and 1 + 8 / n times where n tasks have been measured: with task
times that vary by a quarter (one standard deviation), chance does not make that of their averages; those of milliseconds on a busy
machine vary by much more."""


@dataclass(slots=True)
class Rates:
    """Moving averages. Computing is in seconds per unit of work, by run, and by run and node."""

    transfer: float = 1 / _FIRST_TRANSFER
    compute: dict[str, float] = field(default_factory=dict)
    paces: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)
    """run -> node -> (seconds per unit of work, tasks measured)"""

    def compute_rate(self, run: str, node: str) -> float:
        """Expected seconds per unit of work of `run` on `node`."""
        return self._pace(run, node)[0] or self.compute.get(run, 1 / _FIRST_COMPUTE)

    def transfer_seconds(self, nbytes: int) -> float:
        """Expected seconds to ship `nbytes` to another node."""
        return _TRANSFER_LATENCY_SECONDS + nbytes * self.transfer

    def is_known(self, run: str, node: str) -> bool:
        """Whether a task of `run` has been measured on `node`."""
        return self._pace(run, node)[1] > 0

    def is_below_average(self, run: str, node: str) -> bool:
        """Whether tasks of `run` took longer on `node` than elsewhere."""
        return self._pace(run, node)[0] > self.compute.get(run, 0.0)

    def is_slower(self, run: str, node: str, other: str) -> bool:
        """Whether it has shown that tasks of `run` take longer on `node` than on `other`."""
        (pace, measured), (others_pace, others_measured) = self._pace(run, node), self._pace(run, other)
        least = min(measured, others_measured)
        return least > 0 and pace > max(_SLOWER, 1 + _SLOWER_BY_ONE / least) * others_pace

    def computed(self, run: str, node: str, work: float, seconds: float) -> None:
        """A task of `run` took `seconds` on `node`."""
        rate = seconds / max(work, 1)
        self.compute[run] = (1 - _WEIGHT) * self.compute.get(run, rate) + _WEIGHT * rate
        pace, measured = self._pace(run, node)
        pace += (rate - pace) * max(_PACE_WEIGHT, 1 / (measured + 1))
        self.paces.setdefault(run, {})[node] = (pace, measured + 1)

    def transferred(self, nbytes: int, seconds: float) -> None:
        """`nbytes` were shipped in `seconds`."""
        if nbytes:
            weight = _WEIGHT * nbytes / (nbytes + _TELLING_NBYTES)
            self.transfer = (1 - weight) * self.transfer + weight * max(seconds - _TRANSFER_LATENCY_SECONDS, 0.0) / nbytes

    def ended(self, run: str) -> None:
        """Forget what was learned for `run`."""
        self.compute.pop(run, None)
        self.paces.pop(run, None)

    def _pace(self, run: str, node: str) -> tuple[float, int]:
        return self.paces.get(run, {}).get(node, (0.0, 0))
