"""Shells where chunks lie: with the chunk in them, bounded, interruptible, of nobody who is gone; and not where they are not allowed."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr

import gpuflow
from gpuflow.cluster import shell as shell_module
from gpuflow.cluster.connection import Connection, connect
from gpuflow.cluster.shell import MOST_SHELLS, Shell
from gpuflow.cluster.shell_client import converse, open_shell
from gpuflow.datasets import catalog
from gpuflow.errors import ChunkLost, ClusterError
from gpuflow.storage.node import NodeStore
from tests.cli.commands import command

from .processes import alive, until

VALUES = np.arange(7 * 6, dtype="float32").reshape(7, 6)  # ragged: the last chunk has one row
ADDRESS = "field/x"


@pytest.fixture(scope="module")
def allowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Two nodes that open shells, and hold dataset `field`."""
    folder = tmp_path_factory.mktemp("shells")
    array = zarr.create_group(folder / "s.zarr").create_array("x", shape=VALUES.shape, chunks=(2, 6), dtype="float32")
    array[...] = VALUES
    array.attrs["units"] = "K"
    with connect(nodes=2, workers=1, root=folder / "root", allow_shell=True) as connection:
        gpuflow.ingest(folder / "s.zarr", "field", connection=connection)
        yield connection


def root_of(connection: Connection) -> Path:
    return min((Path(worker["root"]) for worker in connection.info()["workers"].values()), key=lambda path: len(path.parts))


def scheduler_of(connection: Connection) -> str:
    return str(connection.client.scheduler_info(n_workers=0)["address"])


class Heard:
    """What was said."""

    def __init__(self) -> None:
        self.out, self.err = b"", b""

    def __call__(self, out: bytes, err: bytes) -> None:
        self.out += out
        self.err += err


@pytest.fixture(params=["cluster", "here"])
def gf(request: pytest.FixtureRequest, allowing: Connection) -> Any:
    """The command `gpuflow shell`, of the cluster and of this machine without one."""
    options = ("--scheduler", scheduler_of(allowing)) if request.param == "cluster" else ()

    def run(address: str, *arguments: str, status: int = 0) -> str:
        return command("shell", *options, address, *arguments, root=root_of(allowing), status=status)

    return run


def test_code_sees_the_chunk_and_what_it_is(gf: Any, allowing: Connection) -> None:
    assert gf(f"{ADDRESS}/1", "-c", "float(x.mean())").strip() == str(VALUES[2:4].mean())
    assert gf(f"{ADDRESS}/c/3/0", "-c", "x.shape, key, index, chunk, attrs, dataset, array, device").strip() == str(
        ((1, 6), "c/3/0", (3, 0), 3, {"units": "K"}, "field", "x", "cpu")
    )
    where = gpuflow.open("field", connection=allowing).whereabouts("x")
    assert gf(f"{ADDRESS}/1", "-c", "node").strip().strip("'") in where.holders_of(1)


