"""`cvsi explore`: the explorer's page for some runs, served on this machine until Ctrl-C."""

import secrets
import signal
from collections.abc import Sequence
from types import FrameType

import uvicorn

from cvsi.core import params
from cvsi.core.console import info
from cvsi.core.errors import CvsiError
from cvsi.explorer.page_server import application
from cvsi.explorer.run_view import RunView
from cvsi.explorer.server import listen
from cvsi.explorer.state import HOST


def run_explorer(names: Sequence[str], port: int) -> None:
    """Serve the page for these runs, or for all runs of params.yaml that have scores.

    Raises CvsiError where a run has no artifacts or the port is taken, KeyboardInterrupt on SIGINT and SIGTERM.
    """
    settings = params.load()
    chosen = list(dict.fromkeys(names)) or list(settings.runs)
    for name in chosen:
        settings.run(name)
    runs = {name: RunView(name, settings) for name in chosen}
    if not runs:
        raise CvsiError("params.yaml has no run; add one under runs")
    listener = listen(port)
    signal.signal(signal.SIGTERM, _stop)
    token = secrets.token_urlsafe(16)
    config = uvicorn.Config(
        application(runs, token), log_level="error", access_log=False, lifespan="off", server_header=False,
        limit_concurrency=64, timeout_graceful_shutdown=2,
    )  # fmt: skip
    with listener:
        info(f"http://{HOST}:{listener.getsockname()[1]}/{token}/ shows {', '.join(runs)}; Ctrl-C ends it")
        uvicorn.Server(config).run(sockets=[listener])


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
