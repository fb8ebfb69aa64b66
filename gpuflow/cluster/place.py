"""Where a store root really is.

A path does not tell: two machines have the same one, and containers of one machine see the same folder under different paths."""

from __future__ import annotations

from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
"""The same in all containers of a machine, and on no other machine."""


def place_of(root: Path) -> str:
    """Equal for two roots if they are one folder of one running machine."""
    return f"{disk_of(root)}:{root.stat().st_ino}"


def disk_of(root: Path) -> str:
    """Equal for two roots on one file system of one running machine."""
    return f"{machine()}:{root.stat().st_dev}"


def machine() -> str:
    """This one, while it runs; empty where the kernel does not say."""
    return _BOOT.read_text().strip() if _BOOT.exists() else ""
