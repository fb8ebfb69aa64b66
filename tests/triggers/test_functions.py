"""Functions that are called with events, on the nodes of a real cluster."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.errors import ConfigError
from gpuflow.triggers.functions import functions_of
from gpuflow.triggers.state import load_state
from gpuflow.triggers.watching import Watching
from tests.triggers.test_watch import _made, _running, _wait

FILE = """
import gpuflow
from pathlib import Path
from distributed import get_worker

@gpuflow.on("called", tries=2)
def note(event, chunk):
    if chunk is None:
        return
    values = chunk.read()
    if values[0, 0] == 13:
        raise ValueError("13 it is")
    node = get_worker().gpuflow.store.node_id
    with open(Path(FOLDER) / f"{event.chunk}-{event.generation}", "a") as file:
        print(values.sum(), node == event.node, chunk.key, chunk.shape, file=file)
"""


def test_called_where_the_chunk_is_with_its_values(three_nodes: Connection, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine.py").write_text(f"FOLDER = {str(tmp_path / 'out')!r}\n{FILE}")
    handlers = functions_of(tmp_path / "mine.py")
    array = _made(three_nodes, "called")
    said: list[str] = []
    watching = Watching([], lambda: nullcontext(three_nodes), said.append, handlers=handlers)
    state = "function@mine.note"
    with _running(watching):
        _wait(lambda: load_state(three_nodes, state) is not None)
        array[3], array[5] = 2, 13
        array[5] = 4
        array[4] = 13
        _wait(lambda: any("mine.note: called/x chunk 4 is given up: ValueError: 13 it is" in text for text in said))
        array[6] = 1
        _wait(lambda: (tmp_path / "out" / "6-3").exists())
    first = (tmp_path / "out" / "3-3").read_text().splitlines()[0]
    assert first == "16.0 True c/3/0 (1, 8)"
    assert any(path.name.startswith("5-") and "32.0" in path.read_text() for path in (tmp_path / "out").iterdir())
    array[7] = 3  # while nobody listens
    watching = Watching([], lambda: nullcontext(three_nodes), said.append, handlers=handlers)
    with _running(watching):
        _wait(lambda: (tmp_path / "out" / "7-3").exists())


def test_files_that_are_wrong_are_one_error(tmp_path: Path) -> None:
    for text, message in {
        "x = 1\n": "registers no function",
        "\n1 / 0\n": r"wrong.py:2: ZeroDivisionError",
        "import gpuflow\n@gpuflow.on('a/b')\ndef f(event, chunk): ...\n": "cannot be the name of a dataset",
    }.items():
        (tmp_path / "wrong.py").write_text(text)
        with pytest.raises(ConfigError, match=message):
            functions_of(tmp_path / "wrong.py")
    with pytest.raises(ConfigError, match="there is no such file"):
        functions_of(tmp_path / "none.py")
    gpuflow.on("a", name="twice")(lambda event, chunk: None)
    with pytest.raises(ConfigError, match="two functions are called 'twice'"):
        gpuflow.on("b", name="twice")(lambda event, chunk: None)
