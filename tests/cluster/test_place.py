"""One folder is one place whatever it is called, and a copy of it is another."""

from __future__ import annotations

import shutil
from pathlib import Path

from gpuflow.cluster.place import place_of


def test_a_folder_by_two_names_and_its_copy(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "node.json").write_text("{}")
    (tmp_path / "mounted elsewhere").symlink_to(root)
    shutil.copytree(root, tmp_path / "copy")
    assert place_of(root) == place_of(tmp_path / "mounted elsewhere")
    assert place_of(root) != place_of(tmp_path / "copy")


def test_the_same_numbers_on_two_machines_are_two_places(tmp_path: Path) -> None:
    number = tmp_path.stat().st_ino
    boot = place_of(tmp_path).split(":")[0]
    assert len(boot) == 36, "the kernel's id of this boot"
    assert place_of(tmp_path).endswith(f":{number}")
