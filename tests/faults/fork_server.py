"""Processes that run a stage without the seconds in which libraries are imported, so that hundreds of kills are cheap.

One interpreter imports the libraries, nothing of cvsi, and forks for each run; the child is a process of its own, that
imports the stage's script and package, loads its models, and is killed as any other. A part of the kills hits plainly
started processes all the same.
"""

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LIBRARIES = (
    "torch", "polars", "pyarrow.parquet", "PIL.Image", "pydantic", "yaml", "typer", "rich.console", "jinja2", "openai",
    "open_clip", "safetensors.torch", "transformers.models.blip_2.modeling_blip_2",
    "transformers.models.opt.modeling_opt",    "transformers.models.auto.processing_auto", "torchvision", "tokenizers",
)  # fmt: skip


class Forked:
    """A run in a child of the nursery, with the part of Popen that tests use."""

    def __init__(self, nursery: subprocess.Popen[str], pid: int, said: tuple[IO[str], IO[str]]) -> None:
        """`said` is where the child writes its two streams."""
        self.pid, self.returncode = pid, None if pid else -1
        self._nursery, self._said = nursery, said

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._nursery.stdout], [], [], 0)[0]:
            self._wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        """Wait for the end; what it said on its streams."""
        if self.returncode is None:
            self._wait()
        for stream in self._said:
            stream.seek(0)
        return self._said[0].read(), self._said[1].read()

    def _wait(self) -> None:
        assert self._nursery.stdout is not None
        self.returncode = os.waitstatus_to_exitcode(int(self._nursery.stdout.readline()))


class Nursery:
    """The interpreter that forks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """It has imported everything."""
        self._process = process

    def start(self, folder: Path, script: str, arguments: tuple[str, ...], environment: dict[str, str]) -> Forked:
        """Run a script in a folder, whose own package it imports."""
        said = (tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+"))
        names = [f"/proc/{os.getpid()}/fd/{stream.fileno()}" for stream in said]
        order = {"folder": str(folder), "script": script, "arguments": arguments, "said": names, "env": environment}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Forked(self._process, int(self._process.stdout.readline()), said)


@contextmanager
def nursery(environment: dict[str, str]) -> Iterator[Nursery]:
    """A nursery for as long as the block lasts."""
    command = [sys.executable, __file__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as process:
        yield Nursery(process)
        assert process.stdin is not None
        process.stdin.close()


def _child(order: dict[str, object]) -> None:
    os.chdir(str(order["folder"]))
    for number, name in zip((1, 2), order["said"], strict=True):  # type: ignore[call-overload]
        os.dup2(os.open(name, os.O_WRONLY), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(order["env"])  # type: ignore[call-overload]
    os.environ["PYTHONPATH"] = str(order["folder"])
    sys.path.insert(0, str(order["folder"]))
    sys.argv = [str(order["script"]), *order["arguments"]]  # type: ignore[misc]
    code: object = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def main() -> None:
    """Import the libraries, then fork a child for each line of standard input; say its number, and how it ended."""
    sys.path.pop(0)
    for name in LIBRARIES:
        __import__(name)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _child(json.loads(line))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
