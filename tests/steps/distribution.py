"""A distribution that adds steps, laid out as pip would install it."""

from __future__ import annotations

from pathlib import Path

MODULE = '''\
"""Steps of another distribution."""

from typing import ClassVar

from gpuflow.steps.base import Elementwise


class Halve(Elementwise, frozen=True):
    """Divide by two, `times` times."""

    kind: ClassVar[str] = "halve"
    about: ClassVar[str] = "Divide by two."
    shorthand: ClassVar[tuple[str, ...]] = ("times",)
    examples = (2,)
    version: ClassVar[int] = VERSION

    times: int = 1

    def check(self, array):
        return array

    def apply(self, xp, block, region):
        return block / 2**self.times
'''


def install(folder: Path, *, name: str = "halving", points: str = "halve = halving:Halve", version: int = 1) -> Path:
    """Lay it into `folder`, which has to be on the path of whoever is to find it."""
    folder.mkdir(exist_ok=True)
    (folder / "halving.py").write_text(MODULE.replace("VERSION", str(version)))
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gpuflow.steps]\n{points}\n")
    return folder