def test_errors_of_the_code_are_shown_and_end_with_one(gf: Any) -> None:
    assert "ZeroDivisionError" in gf(f"{ADDRESS}/1", "-c", "print('before'); 1/0", status=1)
    assert "SyntaxError" in gf(f"{ADDRESS}/1", "-c", "x.", status=1)
    assert gf(f"{ADDRESS}/1", "-c", "raise SystemExit(7)", status=7) == ""
    gf(f"{ADDRESS}/1", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", status=137)


def test_a_script_and_a_command(gf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("total = 0\nfor row in x:\n    total += float(row.sum())\nprint(total)\n"))
    assert gf(f"{ADDRESS}/0").strip() == str(float(VALUES[:2].sum()))
    code = "import numpy, os; print(os.environ['GPUFLOW_CHUNK'], numpy.load(os.environ['GPUFLOW_INPUT_FILE']).sum())"
    assert gf(f"{ADDRESS}/0", "--", sys.executable, "-c", code).strip() == f"c/0/0 {VALUES[:2].sum()}"
    assert gf(f"{ADDRESS}/0", "--", "sh", "-c", "echo bad >&2; exit 3", status=3).strip() == "bad"
    assert "no-such-program: No such file" in gf(f"{ADDRESS}/0", "--", "no-such-program", status=127)


def test_what_takes_too_long_is_ended_with_all_that_it_started(gf: Any, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    line = f"trap '' INT; echo $$ > {pid}; sleep 600 & wait; sleep 600"
    gf(f"{ADDRESS}/1", "--timeout", "0.5", "--", "sh", "-c", line, status=124)
    assert not alive(int(pid.read_text()))
    assert "KeyboardInterrupt" in gf(f"{ADDRESS}/1", "--timeout", "0.3", "-c", "while True: pass", status=124)


def test_names_that_are_not_there(gf: Any) -> None:
    assert "did you mean 'field'" in gf("feild/x/0", "-c", "x", status=1)
    assert "there is: x" in gf("field/y/0", "-c", "x", status=1)
    assert "it has 4: give a number from 0" in gf("field/x/4", "-c", "x", status=1)
    assert "name one of a dataset's array, by its number: field/x/0" in gf("field", "-c", "x", status=1)
    assert "two different things" in gf("field/x/0", "-c", "x", "--", "ls", status=2)
    assert "cuda:99" in gf("field/x/0", "--device", "cuda:99", "-c", "x", status=2)


def test_a_prompt_takes_blocks_line_by_line_and_goes_on_after_errors_and_interrupts(allowing: Connection) -> None:
    record, heard = catalog.find(allowing, "field"), Heard()
    with closing(open_shell(allowing, record, "x", 1)) as opened:
        assert converse(opened, None, heard).state == "ready"
        states = [converse(opened, {"line": line}, heard).state for line in ("for i in range(2):", "    print(i * x.size)", "")]
        assert states == ["more", "more", "ready"]
        assert heard.out == b"0\n12\n"
        assert converse(opened, {"line": "1/0"}, heard).state == "ready"
        assert b"ZeroDivisionError" in heard.err
        assert converse(opened, {"line": "while True: pass"}, heard).state == "more"
        opened.send({"line": ""})
        assert not opened.read(0.05).state
        opened.interrupt()
        assert converse(opened, None, heard).state == "ready"
        assert b"KeyboardInterrupt" in heard.err
        assert converse(opened, {"line": "def f("}, heard).state == "more"
        assert converse(opened, {"reset": ""}, heard).state == "ready"
        converse(opened, {"line": "print('ü' * 100_000)"}, heard)
        assert heard.out.count("ü".encode()) == 100_000
        assert converse(opened, {"line": "x[...] = 0; input()"}, heard).state == "ready", "stdin is not the shell's own"
        assert b"EOFError" in heard.err
        assert converse(opened, {"line": "exit(5)"}, heard).status == 5
        assert opened.read(0).state == "ended"
    assert np.array_equal(gpuflow.open("field", connection=allowing)["x"][...], VALUES), "x is a copy"


def test_a_terminal_gets_prompts_until_its_end(gf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    typed = iter(["if x.size:", KeyboardInterrupt, "if x.size:", "    print('full')", "", "1/0", EOFError])

    def typing(prompt: str) -> str:
        prompts.append(prompt)
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", typing)
    said = gf(f"{ADDRESS}/1")
    assert said.startswith("field/x/c/1/0 on node")
    assert ", cpu: x is float32 (2, 6)\n" in said
    assert "full\n" in said
    assert "KeyboardInterrupt" in said
    assert "ZeroDivisionError" in said
    assert prompts == [">>> ", "... ", ">>> ", "... ", "... ", ">>> ", ">>> "]


def test_several_at_once_do_not_see_each_other_and_there_are_not_too_many(allowing: Connection) -> None:
    record, opened = catalog.find(allowing, "field"), []
    try:
        opened = [open_shell(allowing, record, "x", 0) for _ in range(MOST_SHELLS)]
        for number, one in enumerate(opened):
            converse(one, None, Heard())
            converse(one, {"line": f"x = {number}"}, Heard())
        heard = [Heard() for _ in opened]
        for one, mine in zip(opened, heard, strict=True):
            converse(one, {"line": "x"}, mine)
        assert [mine.out for mine in heard] == [f"{number}\n".encode() for number in range(MOST_SHELLS)]
        with pytest.raises(ClusterError, match=f"has {MOST_SHELLS} shells already"):
            open_shell(allowing, record, "x", 0)
    finally:
        for one in opened:
            one.close()
    open_shell(allowing, record, "x", 0).close()
    with pytest.raises(ClusterError, match="has ended; open another one"):
        opened[0].send({"line": ""})


def test_who_is_not_heard_of_loses_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUFLOW_ALLOW_SHELL", "1")
    monkeypatch.setattr(shell_module, "FORGOTTEN_SECONDS", 0.2)
    store = _one_chunk(tmp_path)

    class Loop:
        later: list[Any] = []  # noqa: RUF012

        def call_later(self, seconds: float, function: Any) -> None:
            self.later.append(function)

    class Worker:
        loop = Loop()

    import asyncio

    shells = shell_module.Shells(Worker(), store)  # type: ignore[arg-type]
    name = asyncio.run(shells.open("d", "x", 0, "cpu"))
    process = shells._of(name)._process
    Loop.later.pop()()
    assert process.poll() is None
    shells._of(name).heard -= 1
    Loop.later.pop()()
    assert process.poll() is not None
    assert not Loop.later
    store.close()


def _one_chunk(root: Path) -> NodeStore:
    NodeStore(root, name="n").close()
    with gpuflow.open("d", root=root, mode="a") as made:
        made.group.create_array("x", shape=(2,), chunks=(2,), dtype="int8")[...] = [3, 4]
    return NodeStore(root)


def test_a_shell_dies_with_the_worker(allowing: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    record, heard = catalog.find(allowing, "field"), Heard()
    opened = open_shell(allowing, record, "x", 1)
    converse(opened, None, heard)
    converse(
        opened,
        {"line": "import os, subprocess; p = subprocess.Popen(['sleep', '600']); print(os.getpid(), p.pid, os.getppid())"},
        heard,
    )
    shell_pid, sleeper, worker = map(int, heard.out.split())
    opened.send({"line": "import time; time.sleep(600)"})
    os.kill(worker, signal.SIGKILL)
    until(lambda: not alive(shell_pid) and not alive(sleeper), "the end of the shell")
    monkeypatch.setattr(allowing.client.rpc, "timeout", 0.5)
    with pytest.raises(ClusterError, match="does not answer"):
        opened.read(0.1)
    opened.close()
    until(lambda: len(allowing.info()["workers"]) == 2, "the worker that is started again")


def test_without_leave_there_is_none(three_nodes: Connection, field_zarr: Path) -> None:
    gpuflow.ingest(field_zarr, "closed", connection=three_nodes)
    scheduler = ("--scheduler", scheduler_of(three_nodes))
    said = command("shell", *scheduler, "closed/t2m/0", "-c", "x", root=field_zarr, status=1)
    assert "has closed/t2m/c/0/0/0 and allows no shell; start the node's workers with --allow-shell" in said
    worker = next(iter(three_nodes.info()["workers"]))
    client = three_nodes.client
    with pytest.raises(ClusterError, match="does not allow shells"):  # who asks the worker itself is refused too
        client.sync(client.rpc(worker).gf_shell_open, dataset="closed", array="t2m", chunk=0, device="cpu")
    with pytest.raises(ClusterError, match=r"whether programs may run at tcp://.* is for its nodes to say; start each node with"):
        connect("tcp://127.0.0.1:1", allow_shell=True)


def test_a_chunk_that_no_live_node_has(allowing: Connection) -> None:
    record = catalog.find(allowing, "field")
    (held,) = allowing.ask("gf_locate", dataset="field", array="x", chunks=[2], named=True)
    for _, node in held:
        allowing.ask("gf_withdraw", node=node, dataset="field", array="x", chunks=[2])
    nodes = sorted({worker["node"] for worker in allowing.info()["workers"].values()})
    with pytest.raises(ChunkLost, match="no live replica of chunk field/x/c/2/0") as lost:
        open_shell(allowing, record, "x", 2)
    assert lost.value.searched == nodes


def test_nothing_is_left_of_a_shell(tmp_path: Path) -> None:
    store = _one_chunk(tmp_path)
    Path(store.writer.folder).exists()  # it is made when it is first asked for
    descriptors = psutil.Process().num_fds()
    with closing(Shell(store, "d", "x", 0)) as opened:
        assert converse(opened, {"whole": "x.tolist()", "show": True}, heard := Heard()).state == "ready"
        assert converse(opened, None, heard).state == "ended"
        assert heard.out == b"[3, 4]\n"
    opened.close()
    assert not list(Path(store.writer.folder).glob("shell-*"))
    assert psutil.Process().num_fds() == descriptors
    store.close()
