"""`cvsi explore`: the explorer's page for some runs, served on this machine until Ctrl-C."""

import secrets
import signal
from collections.abc import Sequence
from types import FrameType

import uvicorn

from cvsi.commands import consistency
from cvsi.core import params, provenance
from cvsi.core.console import info
from cvsi.explorer.joined import views
from cvsi.explorer.page_server import application
from cvsi.explorer.run_view import RunView
from cvsi.explorer.server import listen
from cvsi.explorer.state import HOST


def run_explorer(names: Sequence[str], port: int) -> None:
    """Serve the page for these runs, or without names for the first run that has scores and those over its queries.

    Raises CvsiError where a run cannot be read or the port is taken, KeyboardInterrupt on SIGINT and SIGTERM.
    """
    settings = params.load()
    with listen(port) as listener:  # first, since reading runs takes longer than finding that a port is taken
        runs = views(names, settings)
        signal.signal(signal.SIGTERM, _stop)
        token = secrets.token_urlsafe(16)
        config = uvicorn.Config(
            application(runs, token, differences(list(runs.values()))), log_level="error", access_log=False,
            lifespan="off", server_header=False, limit_concurrency=64, timeout_graceful_shutdown=2,
        )  # fmt: skip
        info(f"http://{HOST}:{listener.getsockname()[1]}/{token}/ shows {', '.join(runs)}; Ctrl-C ends it")
        uvicorn.Server(config).run(sockets=[listener])


def differences(runs: Sequence[RunView]) -> dict[str, list[tuple[str, str, str, str]]]:
    """What differs in the recipe of each other run from the first one's: part, field and both values."""
    first, *others = (provenance.recipes(run.dataset, run.backbone) for run in runs)
    return {
        run.name: [
            (part, field, *pair)
            for part, fields in consistency.differences(first, other).items()
            for field, pair in fields.items()
        ]
        for run, other in zip(runs[1:], others, strict=True)
    }


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
