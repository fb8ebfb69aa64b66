"""Which compressor finishes soonest: `compressor: auto`.

Pure: from what the nodes measured. The codec and the disk work side by side, so that the slower of the two is what counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpuflow.storage.calibration import Calibration
from gpuflow.storage.metadata import COMPRESSORS

DEFAULT = "zstd"
_NEARLY = 1.1
"""Among those whose time is within 10% of the best, the smallest output: calibrations vary by as much from day to day."""
_NO_CODEC_GB_S = float("inf")
_STANDARD = tuple(
    name for name, codecs in COMPRESSORS.items() if not any(codec["name"].startswith("numcodecs.") for codec in codecs)
)
"""Those that every reader of Zarr v3 knows; a codec of numcodecs' own is only used where it is named."""


@dataclass(frozen=True, slots=True)
class Choice:
    """name: a key of `COMPRESSORS`. why: in one line, with the figures."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} - {self.why}"


@dataclass(frozen=True, slots=True)
class _Estimate:
    """A candidate on its slowest node. Rates in decoded GB/s; ratio: decoded over encoded bytes."""

    name: str
    ratio: float
    codec_gb_s: float
    disk_gb_s: float
    node: Calibration

    @property
    def gb_s(self) -> float:
        return min(self.codec_gb_s, self.disk_gb_s)


def choose_compressor(calibrations: Mapping[str, Calibration | None], source_ratios: Mapping[str, float] | None = None) -> Choice:
    """The compressor that finishes soonest on the slowest node. calibrations: by node, None for one that has none.

    source_ratios: decoded over stored bytes of the data itself, by the compressor that it is stored with; the calibrations' fields
    stand in for the others."""
    known = {node: found for node, found in sorted(calibrations.items()) if found is not None}
    if not known:
        return Choice(DEFAULT, "the default: no node is calibrated; run `gpuflow calibrate`")
    candidates = [
        min((_estimate(name, one, source_ratios or {}) for one in known.values()), key=lambda estimate: estimate.gb_s)
        for name in _STANDARD
        if name == "none" or all(name in one.codecs for one in known.values())
    ]
    best = max(estimate.gb_s for estimate in candidates)
    chosen = max((one for one in candidates if one.gb_s * _NEARLY >= best), key=lambda one: (one.ratio, one.gb_s))
    why = _why(chosen, candidates)
    if missing := len(calibrations) - len(known):
        why += f"; {missing} of {len(calibrations)} nodes are not calibrated"
    return Choice(chosen.name, why)


def _estimate(name: str, node: Calibration, source_ratios: Mapping[str, float]) -> _Estimate:
    ratio = 1.0 if name == "none" else source_ratios.get(name, node.codecs[name].ratio)
    codec = _NO_CODEC_GB_S if name == "none" else node.threads * node.codecs[name].encode_gb_s
    return _Estimate(name, ratio, codec, node.threads_write_gb_s * ratio, node)


def _why(chosen: _Estimate, candidates: list[_Estimate]) -> str:
    """Against the slowest disk, which is what writing as it is comes to."""
    slowest = next(one for one in candidates if one.name == "none").disk_gb_s
    disk = f"the disk ({slowest:.2g} GB/s)"
    if chosen.name == "none":
        quickest = max((one for one in candidates if one.name != "none"), key=lambda one: one.gb_s, default=None)
        if quickest is None:
            return f"{disk}; no codec is measured on every node"
        return (
            f"{disk} is faster than {_codec(quickest)}" if slowest > quickest.codec_gb_s else f"{_codec(quickest)} saves nothing"
        )
    if slowest < chosen.codec_gb_s:
        return f"{disk} is slower than {_codec(chosen)}"
    return f"{_codec(chosen)} keeps up with {disk} and writes less"


def _codec(estimate: _Estimate) -> str:
    rate = estimate.node.codecs[estimate.name].encode_gb_s
    return f"{estimate.name} ({estimate.node.threads} threads x {rate:.2g} GB/s, ratio {estimate.ratio:.1f})"
