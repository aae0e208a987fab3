"""A running server of a run, as a searcher: found by its file, believed only after it proved to know the token."""

import http.client
import json
import secrets
from contextlib import suppress
from typing import Any

from cvsi.core.console import warn
from cvsi.core.errors import CvsiError
from cvsi.explorer.requests import Answer, Request
from cvsi.explorer.state import HOST, ServerState, proof, read

HELLO_SECONDS, SEARCH_SECONDS = 5, 600
MAX_ANSWER = 64 << 20  # bytes


class Server:
    """A server that proved itself."""

    def __init__(self, state: ServerState) -> None:
        """Keep how it is reached."""
        self.state = state

    def answer(self, request: Request) -> Answer:
        """Its answer; raises CvsiError with its line, or where it ended meanwhile."""
        headers = {"Authorization": f"Bearer {self.state.token}"}
        body = request.model_dump_json(exclude_defaults=True).encode()
        try:
            status, content = _post(self.state, "/search", body, headers, SEARCH_SECONDS)
            if status == 200:
                return Answer.model_validate(content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CvsiError(f"the server on port {self.state.port} broke off ({error}); try again") from None
        raise CvsiError(str(content.get("error", f"the server on port {self.state.port} answered {status}")))


def find(run: str, artifacts: str) -> Server | None:
    """The server of a run on this machine, where one runs; None otherwise.

    A file whose server is gone is removed. A server that does not answer in time is not used, nor is one that has read
    other artifacts than those on disk now; a line says so.
    """
    state = read(run)
    if state is None or not state.here:
        return None
    try:
        if not (state.alive and _proves_itself(state)):
            state.remove()
            return None
    except TimeoutError:
        warn(f"the server on port {state.port} (process {state.pid}) does not answer and is not used")
        return None
    if state.artifacts != artifacts:
        warn(
            f"the server on port {state.port} has read older artifacts or parameters and is not used; "
            f"end it (process {state.pid}) and start it again: cvsi serve {run}"
        )
        return None
    return Server(state)


def running(run: str) -> ServerState | None:
    """The state of a run's server on this machine, where one runs."""
    state = read(run)
    try:
        return state if state is not None and state.here and state.alive and _proves_itself(state) else None
    except TimeoutError:
        return state


def _proves_itself(state: ServerState) -> bool:
    """Whether it knows the token; raises TimeoutError where there is no answer in time."""
    nonce = secrets.token_hex(16)
    try:
        status, content = _post(state, "/hello", json.dumps({"nonce": nonce}).encode(), {}, HELLO_SECONDS)
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException, ValueError):
        return False
    given = str(content.get("proof", "")).encode("utf-8", "replace")
    return status == 200 and secrets.compare_digest(given, proof(state.token, nonce).encode())


def _post(
    state: ServerState, path: str, body: bytes, headers: dict[str, str], timeout: float
) -> tuple[int, dict[str, Any]]:
    """A status and a JSON object; raises OSError, HTTPException or ValueError where there is none."""
    connection = http.client.HTTPConnection(HOST, state.port, timeout=timeout)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        data = response.read(MAX_ANSWER + 1)
    finally:
        with suppress(OSError):
            connection.close()
    content = json.loads(data) if len(data) <= MAX_ANSWER else None
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return response.status, content
