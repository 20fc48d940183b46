"""Fresh Python processes that need not load torch again: each is a fork of one process that has.

There are two such processes. One loads nothing of Hugging Face, whose libraries read their settings when they are
imported: a fork reads its own. The other loads the commands of the package and all that they need: a fork has the
settings of the tests. `python tests/fresh_processes.py` is such a process; it takes programs as lines of JSON, and
`Forks` asks it.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
import types
from functools import cache
from pathlib import Path
from typing import Any

# What transformers, datasets and our package load on their way, and what takes most of the time of it.
SLOW = (
    *("torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.export", "torch.onnx"),
    *("scipy.optimize", "scipy.stats", "sklearn.metrics", "pandas", "pyarrow.dataset", "pyarrow.parquet"),
)
LOADED = (
    *SLOW,
    *("transformers.pipelines", "hf_feedback.training.commands.train", "hf_feedback.prediction.commands.predict"),
    *("hf_feedback.evaluation.commands.evaluate", "hf_feedback.modeling_feedback"),
)


class Forks:
    """The process that forks, and what it runs: one request after another, each of one or several programs.

    Args:
        modules: what it loads before it forks.
    """

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.server = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads do not survive a fork
        )
        self.folder = tempfile.TemporaryDirectory()

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.folder.cleanup()

    def start(self, arguments: list[str], envs: list[dict[str, str]], cwd: object = None) -> list[int]:
        """Starts a program once in each environment; returns the ids of the processes.

        Args:
            arguments: as of `python`: `-c code`, `-m module` or a file, then those of the program.
            envs: whole environments, as of `subprocess.run`.
            cwd: where it runs.
        """
        folder = tempfile.mkdtemp(dir=self.folder.name)
        self.outputs = [Path(folder, str(i)) for i in range(len(envs))]
        programs = [
            dict(arguments=arguments, env=env, cwd=str(cwd or os.getcwd()), output=str(output))
            for env, output in zip(envs, self.outputs, strict=True)
        ]
        print(json.dumps(programs), file=self.server.stdin, flush=True)
        return self.answer()

    def wait(self) -> list[subprocess.CompletedProcess[str]]:
        """How the programs ended that were started last."""
        statuses = self.answer()
        outputs = [[output.with_suffix(end).read_text() for end in (".out", ".err")] for output in self.outputs]
        return [subprocess.CompletedProcess([], status, *two) for status, two in zip(statuses, outputs, strict=True)]

    def answer(self) -> list[int]:
        return json.loads(self.server.stdout.readline())

    def wait_for_line(self, start: str, seconds: float = 300) -> None:
        """Returns when the one program that was started has printed a line that starts so."""
        until = time.monotonic() + seconds
        while not any(line.startswith(start) for line in self.printed()):
            assert time.monotonic() < until, self.printed()
            time.sleep(0.02)

    def printed(self) -> list[str]:
        file = self.outputs[0].with_suffix(".out")
        return file.read_text().splitlines() if file.exists() else []


@cache
def forks(modules: tuple[str, ...]) -> Forks:
    """Those that all tests of a run share, by the modules that they have loaded."""
    shared = Forks(modules)
    atexit.register(shared.close)
    return shared


def run_python(
    *arguments: str, env: dict[str, str] | None = None, cwd: object = None, modules: tuple[str, ...] = SLOW
) -> subprocess.CompletedProcess[str]:
    """Runs a program in a fresh process, whose input is empty, and which has loaded these modules."""
    forks(modules).start([*arguments], [dict(os.environ if env is None else env)], cwd)
    (ended,) = forks(modules).wait()
    return ended


def run_ranks(
    *arguments: str, env: dict[str, str], cwd: object = None, world_size: int = 2
) -> subprocess.CompletedProcess[str]:
    """Runs a program as the processes of one world, in the environment that torchrun gives them; answers as it does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=world_size, LOCAL_WORLD_SIZE=world_size)
    ranks = [{**world, "RANK": rank, "LOCAL_RANK": rank} for rank in range(world_size)]
    envs = [{**env, **{name: str(value) for name, value in rank.items()}} for rank in ranks]
    forks(LOADED).start([*arguments], envs, cwd)
    ended = forks(LOADED).wait()
    stdout, stderr = "".join(one.stdout for one in ended), "".join(one.stderr for one in ended)
    return subprocess.CompletedProcess([], next((one.returncode for one in ended if one.returncode), 0), stdout, stderr)


# The process that forks


def serve() -> dict[str, Any]:
    """Forks for every request; returns, in each fork, the program that it is to run."""
    for line in sys.stdin:
        children = []
        for program in json.loads(line):
            children.append(os.fork())
            if children[-1] == 0:
                return program
        print(json.dumps(children), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
    sys.exit()


def become(arguments: list[str], env: dict[str, str], cwd: str, output: str) -> None:
    """Makes this process as a new one: its input, output, environment, folder, path of modules and arguments."""
    for number, file in enumerate((os.devnull, f"{output}.out", f"{output}.err")):
        opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.stdout.reconfigure(line_buffering=True)
    kind, *rest = arguments
    first = "" if kind.startswith("-") else str(Path(kind).parent)
    sys.path[:1] = [first, *filter(None, env.get("PYTHONPATH", "").split(":"))]
    sys.argv = rest if kind.startswith("-") else [kind, *rest]
    if "transformers" in sys.modules:  # it has read the environment of the process that forks
        logging = importlib.import_module("transformers.utils.logging")
        logging.set_verbosity(logging.log_levels[env.get("TRANSFORMERS_VERBOSITY", "warning")])


def run(arguments: list[str]) -> None:
    """Runs the program as Python runs its main module."""
    kind, *rest = arguments
    if kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[0] = "-c"
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(rest[0], vars(sys.modules["__main__"]))
    else:
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # what a fork ends by collecting, and copies for it
    asked = serve()
    become(**asked)
    run(asked["arguments"])
