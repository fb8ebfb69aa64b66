"""The page `/gpuflow` of a real scheduler: over HTTP, by Bokeh's client, and in a browser while a run goes on."""

from __future__ import annotations

import html
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import gpuflow
from gpuflow.cluster import dashboard as dashboard_module
from gpuflow.cluster.connection import Connection, connect
from gpuflow.cluster.dashboard_page import MOST_CHUNKS, MOST_NODES, Page
from gpuflow.cluster.messages import NodeInfo
from gpuflow.execution.summary import run_statistics
from gpuflow.pipelines.load import any_from_dict
from tests.browser import browser, errors_of

from .in_process import Cluster, scenario
from .processes import GPUFLOW, LOCAL, SCHEDULER, WORKER, free_port, running, until, wait_for_port

CHUNKS = 24
_GATED = """
import os, time

def gated(xp, block, gate):
    while block.max() > 1 and not os.path.exists(gate):
        time.sleep(0.01)
    return block * 2
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Connection, str]]:
    """A cluster of two nodes that hold dataset `field`, and where its dashboard is."""
    folder, port, web = tmp_path_factory.mktemp("dashboard"), free_port(), free_port()
    options = [option for option in SCHEDULER if option != "--no-dashboard"]
    address = f"tcp://127.0.0.1:{port}"
    command = [*options, "--port", str(port), "--dashboard-address", f"127.0.0.1:{web}", *GPUFLOW]
    workers = [
        [*WORKER, address, *LOCAL, "--no-nanny", *GPUFLOW, "--root", str(folder / name), "--node-name", name]
        for name in ("a", "b")
    ]
    with running(command, folder / "scheduler.log") as process:
        wait_for_port(port, process, folder / "scheduler.log")
        with running(workers[0], folder / "a.log"), running(workers[1], folder / "b.log"), connect(address) as connection:
            until(lambda: len(connection.info()["workers"]) == 2, "two nodes")
            values = np.arange(CHUNKS * 64, dtype="float32").reshape(CHUNKS, 64)
            zarr.create_group(folder / "s.zarr").create_array("x", data=values, chunks=(1, 64))
            gpuflow.ingest(folder / "s.zarr", "field", connection=connection)
            yield connection, f"http://127.0.0.1:{web}"


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def document(url: str) -> Any:
    """What a browser gets of the page, by Bokeh's own client."""
    from bokeh.client import pull_session

    session = pull_session(url=f"{url}/gpuflow")
    try:
        return session.document
    finally:
        session.close()


def test_the_page_is_served_with_what_the_scheduler_knows(served: tuple[Connection, str]) -> None:
    connection, url = served
    assert "bokeh.min.js" in read(f"{url}/gpuflow")
    assert '<a href="gpuflow">' in read(f"{url}/status"), "Dask's own pages lead to it"
    shown = document(url)
    nodes, chunks = (shown.get_model_by_name(name).data for name in ("nodes", "chunks"))
    names = sorted(gpuflow.open("field", connection=connection).placement())
    assert sorted(nodes["node"]) == names
    assert list(nodes["alone"]) == [CHUNKS // 2] * 2
    assert list(chunks["chunk"]) == list(range(CHUNKS))
    assert set(chunks["node"]) == set(names)
    assert "2 nodes, 2 workers, 2 threads" in shown.get_model_by_name("head").text
    assert "field/x" in shown.get_model_by_name("runs").text


def test_the_map_marks_what_workers_have_in_memory(served: tuple[Connection, str]) -> None:
    connection, url = served
    asked = {"source": "field", "statistics": {}, "run": {"cache": "16MiB"}}
    assert run_statistics(connection, any_from_dict(asked)).status == "done"
    with gpuflow.open("field", connection=connection) as field:
        until(lambda: sum(field.tiers("x")["ram"].values()) == CHUNKS, "what the workers keep")
    shown = document(url)
    chunks, legend = shown.get_model_by_name("chunks").data, shown.get_model_by_name("legend").text
    assert list(chunks["dot"]) == [1] * CHUNKS
    assert set(chunks["memory"]) <= {"a", "b", *chunks["node"], "a, b"}
    assert f"decoded in a worker's memory, too: {CHUNKS} of these {CHUNKS}" in html.unescape(legend)


def test_metrics_are_among_dasks(served: tuple[Connection, str]) -> None:
    connection, url = served
    gpuflow.run(gpuflow.Pipeline("field").map("x + 1").to("measured"), connection=connection)
    text = read(f"{url}/metrics")
    assert "dask_scheduler_workers" in text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("gpuflow_"))
    assert float(values["gpuflow_nodes"]) == 2
    assert float(values["gpuflow_chunks_done_total"]) >= 2 * CHUNKS
    assert float(values["gpuflow_local_bytes_total"]) > 0
    assert float(values["gpuflow_shipped_bytes_total"]) == connection.ask("gf_run", run="any")["transferred"][1]
    assert float(values["gpuflow_tasks_parked"]) == 0
    held = [float(value) for name, value in values.items() if name.startswith('gpuflow_chunks{copies="only"')]
    assert sum(held) == 2 * CHUNKS, "the chunks of two datasets"
    assert values[f'gpuflow_info{{routing="late",version="{gpuflow.__version__}"}}'] == "1.0"


