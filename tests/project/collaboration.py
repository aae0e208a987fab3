"""A team in one folder: a clone per member, a bare repository that they push to, and a DVC remote.

The remote is a folder, or a bucket of an S3 server that runs on this machine as long as it is needed.
"""

import json
import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Workspace, environment

SECRET = "a-secret-of-the-team"
START = "start"  # the tag of the first push


@dataclass(frozen=True)
class Remote:
    """The address that DVC pushes to, and the settings for `dvc remote modify`."""

    url: str
    settings: Mapping[str, str]


# A separate process: vLLM, which other tests load, inspects every imported module, which Flask's objects refuse.
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@contextmanager
def remote(kind: str, folder: Path) -> Iterator[Remote]:
    """A remote that exists inside the block: a `folder`, or a bucket on `s3` with its keys in the environment."""
    if kind == "folder":
        yield Remote(str(folder / "remote"), {})
        return
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        host, port = server.stdout.readline().split()
        address = f"http://{host}:{port}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", "team")
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_CONFIG_FILE", str(folder / "none"))  # the user's own settings must not count
            patch.setenv("NO_PROXY", host)
            urllib.request.urlopen(urllib.request.Request(f"{address}/team-bucket", method="PUT")).close()
            yield Remote("s3://team-bucket/cvsi", {"endpointurl": address})
    finally:
        server.kill()
        server.communicate()


def call(workspace: Workspace, *command: str) -> str:
    """Run a command in a workspace, which must succeed; what it printed."""
    names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
    done = subprocess.run(
        command,
        cwd=workspace.path,
        env=environment(workspace.path) | dict.fromkeys(names, "somebody"),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy(project: Workspace, path: Path) -> Workspace:
    """A copy of a project with its outputs, store and DVC cache; every file that git tracks is committed."""
    shutil.copytree(project.path, path, symlinks=True)
    workspace = Workspace(path)
    commit(workspace, "the project")
    return workspace


def commit(workspace: Workspace, message: str) -> None:
    """Commit everything that git does not ignore."""
    call(workspace, "git", "add", "--all")
    call(workspace, "git", "commit", "--quiet", "--allow-empty", "-m", message)


def publish(workspace: Workspace) -> None:
    """Push the commits and the outputs."""
    call(workspace, "dvc", "push", "--run-cache", "--all-commits")
    call(workspace, "git", "push", "--quiet", "--set-upstream", "origin", "HEAD")


def fetch(workspace: Workspace) -> None:
    """Pull the commits and outputs of the others."""
    call(workspace, "git", "pull", "--quiet")
    call(workspace, "dvc", "pull", "--run-cache")


def computed(workspace: Workspace) -> Counter[str]:
    """Rows by kind that this workspace's runs computed with a model; facts of files, which need none, are left out."""
    rows: Counter[str] = Counter()
    for file in (workspace.path / "cache" / ".runs").glob("*.json"):
        for step in json.loads(file.read_text(encoding="utf-8"))["steps"]:
            rows[step["kind"]] += step["computed"]
    del rows["files"]
    return +rows


def cached(workspace: Workspace) -> set[str]:
    """Everything in a workspace's DVC cache, its run cache included, by name."""
    cache = workspace.path / ".dvc" / "cache"
    return {file.relative_to(cache).as_posix() for file in cache.rglob("*") if file.is_file()}


def clean(workspace: Workspace) -> bool:
    """Whether git reports no change and no untracked file."""
    return call(workspace, "git", "status", "--porcelain") == ""


def lock_of(workspace: Workspace, experiment: str) -> dict[str, Any]:
    """The outputs of an experiment by stage, as its dvc.lock names them."""
    names = call(workspace, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (name,) = [name for name in names if name.endswith(f"/{experiment}")]
    content = yaml.safe_load(call(workspace, "git", "show", f"{name}:dvc.lock"))
    return {stage: entry["outs"] for stage, entry in content["stages"].items()}


@dataclass(frozen=True)
class Team:
    """The team's folder, and the workspace of the member who made the project."""

    folder: Path
    first: Workspace

    def join(self, name: str, version: str = "HEAD") -> Workspace:
        """A fresh clone of a pushed version, with its outputs pulled."""
        clone = Workspace(self.folder / name)
        call(self.first, "git", "clone", "--quiet", str(self.folder / "origin.git"), str(clone.path))
        if version != "HEAD":
            call(clone, "git", "checkout", "--quiet", version)
        call(clone, "dvc", "pull", "--run-cache")
        return clone


def start_team(project: Workspace, folder: Path, remote: Remote) -> Team:
    """A team whose first member has a copy of the project and pushes it with its outputs."""
    first = copy(project, folder / "first")
    call(first, "dvc", "remote", "add", "--default", "team", remote.url)
    for name, value in remote.settings.items():
        call(first, "dvc", "remote", "modify", "team", name, value)
    commit(first, "the team's remote")
    call(first, "git", "init", "--quiet", "--bare", str(folder / "origin.git"))
    call(first, "git", "remote", "add", "origin", str(folder / "origin.git"))
    call(first, "git", "tag", START)
    publish(first)
    call(first, "git", "push", "--quiet", "--tags", "origin")
    return Team(folder, first)
