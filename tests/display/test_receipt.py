"""A receipt's table: what it says of locality."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from rich.console import Console

from gpuflow.display.receipt import receipt_view
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.submit import Outcome
from gpuflow.execution.tally import Tally


def shown(saved: float | None = None, **counts: object) -> str:
    outcome = Outcome(tally=Tally(**counts))  # type: ignore[arg-type]
    receipt = Receipt("r1", "a -> b", "f", "b", "late", 10, 0, 1.0, 0, outcome, 0, ("n0",), saved_seconds=saved)
    text = io.StringIO()
    Console(file=text, width=300).print(receipt_view(receipt.to_dict()))
    return next(line for line in text.getvalue().splitlines() if "locality" in line).partition("locality")[2].strip()


def test_all_local() -> None:
    assert shown(read=2048, local_chunks=2) == "2 chunks (2.0 KiB) read where they lie; 0 shipped"


def test_shipped_for_two_reasons_and_kept_in_part() -> None:
    why = Counter(hot_node=2048, holder_lost=1024)
    text = shown(read=4096, shipped=3072, local_chunks=1, remote_chunks=3, shipped_why=why, kept=1024)
    assert text == (
        "1 chunks (1.0 KiB) read where they lie; 3 shipped (1.0 KiB for holder_lost, 2.0 KiB for hot_node); 1.0 KiB of that kept"
    )


@pytest.mark.parametrize(
    ("saved", "said"), [(2.0, "locality saved about 2.0 s"), (-0.5, "locality cost about 500 ms"), (0.0, "shipped")]
)
def test_what_it_was_worth(saved: float, said: str) -> None:
    text = shown(saved, read=1024, local_chunks=1)
    assert said in text
    assert ("against shipping everything" in text) == bool(saved)
