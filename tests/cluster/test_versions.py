"""Late binding only where it was tested."""

from __future__ import annotations

import distributed
import pytest

from gpuflow.cluster.versions import parse, routing_for


@pytest.mark.parametrize(
    ("text", "parts"),
    [("2026.8.0", (2026, 8, 0)), ("2026.8.0+12.gabc", (2026, 8, 0)), ("2026.7", (2026, 7, 0)), ("", ()), ("unknown", ())],
)
def test_parse(text: str, parts: tuple[int, ...]) -> None:
    assert parse(text) == parts


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ("2026.7.0", "strict"),
        ("2026.7.1", "late"),
        ("2026.8.0", "late"),
        ("2026.8.3+5.gdef", "late"),
        ("2026.9.0", "strict"),
        ("2027.1.0", "strict"),
        ("2025.12.0", "strict"),
        ("unknown", "strict"),
    ],
)
def test_tested_range(version: str, mode: str) -> None:
    assert routing_for(version) == mode
    assert routing_for(version, "late") == "late"
    assert routing_for(version, "strict") == "strict"


def test_what_is_installed_is_in_the_range() -> None:
    assert routing_for(distributed.__version__) == "late"
