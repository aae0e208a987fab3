"""A local server in place of a language model: its answer follows from the prompt alone.

It speaks the part of OpenAI's interface that the editor uses, so that the stage `edits` starts in seconds.
Real kills with vLLM are in tests/project/test_pipeline.py.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from cvsi.pipeline.editor import EDITED_CUE

EDITOR = {"engine": "server", "model": "answers", "max_tokens": 64}


def answer(prompt: str) -> str:
    """The first caption with the instruction behind it, or the instruction's last words as what was added."""
    content, instruction, cue = prompt.rsplit("\n", 3)[-3:]
    wish = instruction.removeprefix("Instruction: ")
    if cue != EDITED_CUE:
        return " ".join(wish.split()[-2:])
    return f"{content.removeprefix('Image Content: ').split(', ')[0]} that {wish}"


class Answers(BaseHTTPRequestHandler):
    """One request, one answer; connections stay open between them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "text": answer(asked["prompt"])}
        facts = {"id": "answer", "object": "text_completion", "created": 0, "model": asked["model"]}
        body = json.dumps(facts | {"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of single requests."""


class Server(ThreadingHTTPServer):
    """Goes on when a stage was killed in the middle of a request."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The one who asked is gone; nobody waits for this answer."""


@contextmanager
def serving(port: int = 0) -> Iterator[str]:
    """A server for as long as the block lasts, at a free port unless told; its address."""
    with Server(("127.0.0.1", port), Answers) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()
