"""What a node's hardware can do, as `gpuflow calibrate` measured it, and the file in which the store root keeps it.

Rates are in GB/s (10^9 bytes a second). The file is replaced whole: readers see the old figures or the new ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gpuflow.storage.disk import read_file, store_errors, write_durably

FORMAT = 2
FILE_NAME = "calibration.json"


class DamagedCalibration(ValueError):
    """A file, or data, that is no calibration of this format."""


@dataclass(frozen=True, slots=True)
class CodecRates:
    """A compressor on one core, in decoded GB/s. ratio: decoded over encoded bytes of the field that was measured."""

    encode_gb_s: float
    decode_gb_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """One node. Rates with `threads_` are of `threads` threads together, the others of one.

    Writes are durable: the fsync counts. Disk reads are of files that are not in the page cache, cache reads of files that are."""

    measured_at: str
    threads: int
    write_gb_s: float
    threads_write_gb_s: float
    read_gb_s: float
    threads_read_gb_s: float
    cache_read_gb_s: float
    copy_gb_s: float
    fsync_seconds: float
    chunk_seconds: float
    """Of a small chunk on one thread: from its row to the commit, with others, of what is made of it; without any fsync."""
    durable_chunk_seconds: float
    """The same with all that makes it durable."""
    codecs: Mapping[str, CodecRates]
    """By the names of `storage.metadata.COMPRESSORS`; `none` is not measured, since it does nothing."""
    device_decode_gb_s: Mapping[str, float] = field(default_factory=dict)
    """Of shards that a CUDA device of the node decodes, copied to it, by the same names; empty without one."""
    device_encode_gb_s: Mapping[str, float] = field(default_factory=dict)
    """Of shards that it encodes, copied from it."""
    device_read_gb_s: Mapping[str, float] = field(default_factory=dict)
    """Of files, not in the page cache, to its memory and verified: `copied` by way of the host, `direct` by the device itself if it may."""

    def decodes_sooner_on_device(self, compressor: str, threads: int) -> bool:
        """Whether the device decodes what `threads` threads would decode meanwhile; True for what was not measured."""
        there, here = self.device_decode_gb_s.get(compressor), self.codecs.get(compressor)
        return there is None or here is None or there >= threads * here.decode_gb_s

    def encodes_sooner_on_device(self, compressor: str, threads: int) -> bool:
        """The same of encoding; False for what was not measured: only what was decoded again, and was the same, is trusted."""
        there, here = self.device_encode_gb_s.get(compressor), self.codecs.get(compressor)
        return there is not None and here is not None and there >= threads * here.encode_gb_s

    @property
    def reads_sooner_directly(self) -> bool:
        """Whether the device reads files sooner by itself."""
        return self.device_read_gb_s.get("direct", 0.0) > self.device_read_gb_s.get("copied", math.inf)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the file has it."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Any) -> Calibration:
        """The inverse of `to_dict`. DamagedCalibration says what is wrong."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DamagedCalibration(f"it is not of format {FORMAT}")
        try:
            codecs = {
                name: CodecRates(**{one.name: _positive(rates[one.name]) for one in fields(CodecRates)})
                for name, rates in data["codecs"].items()
            }
            tables = ("device_decode_gb_s", "device_encode_gb_s", "device_read_gb_s")
            plain = ("measured_at", "threads", "codecs", *tables)
            decode, encode, read = ({str(k): _positive(rate) for k, rate in data.get(key, {}).items()} for key in tables)
            rates = {one.name: _positive(data[one.name]) for one in fields(cls) if one.name not in plain}
            when, threads = str(data["measured_at"]), int(_positive(data["threads"]))
            return cls(
                measured_at=when,
                threads=threads,
                codecs=codecs,
                device_decode_gb_s=decode,
                device_encode_gb_s=encode,
                device_read_gb_s=read,
                **rates,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedCalibration(f"{type(error).__name__}: {error}") from error


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{value!r} is no rate")
    return float(value)


def keep(root: Path, calibration: Calibration) -> None:
    """Write the root's file, durably. StoreError when it cannot be written."""
    with store_errors(root):
        write_durably(root / FILE_NAME, (json.dumps(calibration.to_dict(), indent=2) + "\n").encode())


def kept(root: Path) -> Calibration | None:
    """What the root's file says; None when it has none. DamagedCalibration when it cannot be understood."""
    try:
        data = read_file(root / FILE_NAME)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedCalibration(f"it cannot be read ({error.strerror})") from error
    try:
        return Calibration.from_dict(json.loads(data))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DamagedCalibration(f"it is no JSON ({error})") from error


def kept_or_reason(root: Path) -> Calibration | str | None:
    """`kept`, with what is wrong with a damaged file as text, for answers that cross the network."""
    try:
        return kept(root)
    except DamagedCalibration as error:
        return str(error)
