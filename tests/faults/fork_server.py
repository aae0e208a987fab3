"""Processes that run a stage without the seconds in which libraries are imported, so that hundreds of kills are cheap.

One interpreter imports the libraries, nothing of cvsi, and forks for each run. The child is a process of its own: it
imports the stage's script and package, loads its models, and is killed like any other. Some of the kills hit newly
started processes.
"""

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LIBRARIES = (
    "torch", "polars", "pyarrow.parquet", "PIL.Image", "pydantic", "yaml", "typer", "rich.console", "jinja2", "openai",
    "open_clip", "safetensors.torch", "transformers.models.blip_2.modeling_blip_2",
    "transformers.models.opt.modeling_opt", "transformers.models.auto.processing_auto", "torchvision", "tokenizers",
)  # fmt: skip


class ForkedRun:
    """A run in a child of the fork server, with the part of Popen's interface that tests use."""

    def __init__(self, server: subprocess.Popen[str], pid: int, streams: tuple[IO[str], IO[str]]) -> None:
        """The child writes its standard output and error to `streams`."""
        self.pid, self.returncode = pid, None if pid else -1
        self._server, self._streams = server, streams

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._server.stdout], [], [], 0)[0]:
            self._wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        """Wait for the end; its standard output and error."""
        if self.returncode is None:
            self._wait()
        for stream in self._streams:
            stream.seek(0)
        return self._streams[0].read(), self._streams[1].read()

    def _wait(self) -> None:
        assert self._server.stdout is not None
        self.returncode = os.waitstatus_to_exitcode(int(self._server.stdout.readline()))


class ForkServer:
    """The interpreter that forks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """`process` runs `main` of this file."""
        self._process = process
        self._run: ForkedRun | None = None

    def start(self, folder: Path, script: str, arguments: Sequence[str], environment: dict[str, str]) -> ForkedRun:
        """Run a script in a folder whose own package it imports; a run that was not waited for has to end first."""
        if self._run is not None:
            self._run.communicate()
        streams = (tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+"))
        paths = [f"/proc/{os.getpid()}/fd/{stream.fileno()}" for stream in streams]
        request = {
            "folder": str(folder), "script": script, "arguments": list(arguments), "streams": paths, "env": environment,
        }  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        self._run = ForkedRun(self._process, int(self._process.stdout.readline()), streams)
        return self._run


@contextmanager
def start_fork_server(environment: dict[str, str], libraries: Sequence[str] = LIBRARIES) -> Iterator[ForkServer]:
    """A fork server that ends with the block; it imports `libraries`."""
    command = [sys.executable, __file__, *libraries]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as process:
        yield ForkServer(process)
        assert process.stdin is not None
        process.stdin.close()


def _child(request: dict[str, object]) -> None:
    os.chdir(str(request["folder"]))
    for number, path in zip((1, 2), request["streams"], strict=True):  # type: ignore[call-overload]
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    os.environ["PYTHONPATH"] = str(request["folder"])
    sys.path.insert(0, str(request["folder"]))
    sys.argv = [str(request["script"]), *request["arguments"]]  # type: ignore[misc]
    code: object = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def main() -> None:
    """Import the libraries, then fork a child for each line of standard input; print its process id and its status."""
    sys.path.pop(0)
    for name in sys.argv[1:] or LIBRARIES:
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