def test_a_watched_pipeline_is_in_the_metrics_and_on_the_page(served: tuple[Connection, str]) -> None:
    connection, url = served
    watched = gpuflow.Pipeline("field").map("x + 3").to("watched")
    assert gpuflow.watch(watched, once=True, say=lambda text: None, connection=connection)
    values = dict(line.rsplit(" ", 1) for line in read(f"{url}/metrics").splitlines() if line.startswith("gpuflow_watch"))
    assert {name.split("_watch_")[1]: float(value) for name, value in values.items()} == {
        'up{pipeline="watched"}': 1.0,
        'problem{pipeline="watched"}': 0.0,
        'chunks_left{pipeline="watched"}': 0.0,
        'chunks_given_up{pipeline="watched"}': 0.0,
        'runs_total{pipeline="watched"}': 1.0,
        'chunks_done_total{pipeline="watched"}': CHUNKS,
    }
    assert ">watched<" in document(url).get_model_by_name("watches").text


def _runs(opened: Any) -> str:
    return str(opened.execute_script("return Bokeh.documents[0]?.get_model_by_name('runs')?.text || ''"))


def test_a_browser_shows_it_and_a_run_that_goes_on(served: tuple[Connection, str], tmp_path: Path) -> None:
    connection, url = served
    gate = tmp_path / "gate"
    (tmp_path / "steps.py").write_text(_GATED)
    pipeline = tmp_path / "gated.yaml"
    pipeline.write_text(f"source: field\nsteps:\n  - apply: {{function: steps:gated, gate: {gate}}}\noutput: gated\n")
    with browser() as opened:
        opened.get(f"{url}/gpuflow")
        until(lambda: "field/x" in _runs(opened), "the page")
        assert "running" not in _runs(opened)
        running_it = threading.Thread(target=lambda: gpuflow.run(pipeline, connection=connection))
        running_it.start()
        try:
            until(lambda: "running" in _runs(opened), "the run in the page")
        finally:
            gate.touch()
            running_it.join()
        until(lambda: "running" not in _runs(opened), "its end in the page")
        assert f"{CHUNKS} of {CHUNKS}" in _runs(opened)
        canvases = opened.execute_script(
            "const all = (root) => [...root.querySelectorAll('*')].flatMap((e) => [e, ...(e.shadowRoot ? all(e.shadowRoot) : [])]);"
            "return all(document).filter((e) => e.tagName === 'CANVAS' && e.width > 100).length"
        )
        assert canvases >= 4, "each of the four pictures is drawn"
        assert errors_of(opened) == []


@pytest.mark.parametrize(("dashboard", "reason"), [(False, "Dask's dashboard is off here"), (None, "needs bokeh")])
def test_without_it_one_is_told_why(dashboard: bool | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if dashboard is None:  # wanted, and not there
        monkeypatch.setitem(sys.modules, "distributed.dashboard.scheduler", None)
    said: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(dashboard_module.logger, level, said.append)

    async def test(cluster: Cluster) -> None:
        from tornado.httpclient import AsyncHTTPClient

        url = f"http://127.0.0.1:{cluster.scheduler.http_server.port}/gpuflow"
        answer = await AsyncHTTPClient().fetch(url, raise_error=False)
        assert answer.code == 404
        assert reason in answer.body.decode()
        assert len(said) == 1
        assert reason in said[0]
        futures = cluster.submit(6)
        assert len(await cluster.client.gather(futures)) == 6

    scenario(test, dashboard=dashboard is None)


def test_a_million_chunks_and_a_hundred_nodes_are_a_small_page() -> None:
    async def test(cluster: Cluster) -> None:
        plugin = cluster.plugin
        for number in range(100):
            name, rows = f"m{number:03}", np.arange(number, 10**6, 100, dtype=np.uint32)
            plugin.inventory.report(name, ("big", "x"), rows, np.ones(len(rows), np.uint32))
            plugin.members.join(f"tcp://{name}", vars_of(name))
            plugin.residence.report(f"tcp://{name}", ("big", "x"), rows[::2].tolist(), [])
        began = time.thread_time()
        shown = Page(plugin)
        shown.update()
        assert time.thread_time() - began < 1
        began = time.thread_time()
        shown.update()  # nothing has changed
        assert time.thread_time() - began < 0.1
        assert len(shown.chunks.data["chunk"]) <= MOST_CHUNKS
        held = [number // 100 % 2 == 0 for number in shown.chunks.data["chunk"]]
        assert shown.chunks.data["dot"] == held
        assert 0 < sum(held) < len(held)
        plugin.residence.report("tcp://m000", ("big", "x"), [], [0])
        began = time.thread_time()
        shown.update()  # memory has
        assert time.thread_time() - began < 0.3
        assert shown.chunks.data["dot"] == [False, *held[1:]]
        assert len(shown.nodes.data["node"]) == MOST_NODES + 1
        assert sum(shown.nodes.data["alone"]) == 10**6
        assert "of 1,000,000" in shown.map.title.text
        from bokeh.document import Document

        whole = Document()
        whole.add_root(shown.root)
        assert len(json.dumps(whole.to_json(), default=str)) < 600_000
        for number in range(100):
            plugin.members.leave(f"tcp://m{number:03}", 0.0)
        shown.update()
        assert "1,000,000 chunks are on no live node" in shown.head.text
        assert set(shown.chunks.data["node"]) == {"on no live node"}

    scenario(test, nodes=0)


def vars_of(name: str) -> dict[str, Any]:
    return asdict(NodeInfo(name, f"/{name}", f"the disk of {name}"))
