"""The explorer's page over HTTP on this machine: the page itself, its data as scripts, pictures, and its questions.

Every address begins with a random token. Only this machine's own names are served, requests that change or compute
something must come from the page itself, and only JSON is read, up to a size.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from queue import Queue
from threading import Event, Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from cvsi.core.errors import CvsiError
from cvsi.core.params import Block, Settings, explain
from cvsi.evaluation.fusion import read_fusion
from cvsi.evaluation.report.explore import static
from cvsi.explorer.requests import Label, Request
from cvsi.explorer.run_view import RunView
from cvsi.explorer.server import MAX_BODY, NAMES, Refused, json_body
from cvsi.explorer.split_metric import Cancelled

if TYPE_CHECKING:
    from cvsi.explorer.components import Edit

TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SIDES = (160, 512, 1024)  # of the pictures that are made, in pixels
LONGEST_SIDE = 4096
MAX_QUESTION = 100_000  # bytes of a request
LABEL: TypeAdapter[Label] = TypeAdapter(Label)


class Rank(Settings):
    """A query by its row, and the fusion that ranks it, as in params.yaml."""

    row: NonNegativeInt
    fusion: Block


class Metric(Settings):
    """A split, and the fusion whose metric is wanted."""

    split: str
    fusion: Block


Differences = Mapping[str, Sequence[Sequence[str]]]  # of each other run: part, field, the first run's value, its own


def application(runs: Mapping[str, RunView], token: str, differences: Differences = MappingProxyType({})) -> Starlette:
    """The routes of the page for some runs, all below the token; `differences` are those of the runs' recipes."""
    page = _Pages(runs, differences)
    inside = [
        Route("/", page.whole),
        Route("/explore/data/runs.js", page.listed),
        Route("/explore/data/{run}/{part}.js", page.data),
        Route("/explore/api/{run}/query/{row:int}", page.query),
        Route("/explore/api/{run}/strip/{row:int}", page.strip),
        Route("/explore/api/{run}/rank", page.rank, methods=["POST"]),
        Route("/explore/api/{run}/metric", page.metric, methods=["POST"]),
        Route("/explore/api/{run}/ask", page.question, methods=["POST"]),
        Route("/explore/api/{run}/label", page.label, methods=["POST"]),
        Route("/explore/picture/{run}/{number:int}", page.picture),
        Route("/explore/original/{run}/{number:int}", page.original),
        Route("/explore/{name}", page.asset),
    ]
    return Starlette(
        routes=[Route(f"/{token}", lambda http: RedirectResponse(f"/{token}/")), Mount(f"/{token}", routes=inside)],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=NAMES, www_redirect=False),
            Middleware(SafeHeaders),
        ],
        exception_handlers={
            Refused: lambda _, error: _line(error.status, str(error)),
            HTTPException: lambda _, error: _line(error.status_code, str(error.detail)),
            CvsiError: lambda _, error: _line(422, str(error)),
            ValidationError: lambda _, error: _line(422, explain(error)),
            Exception: lambda _, error: _line(500, f"a bug, please report it: {type(error).__name__}"),
        },
    )


