"""A local server in place of a language model: its answer depends on the prompt alone.

It implements the part of OpenAI's interface that the editor uses, so that the stage `edits` starts in seconds.
Kills with the real vLLM are in tests/project/test_pipeline.py.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from cvsi.pipeline.prompting import EDITED_CUE

EDITOR = {"engine": "server", "model": "answers", "max_tokens": 64}


def answer(prompt: str) -> str:
    """The first caption followed by the instruction, or the instruction's last words as the added text."""
    content, line, cue = prompt.rsplit("\n", 3)[-3:]
    instruction = line.removeprefix("Instruction: ")
    if cue != EDITED_CUE:
        return " ".join(instruction.split()[-2:])
    return f"{content.removeprefix('Image Content: ').split(', ')[0]} that {instruction}"


class Handler(BaseHTTPRequestHandler):
    """One answer per request; connections stay open."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "text": answer(request["prompt"])}
        facts = {"id": "answer", "object": "text_completion", "created": 0, "model": request["model"]}
        body = json.dumps(facts | {"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing for a request."""


class Server(ThreadingHTTPServer):
    """Continues when a stage is killed during a request."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client was killed; its answer is not needed."""


@contextmanager
def serve(port: int = 0) -> Iterator[str]:
    """Run a server inside the block, at `port` or at any unused one; yields its address."""
    with Server(("127.0.0.1", port), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()
