"""The search of one run over HTTP on this machine, with its models kept loaded: JSON in, JSON out.

`POST /hello` proves that the server knows the token of its file; `POST /search` takes a request with the token and
returns an answer. Only this machine's own names are served, only JSON is read, and only up to a size. Searches run one
after the other in a thread, so that the server answers meanwhile.
"""

import secrets
import socket
from threading import Lock
from typing import Annotated, Any

import uvicorn
from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cvsi.core.console import info
from cvsi.core.errors import CvsiError
from cvsi.core.params import Settings, explain
from cvsi.explorer.requests import MAX_SENT, Answer, Request, Searcher
from cvsi.explorer.state import HOST, ServerState, proof

MAX_BODY = MAX_SENT // 3 * 4 + (4 << 20)
MAX_HELLO = 1_000
NAMES = [HOST, "localhost"]


class Hello(Settings):
    """A client's random text, which the proof is made from."""

    nonce: Annotated[str, Field(min_length=16, max_length=200)]


class Refused(Exception):
    """A request that is not answered, with a status and a line."""

    def __init__(self, status: int, line: str) -> None:
        """Keep both."""
        super().__init__(line)
        self.status = status


def application(searcher: Searcher, token: str) -> Starlette:
    """The routes of a server with this token."""
    lock = Lock()

    def answer(wanted: Request) -> Answer:
        with lock:
            return searcher.answer(wanted)

    async def hello(http: HttpRequest) -> Response:
        wanted = Hello.model_validate_json(await json_body(http, MAX_HELLO))
        return JSONResponse({"proof": proof(token, wanted.nonce)})

    async def search(http: HttpRequest) -> Response:
        given = http.headers.get("authorization", "").encode("utf-8", "replace")
        if not secrets.compare_digest(given, f"Bearer {token}".encode()):
            raise Refused(401, "the token is missing or wrong")
        wanted = Request.model_validate_json(await json_body(http, MAX_BODY))
        found = await run_in_threadpool(answer, wanted)
        return Response(found.model_dump_json(), media_type="application/json")

    return Starlette(
        routes=[Route("/hello", hello, methods=["POST"]), Route("/search", search, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=NAMES, www_redirect=False)],
        exception_handlers={
            Refused: lambda _, error: _line(error.status, str(error)),
            CvsiError: lambda _, error: _line(422, str(error)),
            ValidationError: lambda _, error: _line(422, explain(error)),
            Exception: lambda _, error: _line(500, f"a bug, please report it: {type(error).__name__}"),
        },
    )


def listen(port: int) -> socket.socket:
    """A socket that listens on this machine's loopback; raises CvsiError where the port is taken. 0 is any free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(64)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "not a port"
        raise CvsiError(f"port {port}: {reason}; give another --port, or leave it out for a free one") from None
    return listener


def serve(searcher: Searcher, state: ServerState, listener: socket.socket) -> None:
    """Answer until the process gets a signal to end; the state's file exists meanwhile."""
    config = uvicorn.Config(
        application(searcher, state.token), log_level="error", access_log=False, lifespan="off", server_header=False,
        limit_concurrency=64, timeout_graceful_shutdown=2,
    )  # fmt: skip
    state.write()
    info(f"{state.run} is served on {HOST} port {state.port}; cvsi search uses it; Ctrl-C ends it")
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        state.remove()


async def json_body(http: HttpRequest, limit: int) -> bytes:
    """The body of a JSON request; raises Refused for another type and for a longer one."""
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send application/json")
    length = http.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length[:20]) > limit:
        raise Refused(413, f"more than {limit:,} bytes")
    data = bytearray()
    async for part in http.stream():
        data += part
        if len(data) > limit:
            raise Refused(413, f"more than {limit:,} bytes")
    return bytes(data)


def _line(status: int, text: str) -> Response:
    content: dict[str, Any] = {"error": " ".join(text.split())}
    return JSONResponse(content, status_code=status)
