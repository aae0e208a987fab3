"""`cvsi serve`: the models of a run loaded once, and its search answered on this machine until Ctrl-C."""

import secrets
import signal
from types import FrameType

from cvsi.core import params
from cvsi.core.console import info
from cvsi.core.errors import CvsiError
from cvsi.explorer import client, state
from cvsi.explorer.engine import Engine
from cvsi.explorer.server import listen, serve


def run_server(run: str, port: int) -> None:
    """Serve a run; raises CvsiError where it is served already, the port is taken, or a model cannot be loaded.

    Raises KeyboardInterrupt on SIGINT and SIGTERM.
    """
    settings = params.load()
    settings.run(run)
    if (other := client.running(run)) is not None:
        raise CvsiError(f"{run} is served already, on port {other.port} by process {other.pid}; end that one first")
    listener = listen(port)
    signal.signal(signal.SIGTERM, _stop)
    with listener:
        number = listener.getsockname()[1]
        own = state.ServerState.of(run, number, secrets.token_urlsafe(32), state.artifacts(run, settings))
        engine = Engine(run, settings)
        info("loading the models")
        engine.load()
        serve(engine, own, listener)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
