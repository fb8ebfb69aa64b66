"""Events posted to a URL in the form of S3's event notifications, so that what was written for these takes them as it is.

`s3.bucket.name` is the dataset, `s3.object.key` the chunk's key in it, `eTag` the digest, and `sequencer` the generation, which orders the
events of one key. Each post is signed: `X-Gpuflow-Signature: sha256=HEX`, HMAC of `TIMESTAMP.BODY`, where `X-Gpuflow-Timestamp` is that."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from gpuflow import __version__
from gpuflow.errors import ConfigError, NotFound, Problem
from gpuflow.storage.record import DatasetRecord
from gpuflow.triggers.delivery import NotTaken
from gpuflow.triggers.event import PUBLISHED, REMOVED, Event

_FINAL = frozenset({400, 401, 403, 404, 405, 410, 413, 422})
"""Answers after which the same post is of no use."""
_BODY_NBYTES = 65536  # of an answer, read so that the connection is not cut off in the middle of it

Records = Callable[[], Mapping[str, DatasetRecord]]


class Notifications:
    """Events as S3's notifications. records: asks for the datasets' records, by which chunks have their keys."""

    def __init__(self, records: Records) -> None:
        self._ask, self._known = records, dict[str, DatasetRecord]()

    def of(self, events: Sequence[Event]) -> dict[str, Any]:
        """`{"Records": [...]}`."""
        return {"Records": [self._record(event) for event in events]}

    def _record(self, event: Event) -> dict[str, Any]:
        moment = datetime.fromtimestamp(event.time if event.time is not None else time.time(), UTC)
        stored: dict[str, Any] = {"key": quote(self._key(event), safe="/"), "sequencer": f"{event.generation:016X}"}
        if event.kind != REMOVED:
            stored |= {"size": event.nbytes, "eTag": event.digest}
        return {
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "awsRegion": "",
            "eventTime": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "eventName": "ObjectRemoved:Delete" if event.kind == REMOVED else "ObjectCreated:Put",
            "userIdentity": {"principalId": "gpuflow"},
            "requestParameters": {"sourceIPAddress": event.node},
            "responseElements": {"x-amz-request-id": event.run, "x-amz-id-2": event.recipe},
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": f"gpuflow-{event.kind}",
                "bucket": {
                    "name": event.dataset,
                    "ownerIdentity": {"principalId": "gpuflow"},
                    "arn": f"arn:aws:s3:::{event.dataset}",
                },
                "object": stored,
            },
        }

    def _key(self, event: Event) -> str:
        if event.chunk is None:  # what is laid last of a dataset, and what makes it one
            return f"{event.array}/zarr.json" if event.array and event.kind != PUBLISHED else "zarr.json"
        for fresh in (False, True):
            if fresh or event.dataset not in self._known:
                self._known = dict(self._ask())
            try:
                return f"{event.array}/{self._known[event.dataset].array(event.array).key(event.chunk)}"
            except (KeyError, NotFound, IndexError):
                continue
        return f"{event.array}/c/{event.chunk}"  # it was removed since


class Webhook:
    """A URL, and how it is posted to. secret: of the signatures; None for none. seconds: from the beginning of a post to the end of its
    answer, however slowly that drips."""

    def __init__(self, url: str, secret: str | None, notifications: Notifications, seconds: float = 10.0) -> None:
        """ConfigError when the URL is none."""
        parts = urlsplit(url)
        try:
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:
            wrong = True
        if wrong:
            raise ConfigError([Problem(f"{url!r} is no URL to post to", "webhook", hint="as in https://host/path")])
        self._parts, self._secret, self._notifications, self._seconds = parts, secret, notifications, seconds

    def post(self, events: Sequence[Event]) -> None:
        """NotTaken when the answer is not 2xx, or none comes in time."""
        body = json.dumps(self._notifications.of(events)).encode()
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=self._seconds)
        cut = threading.Timer(self._seconds, _cut, [connection])
        cut.daemon = True
        try:
            cut.start()
            target = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
            connection.request("POST", target, body, self._headers(body))
            answer = connection.getresponse()
            answer.read(_BODY_NBYTES)
            status = answer.status
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:  # the last: cut off while it connected
            raise NotTaken(f"{self._parts.netloc} does not answer: {error or type(error).__name__}") from error
        finally:
            cut.cancel()
            connection.close()
        if not 200 <= status < 300:
            raise NotTaken(f"{self._parts.netloc} answered {status}", final=status in _FINAL)

    def _headers(self, body: bytes) -> dict[str, str]:
        moment = str(int(time.time()))
        headers = {"Content-Type": "application/json", "User-Agent": f"gpuflow/{__version__}", "X-Gpuflow-Timestamp": moment}
        if self._secret is not None:
            headers["X-Gpuflow-Signature"] = f"sha256={signature(self._secret, moment, body)}"
        return headers


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Hexadecimal, of a post. Who takes it compares with `hmac.compare_digest`, and refuses old timestamps."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _cut(connection: http.client.HTTPConnection) -> None:
    """Wake up whoever waits for it."""
    place = connection.sock
    if place is not None:
        try:
            place.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


class DeadLetters:
    """A file of events that nobody took: a JSON object a line, with the reason."""

    def __init__(self, path: Path) -> None:
        """ConfigError when it cannot be written to."""
        self._path = path
        try:
            self.add([], "")
        except OSError as error:
            problem = Problem(f"{path} cannot be written to: {error.strerror}", "dead letters", hint="name another file")
            raise ConfigError([problem]) from error

    def add(self, events: Sequence[Event], reason: str) -> None:
        """Durably, before the cursor passes them."""
        lines = "".join(json.dumps({"reason": reason, "given_up": time.time(), **event.to_dict()}) + "\n" for event in events)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, lines.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
