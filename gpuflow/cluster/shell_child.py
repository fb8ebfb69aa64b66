"""The process behind `gpuflow shell`: a Python prompt with a chunk in it, or a command. It dies with whoever started it.

Run by its path, as a script: it is a process of its own so that it can be interrupted and killed, and what happens in it does not touch the
worker. Requests come as lines of JSON on stdin, which the code that is run does not see; answers go as such to the descriptor that is named
by the first argument; what the code prints goes to stdout and stderr."""

from __future__ import annotations

import ast
import code
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import Any


class Child:
    """busy: whether the user's code runs, which alone may be interrupted."""

    def __init__(self, requests: Any, answers: Any) -> None:
        self._requests, self._answers = requests, answers
        self._queue: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._console = code.InteractiveConsole({"__name__": "__console__", "__doc__": None}, "<shell>")
        self.busy = False

    def main(self) -> None:
        """Until the code exits, or nobody asks any more."""
        signal.signal(signal.SIGINT, self._interrupted)
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            self._answer(*self._do(self._queue.get()))

    def _listen(self) -> None:
        for line in self._requests:
            self._queue.put(json.loads(line))
        os.killpg(0, signal.SIGKILL)  # whoever asked is gone, or wants an end: with all that was started here

    def _interrupted(self, number: int, frame: Any) -> None:
        if self.busy:
            raise KeyboardInterrupt

    def _answer(self, state: str, status: int = 0) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._answers.write(json.dumps({"state": state, "status": status}) + "\n")
        self._answers.flush()
        if state == "ended":
            os._exit(0)

    def _do(self, request: dict[str, Any]) -> tuple[str, int]:
        """(state, exit status): ready for the next line, or more of this one is wanted, or it has ended."""
        self.busy = True
        try:
            match request:
                case {"load": path, "names": names, "device": device}:
                    self._console.locals.update(_loaded(path, names, device))
                    return "ready", 0
                case {"line": line}:
                    return ("more" if self._console.push(line) else "ready"), 0
                case {"reset": _}:
                    self._console.resetbuffer()
                    return "ready", 0
                case {"whole": text, "show": show}:
                    return "ended", self._run_whole(text, show)
                case {"command": command}:
                    return "ended", _run_command(command)
            raise ValueError(f"unknown request {sorted(request)}")
        except SystemExit as error:
            return "ended", _status_of(error)
        except KeyboardInterrupt:
            print("KeyboardInterrupt", file=sys.stderr)  # noqa: T201
            self._console.resetbuffer()
            return ("ended", 130) if "whole" in request or "command" in request else ("ready", 0)
        finally:
            self.busy = False

    def _run_whole(self, text: str, show: bool) -> int:
        """Exit status. show: the value of a last expression is printed, as at a prompt."""
        names: Any = self._console.locals
        try:
            tree = ast.parse(text, "<shell>")
            last = tree.body.pop() if show and tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "<shell>", "exec"), names)
            if isinstance(last, ast.Expr):
                sys.displayhook(eval(compile(ast.Expression(last.value), "<shell>", "eval"), names))
        except (SystemExit, KeyboardInterrupt):
            raise
        except SyntaxError:
            self._console.showsyntaxerror("<shell>")
            return 1
        except BaseException:  # noqa: BLE001 - it is shown to who wrote the code
            self._console.showtraceback()
            return 1
        return 0


def _loaded(path: str, names: dict[str, Any], device: str) -> dict[str, Any]:
    import numpy as np

    block = np.load(path, allow_pickle=True)  # our own file
    return {"np": np, **names, "index": tuple(names["index"]), "device": device, "x": block}


def _run_command(command: list[str]) -> int:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    except OSError as error:
        print(f"{command[0]}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        return 127


def _status_of(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)  # noqa: T201
    return 1


def main() -> None:
    """Take stdin for the requests, and leave an empty one to the code."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    sys.argv = [""]
    Child(requests, os.fdopen(descriptor, "w", encoding="utf-8")).main()


if __name__ == "__main__":
    main()
