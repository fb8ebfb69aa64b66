"""Where the store roots of one machine's nodes lie, when it has several: an embedded cluster."""

from __future__ import annotations

from pathlib import Path


def node_roots(root: Path, nodes: int) -> list[Path]:
    """Store roots of an embedded cluster: `root` itself is the first node, others lie in `root/nodes/`."""
    return [root, *(root / "nodes" / str(number) for number in range(1, nodes))]


def existing_roots(root: Path) -> list[Path]:
    """Store roots below `root` that hold a node already, the first node first."""
    others = sorted((root / "nodes").glob("*/node.json"), key=lambda path: (len(path.parent.name), path.parent.name))
    return [path.parent for path in [root / "node.json", *others] if path.exists()]
