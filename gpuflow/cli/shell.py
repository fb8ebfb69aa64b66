"""`gpuflow shell`: a prompt, a line of code, a script or a command, where a chunk lies."""

from __future__ import annotations

import sys
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuflow.cli.common import Device, Root, Scheduler, cluster
from gpuflow.errors import ConfigError, NotFound, Problem
from gpuflow.settings import scheduler_address

if TYPE_CHECKING:
    from gpuflow.cluster.shell_client import AnyShell


def shell(
    address: Annotated[
        str, typer.Argument(metavar="CHUNK", help="A chunk by its number or its key: era5/t2m/3, or era5/t2m/c.3.0.0.")
    ],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND]", help="A program to run there; without it, Python.")
    ] = None,
    code: Annotated[
        str | None, typer.Option("-c", metavar="CODE", help="Python to run; the value at its end is printed.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Ends a command, a line or a script that takes longer.")
    ] = None,
    device: Device = None,
    scheduler: Scheduler = None,
    root: Root = None,
) -> None:
    """Python, or a command, on a node that has a chunk: its values are `x`.

    There are also key, dataset, array, chunk, index, dims, attrs, node, device and np. A script is read from stdin where that is
    no terminal. A command finds the chunk as the .npy file GPUFLOW_INPUT_FILE. What is changed in `x` changes nothing in the dataset.

    The node's workers must have been started with --allow-shell. Without a cluster the chunk is looked for on this machine."""
    if code is not None and command:
        raise ConfigError([Problem("-c CODE and a COMMAND are two different things", "shell", hint="give one of them")])
    with _opened(address, device or "auto", scheduler, root) as opened:
        status = _serve(opened, code, command, timeout)
    raise typer.Exit(status)


@contextmanager
def _opened(address: str, device: str, scheduler: str | None, root: Path | None) -> Iterator[AnyShell]:
    from gpuflow.cluster.shell_client import open_here, open_shell
    from gpuflow.datasets.here import NodesHere

    if scheduler or scheduler_address():
        with cluster(scheduler, None, None, None, None) as connection:
            connection.ask("gf_sync")
            with closing(open_shell(connection, *_found(connection, address), device)) as remote:
                yield remote
        return
    with closing(NodesHere.below(root)) as nodes, closing(open_here(nodes, *_found(nodes, address), device)) as local:
        yield local


def _found(nodes: Any, address: str) -> tuple[Any, str, int]:
    """(record, array, chunk). NotFound offers what is near."""
    from gpuflow.pipelines.history import split_address
    from gpuflow.storage.locator import find_record

    name, _, rest = address.partition("/")
    record = find_record(_records(nodes), name)
    array, chunk = split_address(record, rest)
    if array is None or chunk is None:
        path = array or min(record.arrays, default="ARRAY")
        raise NotFound("chunk", address, hint=f"name one of a dataset's array, by its number: {name}/{path}/0")
    return record, array, chunk


def _records(nodes: Any) -> Any:
    from gpuflow.datasets import catalog

    return nodes.records() if hasattr(nodes, "records") else catalog.records(nodes)


_decoders = [getincrementaldecoder("utf-8")(errors="replace") for _ in range(2)]
"""Of stdout and stderr: a character may come in two pieces."""


def _show(out: bytes, err: bytes) -> None:
    for data, decoder, stream in zip((out, err), _decoders, (sys.stdout, sys.stderr), strict=True):
        if data:
            stream.write(decoder.decode(data))
            stream.flush()


def _serve(opened: AnyShell, code: str | None, command: list[str] | None, timeout: float | None) -> int:
    """Exit status."""
    from gpuflow.cluster.shell_client import converse

    began = converse(opened, None, _show)  # the chunk is loaded
    if began.state != "ready":
        return began.status
    if command:
        return converse(opened, {"command": command}, _show, timeout).status
    if code is not None or not sys.stdin.isatty():
        text = code if code is not None else sys.stdin.read()
        return converse(opened, {"whole": text, "show": code is not None}, _show, timeout).status
    return _prompt(opened, timeout)


def _prompt(opened: AnyShell, timeout: float | None) -> int:
    from gpuflow.cluster.shell_client import converse

    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` its history and keys
    banner = "print(f'{dataset}/{array}/{key} on {node}, {device}: x is {x.dtype} {x.shape}', flush=True)"
    said = converse(opened, {"line": banner}, _show)
    while said.state != "ended":
        try:
            request = {"line": input("... " if said.state == "more" else ">>> ")}
        except EOFError:
            _show(b"\n", b"")
            return 0
        except KeyboardInterrupt:
            _show(b"\nKeyboardInterrupt\n", b"")
            request = {"reset": ""}
        said = converse(opened, request, _show, timeout)
    return said.status
