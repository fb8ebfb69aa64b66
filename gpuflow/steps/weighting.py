"""How much values count, as it is written: an expression of coordinates such as `cos(radians(lat))`. What it gives is a number a place,
which is known once the coordinates are read (see `gpuflow.pipelines.weights`)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator

from gpuflow.steps.expression import parse
from gpuflow.steps.parameters import describe

AREA = "cos(radians(lat))"
"""Of the cells of a grid of latitudes and longitudes: the usual example."""


def _weights(value: Any) -> str | None:
    """On one line."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"must be an expression of coordinates such as {AREA}, not {describe(value)}")
    parse(value, True)
    return " ".join(value.split())


WeightsText = Annotated[str | None, PlainValidator(_weights, json_schema_input_type=str | None)]
