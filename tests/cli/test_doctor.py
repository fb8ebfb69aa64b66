"""`gpuflow doctor` as a user meets it: on an embedded cluster's root, with one manifest lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gpuflow.cluster.connection import connect
from gpuflow.errors import StoreError
from gpuflow.execution.run import run_pipeline
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.node import NodeStore
from tests.cli.commands import command
from tests.datasets.two_nodes import Model, Stores
from tests.helpers import read_embedded


def test_a_lost_manifest_from_harm_to_a_new_dataset(tmp_path: Path) -> None:
    root = tmp_path / "root"
    second = root / "nodes" / "1"
    model = Model.begun(Stores(root, second))
    model.write(5, 1, 2)
    model.nodes.close()
    assert "nothing is wrong" in command("doctor", root, root=tmp_path)
    assert "every manifest is whole" in command("doctor", root, "--rebuild", root=tmp_path)
    for path in second.glob("manifest.sqlite*"):
        path.unlink()
    wrong = command("doctor", root=root, status=1)
    assert "wrong: manifest.sqlite is missing" in wrong
    assert "remedy: stop the node, then run `gpuflow doctor --rebuild`" in wrong
    with pytest.raises(StoreError, match=r"its manifest.sqlite is lost; run `gpuflow doctor --rebuild`"):
        connect(nodes=2, workers=1, root=root)
    rebuilt = command("doctor", "--rebuild", root=root)
    assert "d/a/b: 3 chunks of unknown history, 0 as other nodes know them, 3 without a file here" in rebuilt
    assert json.loads(command("doctor", "--full", "--json", root=root)) == {str(root): [], str(second): []}
    in_place = from_dict({"source": "d", "steps": [{"clip": [0, 1]}], "output": {"in_place": True}})
    anew = from_dict({"source": "d", "steps": [{"clip": [0, 1]}], "output": "e"})
    with connect(nodes=2, workers=1, root=root) as connection:
        refused = run_pipeline(connection, in_place).to_dict()
        assert (refused["chunks"]["done"], refused["chunks"]["failed"]) == (3, 3)
        assert (
            "is not known since the manifest was rebuilt: in place, a step could be applied twice"
            in refused["failures"][0]["error"]
        )
        command("doctor", root=root)  # of live nodes
        assert run_pipeline(connection, anew).status == "done"
    assert read_embedded(root, "e", "a/b").tolist() == [1] * 24


def test_what_cannot_be(tmp_path: Path) -> None:
    assert "no store" in command("doctor", tmp_path / "nowhere", root=tmp_path, status=1)
    root = tmp_path / "root"
    NodeStore(root).close()
    shutil.copytree(root, root / "nodes" / "1")
    shown = command("doctor", root, root=tmp_path, status=1)
    assert "other roots have the same node id" in shown
    assert "remedy: one is a copy" in shown
    shutil.rmtree(root / "nodes")
    (root / "manifest.sqlite").write_bytes(b"garbage" * 100)
    refused = command("doctor", root, "--rebuild", root=tmp_path, status=1)
    assert "other nodes may have chunks of" in refused
    assert "give --scheduler ADDRESS, or --alone" in refused
    assert "is made anew" in command("doctor", root, "--rebuild", "--alone", root=tmp_path)
    assert "wrong:" not in command("doctor", root, root=tmp_path)
