"""`gpuflow webhook`."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from gpuflow.cli.common import Nodes_, Root, Scheduler

_SECRET = "GPUFLOW_WEBHOOK_SECRET"


def webhook(
    url: Annotated[str, typer.Argument(help="Where to post to.")],
    dataset: Annotated[str | None, typer.Option("--dataset", help="Of this dataset alone.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Under which is kept how far it has come (default: by URL and dataset).")
    ] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="CURSOR", help="Where to begin the first time: a cursor, `now`, or `all`.")
    ] = "now",
    dead_letters: Annotated[
        Path, typer.Option("--dead-letters", help="File that gets the events which were not taken, a JSON object a line.")
    ] = Path("dead-letters.jsonl"),
    seconds: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for a post and its answer.")] = 10.0,
    tries: Annotated[int, typer.Option("--tries", min=1, help="Of one post; the waits between them double up to a minute.")] = 10,
    nodes: Nodes_ = None,
    scheduler: Scheduler = None,
    root: Root = None,
) -> None:
    """Post what happens to datasets to a URL, as S3's event notifications, until interrupted.

    GPUFLOW_WEBHOOK_SECRET in the environment signs the posts. Started again, it goes on where it was."""
    import hashlib

    from gpuflow.cluster.connection import Connection, connect
    from gpuflow.datasets import catalog
    from gpuflow.settings import scheduler_address
    from gpuflow.triggers.delivery import Delivery
    from gpuflow.triggers.lasting import lasting
    from gpuflow.triggers.webhooks import DeadLetters, Notifications, Webhook

    known = name or hashlib.sha256(f"{url} {dataset}".encode()).hexdigest()[:12]
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    secret = os.environ.get(_SECRET) or None
    Webhook(url, secret, Notifications(dict), seconds)  # what is wrong with it is said before a cluster is looked for
    letters = DeadLetters(dead_letters.absolute())

    def say(text: str) -> None:
        typer.echo(text, err=True)

    def work(connection: Connection) -> None:
        hook = Webhook(url, secret, Notifications(lambda: catalog.records(connection)), seconds)
        delivery = Delivery(connection, f"webhook@{known}", dataset, hook.post, letters.add, tries=tries, say=say)
        delivery.follow(stop, since)

    embedded = not (scheduler or scheduler_address())
    lasting(lambda: connect(scheduler, **({"nodes": nodes, "root": root} if embedded else {})), work, stop, say)  # type: ignore[arg-type]
