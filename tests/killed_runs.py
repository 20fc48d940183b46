"""Starts one training command again and again, and kills it on the way.

    python tests/killed_runs.py '["train", …]' MOMENT …

Everything is imported once; each start is a fork. A moment is `module:function:n`, before the n-th call of that
function, or `module:function:n:half`, when that call has written half of its file, or a number of seconds. The last
start is not killed. Prints how each start ended, as JSON.
"""

import importlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from hf_feedback.cli import main


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    """Has this process die at a moment."""
    if ":" not in moment:
        threading.Timer(float(moment), die).start()
        return
    module, name, count, *half = moment.split(":")
    owner: Any = importlib.import_module(module)
    *path, attribute = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, attribute), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) < int(count):
            return real(*args, **kwargs)
        if half:
            real(*args, **kwargs)
            file = next(Path(a) for a in (*args, *kwargs.values()) if isinstance(a, str | Path) and Path(a).is_file())
            os.truncate(file, file.stat().st_size // 2)
        die()

    setattr(owner, attribute, wrapped)


def start(command: list[str], moment: str | None) -> int:
    """The status that a start of the command ends with; −9 where it was killed."""
    child = os.fork()
    if child == 0:
        if moment is not None:
            arm(moment)
        status = main(command)
        sys.stdout.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    importlib.import_module("hf_feedback.training.commands.train")  # which `main` would import in each fork
    asked, moments = json.loads(sys.argv[1]), [*sys.argv[2:], None]
    print(json.dumps([start(asked, moment) for moment in moments]), flush=True)
