"""Webhooks against a real server that takes posts, refuses them, hangs, or drips."""

from __future__ import annotations

import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest

from gpuflow.errors import ConfigError
from gpuflow.triggers import delivery, gathering
from gpuflow.triggers.delivery import Delivery, NotTaken
from gpuflow.triggers.event import CREATED, PUBLISHED, REMOVED, UPDATED, Event
from gpuflow.triggers.state import load_state
from gpuflow.triggers.webhooks import DeadLetters, Notifications, Webhook, signature
from tests.datasets.two_nodes import Model, Stores
from tests.storage.stores import ARRAY, new_record


class _Server(ThreadingHTTPServer):
    """answers: what to do with each post in turn, the last for all that follow: a status, "hang", or "drip"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[Any] = [200]
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?a=1"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((dict(self.headers), body))
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if answer == "hang":
            self.server.ended.wait(30)
        elif answer == "drip":
            while not self.server.ended.wait(0.05):
                try:
                    self.wfile.write(b"H")
                except OSError:
                    return
        else:
            self.send_response(answer)
            self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    nodes = Stores(tmp_path / "root")
    yield Model.begun(nodes)
    nodes.close()


def _event(chunk: int | None, kind: str = CREATED, generation: int = 1, array: str = ARRAY) -> Event:
    return Event(5, "n", "d", array, chunk, generation, "ab" * 16, 16, "cd" * 16, "run", 1.5, kind)


def _hook(url: str, seconds: float = 5.0) -> Webhook:
    return Webhook(url, "secret", Notifications(lambda: {"d": new_record()}), seconds)


def test_as_a_consumer_of_s3_events_reads_it(server: _Server) -> None:
    _hook(server.url).post([_event(3), _event(4, UPDATED, 17), _event(None, PUBLISHED, 2, ""), _event(None, REMOVED, 3, "")])
    ((headers, body),) = server.posts
    seen = []
    for record in json.loads(body)["Records"]:  # what every tutorial of S3 events does
        bucket, key = record["s3"]["bucket"]["name"], unquote_plus(record["s3"]["object"]["key"])
        seen.append((record["eventName"], bucket, key, record["s3"]["object"]["sequencer"], record["eventTime"]))
        assert record["eventSource"] == "aws:s3"
    at = "1970-01-01T00:00:01.500Z"
    assert seen == [
        ("ObjectCreated:Put", "d", "a/b/c/3", f"{1:016X}", at),
        ("ObjectCreated:Put", "d", "a/b/c/4", f"{17:016X}", at),
        ("ObjectCreated:Put", "d", "zarr.json", f"{2:016X}", at),
        ("ObjectRemoved:Delete", "d", "zarr.json", f"{3:016X}", at),
    ]
    given = headers["X-Gpuflow-Signature"].removeprefix("sha256=")
    assert hmac.compare_digest(given, signature("secret", headers["X-Gpuflow-Timestamp"], body))
    assert abs(int(headers["X-Gpuflow-Timestamp"]) - time.time()) < 60
    assert given != signature("other", headers["X-Gpuflow-Timestamp"], body)


@pytest.mark.parametrize("answer", ["hang", "drip"])
def test_a_server_that_hangs_or_drips_is_left(server: _Server, answer: str) -> None:
    server.answers = [answer]
    began = time.monotonic()
    with pytest.raises(NotTaken, match="does not answer"):
        _hook(server.url, 0.3).post([_event(1)])
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("status", "final"), [(500, False), (429, False), (301, False), (404, True)])
def test_refusals(server: _Server, status: int, final: bool) -> None:
    server.answers = [status]
    with pytest.raises(NotTaken, match=f"answered {status}") as caught:
        _hook(server.url).post([_event(1)])
    assert caught.value.final == final


def test_wrong_urls_and_files(tmp_path: Path) -> None:
    for url in ("ftp://host/", "host", "http://", "http://host:99999999/"):
        with pytest.raises(ConfigError, match="is no URL to post to"):
            _hook(url)
    with pytest.raises(ConfigError, match="cannot be written to"):
        DeadLetters(tmp_path / "none" / "letters")
    with pytest.raises(NotTaken, match="does not answer"):
        _hook("http://127.0.0.1:9/").post([_event(1)])


def test_retried_then_given_up_into_the_file_and_the_rest_goes_on(
    server: _Server, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Posts of what happens in a real store: 500 twice and taken; later 500 for ever."""
    monkeypatch.setattr(gathering, "LEAST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(delivery, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(delivery, "events", lambda cursor, **options: gathering_events(cursor, tmp_path / "root", **options))
    letters, said = DeadLetters(tmp_path / "letters"), list[str]()

    def begun(name: str = "hook") -> tuple[threading.Event, threading.Thread]:
        told, stop = _hook(server.url), threading.Event()
        mine = Delivery(model.nodes, name, "d", told.post, letters.add, tries=3, most=1, say=said.append)  # type: ignore[arg-type]
        thread = threading.Thread(target=mine.follow, args=(stop,))
        thread.start()
        return stop, thread

    def until(count: int) -> None:
        deadline = time.monotonic() + 20
        while len(server.posts) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(server.posts) >= count, said

    server.answers = [500, 500, 200]
    stop, thread = begun()
    while load_state(model.nodes, "hook") is None:
        time.sleep(0.01)
    model.write(1, 0, 5)
    until(3)
    stop.set()
    thread.join(20)
    assert (tmp_path / "letters").read_text() == ""
    assert {json.loads(body)["Records"][0]["s3"]["object"]["key"] for _, body in server.posts} == {"a/b/c/1"}
    model.write(2, 0, 6)  # while nobody delivers
    server.answers = [500]
    stop, thread = begun()
    until(6)
    server.answers = [200]
    model.write(3, 0, 7)
    until(7)
    stop.set()
    thread.join(20)
    (line,) = (tmp_path / "letters").read_text().splitlines()
    letter = json.loads(line)
    assert (letter["chunk"], letter["generation"]) == (2, 2)
    assert "answered 500" in letter["reason"]
    assert json.loads(server.posts[-1][1])["Records"][0]["s3"]["object"]["key"] == "a/b/c/3"
    state = load_state(model.nodes, "hook")
    assert state is not None
    assert state.counts == {"events": 3, "given_up": 1}


def gathering_events(cursor: str | None, root: Path, **options: Any) -> Any:
    """The feed of a store that no cluster has open."""
    from gpuflow.triggers.feed import events

    return events(cursor, root=root, **{**options, "connection": None})
