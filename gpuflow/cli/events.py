"""`gpuflow events`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gpuflow.cli.common import AsJson, Root, Scheduler

if TYPE_CHECKING:
    from gpuflow.triggers.event import Event
    from gpuflow.triggers.feed import Feed


def events(
    since: Annotated[
        str | None, typer.Option("--since", metavar="CURSOR", help="From there on, or from `now` (default: all there is).")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until interrupted.")] = False,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Of this dataset alone.")] = None,
    scheduler: Scheduler = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """What was committed: chunks created and updated, datasets published and removed.

    Each chunk once, as it is now, and with --follow whatever comes. Ends with the cursor for the next time, on the standard error."""
    from gpuflow.cluster.connection import connect
    from gpuflow.settings import scheduler_address
    from gpuflow.triggers.feed import events as feed_of

    address = scheduler or (scheduler_address() if root is None else None)
    connection = connect(address) if address else None
    try:
        with feed_of(since, follow=follow, dataset=dataset, connection=connection, root=root) as feed:
            _print(feed, as_json)
    finally:
        if connection is not None:
            connection.close()


def _print(feed: Feed, as_json: bool) -> None:
    shown = 0
    try:
        while (event := feed.next(None)) is not None:
            _say(feed.notices[shown:])
            shown = len(feed.notices)
            typer.echo(json.dumps(event.to_dict()) if as_json else line(event))
            if as_json or sys.stdout.isatty():
                sys.stdout.flush()
    finally:
        _say([*feed.notices[shown:], f"cursor: {feed.cursor}"])


def _say(notices: list[str]) -> None:
    for text in notices:
        typer.echo(text, err=True)


def line(event: Event) -> str:
    """As it is shown: time, what happened, to what, by whom."""
    moment = (event.to_dict()["time"] or "-").replace("+00:00", "Z")
    if event.chunk is None:
        name = f"{event.dataset}/{event.array}" if event.array else event.dataset
        return f"{moment}  {event.kind:<9}  {name}  version {event.generation}"
    made = f"  run {event.run}" if event.run else ""
    what = f"{event.dataset}/{event.array}  chunk {event.chunk}  generation {event.generation}  {event.nbytes} B"
    return f"{moment}  {event.kind:<9}  {what}  {event.node}{made}"
