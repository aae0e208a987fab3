"""`cvsi serve` as a process: it answers `cvsi search`, and a signal ends it with one line and without its file."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cvsi.commands.main import app
from cvsi.core import paths
from tests.conftest import Workspace, environment
from tests.explorer.conftest import made, run
from tests.toy_engines import install_toy_engines

__all__ = ["made", "run"]  # fixtures
CVSI = [sys.executable, "-c", "from cvsi.commands.main import main; main()"]
SEARCH = [*CVSI, "search", "toy-tiny", "--json"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_server_answers_until_a_signal_ends_it(
    run: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    install_toy_engines(tmp_path / "engines", monkeypatch)
    variables = environment(run.path)
    queries = [["--text", "a disc"], ["--image", "photos/red.png", "is green"], ["--image", "red.png", "is new"]]
    alone = [CliRunner().invoke(app, [*SEARCH[len(CVSI) :], *query]).stdout for query in queries[:2]]
    pipe = subprocess.PIPE
    server = subprocess.Popen([*CVSI, "serve", "toy-tiny"], stdout=pipe, stderr=pipe, text=True, env=variables)
    try:
        assert server.stdout is not None and server.stderr is not None
        assert server.stdout.readline() == "cvsi: loading the models\n", server.stderr.read()
        line = server.stdout.readline()
        port = (
            json.loads(paths.server_file("toy-tiny").read_text())["port"] if "served" in line else 0
        )  # written before the line
        assert f"toy-tiny is served on 127.0.0.1 port {port}; " in line, server.stderr.read()
        assert [subprocess.check_output([*SEARCH, *query], env=variables, text=True) for query in queries[:2]] == alone
        done = subprocess.run([*SEARCH, *queries[2]], env=variables, capture_output=True, text=True)
        assert len(json.loads(done.stdout)["results"]) == 8
        assert done.stderr == "cvsi: searched for: it is new now\n"
        wrong = subprocess.run([*SEARCH, "--like", "params.yaml"], env=variables, capture_output=True, text=True)
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert wrong.stderr == "cvsi: params.yaml: the image cannot be read: not an image\n"
    finally:
        server.send_signal(number)
        out, err = server.communicate(timeout=60)
    assert (server.returncode, out, err) == (130, "", "cvsi: stopped\n")
    assert not paths.server_file("toy-tiny").exists()
