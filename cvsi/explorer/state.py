"""What a server says of itself in a file below `cache/.runs/`, and which artifacts its answers come from.

The file is readable by its owner alone and holds a random token. A client believes a server only after it has proved
that it knows the token, so no query is sent to another user's process on the same port.
"""

import hashlib
import hmac
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cvsi.core import paths
from cvsi.core.digest import digest
from cvsi.core.params import Params

HOST = "127.0.0.1"
LONGEST_FILE = 10_000  # bytes


class ServerState(BaseModel):
    """How a server is reached, by whom, and the digest of the artifacts that it has read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    machine: str
    pid: int = Field(gt=0)
    port: int = Field(gt=0, lt=65536)
    token: str = Field(min_length=32)
    artifacts: str

    @property
    def alive(self) -> bool:
        """Whether its process exists on this machine; True for another machine's, which cannot be seen from here."""
        if self.machine != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's process has the number now
            return False
        return True

    @property
    def here(self) -> bool:
        """Whether it runs on this machine, whose loopback reaches it."""
        return self.machine == socket.gethostname()

    def write(self) -> None:
        """Write the file, readable by its owner alone from the first byte."""
        file = paths.server_file(self.run)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}-{self.pid}.partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            stream.write(self.model_dump_json() + "\n")
        partial.replace(file)

    def remove(self) -> None:
        """Remove the file, where it is still this server's."""
        if read(self.run) == self:
            with suppress(OSError):
                paths.server_file(self.run).unlink()

    @classmethod
    def of(cls, run: str, port: int, token: str, artifacts: str) -> Self:
        """The state of this process."""
        return cls(run=run, machine=socket.gethostname(), pid=os.getpid(), port=port, token=token, artifacts=artifacts)


def read(run: str) -> ServerState | None:
    """The state that a server of a run left; None where there is none that belongs to this user alone."""
    file = paths.server_file(run)
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            facts = os.fstat(stream.fileno())
            if facts.st_uid != os.getuid() or facts.st_mode & 0o077:
                return None
            state = ServerState.model_validate_json(stream.read(LONGEST_FILE))
    except (OSError, ValidationError):
        return None
    return state if state.run == run else None


def proof(token: str, nonce: str) -> str:
    """What shows knowledge of a token without giving it away."""
    return hmac.new(token.encode(), nonce.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def artifacts(run: str, params: Params) -> str:
    """The digest of what a run's answers come from: its files by name, size and time, and its parameters."""
    chosen = params.run(run)
    name, backbone = chosen.dataset, chosen.backbone
    folders = [paths.folder(stage, name) for stage in paths.OF_DATASET]
    folders += [paths.folder(stage, name, backbone) for stage in ("gallery_vectors", "query_vectors")]
    files = [fact for folder in folders for file in sorted(folder.rglob("*.parquet")) for fact in _facts(file)]
    settings = [params.dataset(name).model_dump(mode="json"), params.backbone(backbone).model_dump(mode="json")]
    return digest(files, settings, params.methods, os.fspath(Path.cwd()))


def _facts(file: Path) -> list[str | int]:
    try:
        facts = file.stat()
    except OSError:  # a stage replaces it now
        return [os.fspath(file)]
    return [os.fspath(file), facts.st_size, facts.st_mtime_ns]