class _Pages:
    """The answers to the page's requests; what is computed for a run is computed one after the other."""

    def __init__(self, runs: Mapping[str, RunView], differences: Differences) -> None:
        self.runs, self.differences = runs, differences
        self._locks, self._measured = {name: Lock() for name in runs}, {name: Event() for name in runs}
        self._measuring, self._asking = {name: Lock() for name in runs}, {name: Lock() for name in runs}

    async def whole(self, http: HttpRequest) -> Response:
        """The page."""
        return _file("page.html")

    async def asset(self, http: HttpRequest) -> Response:
        """A file that the page needs."""
        named = {name.rpartition("/")[2]: name for name in static.ASSETS}
        if http.path_params["name"] not in named:
            raise HTTPException(404, "no such file")
        return _file(named[http.path_params["name"]])

    async def listed(self, http: HttpRequest) -> Response:
        """The names of the runs."""
        return _script("runs", {"runs": list(self.runs), "served": True, "differences": dict(self.differences)})

    async def data(self, http: HttpRequest) -> Response:
        """What the page loads of a run at its start."""
        run, part = self._run(http), http.path_params["part"]
        makers = {"run": run.facts, "queries": run.queries, "images": run.references}
        if part not in makers:
            raise HTTPException(404, "no such data")
        return _script(f"{run.name}/{part}", await self._computed(run, makers[part]))

    async def query(self, http: HttpRequest) -> Response:
        """One query."""
        run = self._run(http)
        return JSONResponse(await self._computed(run, lambda: run.query(http.path_params["row"])))

    async def strip(self, http: HttpRequest) -> Response:
        """The first images of a method for a query."""
        run, method = self._run(http), http.query_params.get("method", "")
        return JSONResponse(await self._computed(run, lambda: run.strip(http.path_params["row"], method)))

    async def rank(self, http: HttpRequest) -> Response:
        """The first images by any numbers for a query."""
        run, wanted = self._run(http), Rank.model_validate_json(await json_body(http, MAX_QUESTION))
        fusion = read_fusion(wanted.fusion, "weights")
        return JSONResponse(await self._computed(run, lambda: run.ranked(wanted.row, fusion)))

    async def metric(self, http: HttpRequest) -> Response:
        """The metric of a split by any numbers; it ends the one that was measured before."""
        run, wanted = self._run(http), Metric.model_validate_json(await json_body(http, MAX_QUESTION))
        fusion = read_fusion(wanted.fusion, "weights")
        self._measured[run.name].set()
        cancelled = self._measured[run.name] = Event()

        def work(told: Callable[[Any], object]) -> dict[str, Any]:
            with self._measuring[run.name]:  # the one before was told to end
                return run.metric(wanted.split, fusion, cancelled, lambda share: told({"done": round(share, 3)}))

        return StreamingResponse(_lines(work, cancelled), media_type="application/x-ndjson")

    async def question(self, http: HttpRequest) -> Response:
        """The edit of a new query, then its first images."""
        run, wanted = self._run(http), Request.model_validate_json(await json_body(http, MAX_BODY))

        def work(told: Callable[[Any], object]) -> dict[str, Any]:
            with self._asking[run.name]:  # models may take minutes to load, and the page goes on meanwhile
                return run.ask(wanted, lambda edit: told({"edit": _edit(edit)}))

        return StreamingResponse(_lines(work), media_type="application/x-ndjson")

    async def label(self, http: HttpRequest) -> Response:
        """A label, written."""
        run, wanted = self._run(http), LABEL.validate_json(await json_body(http, MAX_QUESTION))
        return JSONResponse(await self._computed(run, lambda: run.label(wanted)))

    async def picture(self, http: HttpRequest) -> Response:
        """A small picture of an image."""
        side = next((one for one in SIDES if str(one) == http.query_params.get("side")), SIDES[0])
        content, kind = await run_in_threadpool(self._run(http).picture, http.path_params["number"], side)
        return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    async def original(self, http: HttpRequest) -> Response:
        """A large picture of an image: decoded and encoded again, so that it is an image whatever the file is."""
        content, kind = await run_in_threadpool(self._run(http).picture, http.path_params["number"], LONGEST_SIDE)
        return Response(content, media_type=kind)

    def _run(self, http: HttpRequest) -> RunView:
        name = http.path_params["run"]
        if name not in self.runs:
            raise HTTPException(404, f"no run {name[:80]} here")
        return self.runs[name]

    async def _computed(self, run: RunView, work: Callable[[], Any]) -> Any:
        def locked() -> Any:
            with self._locks[run.name]:
                return work()

        return await run_in_threadpool(locked)


class SafeHeaders:
    """Adds the headers that keep a browser from using an answer in another way, and refuses other pages' requests."""

    def __init__(self, app: Any) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        if not _from_here(given):
            await _line(403, "this address is for its own page")(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                present = {key.lower() for key, _ in message["headers"]}
                extra = {**SAFE, "Content-Security-Policy": POLICY}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (key.lower().encode(), value.encode())
                        for key, value in extra.items()
                        if key.lower().encode() not in present
                    ),
                ]
            await send(message)

        await self.app(scope, receive, with_headers)


def _from_here(headers: Mapping[str, str]) -> bool:
    """Whether a request is the user's own navigation or comes from the served page itself."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site not in (None, "none", "same-origin"):
        return False
    return origin in (None, f"http://{headers.get('host', '')}")


Work = Callable[[Callable[[Any], object]], dict[str, Any]]


async def _lines(work: Work, cancelled: Event | None = None) -> AsyncIterator[str]:
    """What `work` tells while it runs, then its result, a line of JSON each.

    `cancelled` is set where the page no longer listens.
    """
    told: Queue[Any] = Queue()

    def run() -> dict[str, Any]:
        try:
            return work(told.put)
        finally:
            told.put(None)

    task = asyncio.ensure_future(run_in_threadpool(run))
    try:
        while (content := await run_in_threadpool(told.get)) is not None:
            yield json.dumps(content) + "\n"
        try:
            yield json.dumps(await task) + "\n"
        except Cancelled:
            yield json.dumps({"cancelled": True}) + "\n"
        except CvsiError as error:
            yield json.dumps({"error": str(error)}) + "\n"
    finally:
        if cancelled is not None:
            cancelled.set()


def _edit(edit: "Edit") -> dict[str, Any]:
    return {"edited": edit.edited, "added": edit.added, "status": edit.status, "roles": dict(edit.roles)}


def _file(name: str) -> Response:
    return Response(static.asset(name), media_type=TYPES[name.rpartition(".")[2]])


def _script(name: str, content: Any) -> Response:
    return Response(static.script(name, content), media_type=TYPES["js"])


def _line(status: int, text: str) -> Response:
    return JSONResponse({"error": " ".join(text.split())}, status_code=status)
