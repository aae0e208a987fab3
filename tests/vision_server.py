"""A stand-in for a vision server with OpenAI's interface: a caption is computed from the pixels of the image sent.

`python -m tests.vision_server [PORT]` runs one until it is stopped and prints its address.
"""

import base64
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

COLOURS = {
    "red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "orange": (255, 165, 0),
    "purple": (128, 0, 128), "black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128),
}  # fmt: skip
ADJECTIVES = ("small", "plain", "bright", "quiet", "round", "old", "new", "clean")


@dataclass(frozen=True)
class Seen:
    """One request: its body, its headers (names in lower case), and the image that was sent."""

    body: dict[str, Any]
    headers: dict[str, str]
    image: Image.Image
    content: bytes

    @property
    def colour(self) -> str:
        """See `colour_of`."""
        return colour_of(self.image)


Reply = tuple[int, Any, dict[str, str]]  # status, JSON or bytes, headers; a status below 0 closes the connection
Script = Callable[[Seen, int], Reply]  # the request, and how many with the same image and seed came before it


def colour_of(image: Image.Image) -> str:
    """The most frequent colour of an image besides grey, or grey."""
    small = image.convert("RGB").resize((32, 32), Image.Resampling.NEAREST)
    totals = dict.fromkeys(COLOURS, 0)
    for number, pixel in small.getcolors(32 * 32) or []:
        totals[nearest(pixel)] += number
    totals["grey"] = 0
    return max(totals, key=totals.__getitem__) if any(totals.values()) else "grey"


def nearest(pixel: Any) -> str:
    """The name of the colour closest to a pixel."""
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], pixel, strict=True)))


def caption(seen: Seen) -> str:
    """A caption from the pixels, the size and the seed."""
    adjective = ADJECTIVES[seen.body.get("seed", 0) % len(ADJECTIVES)]
    return f"a {adjective} {seen.colour} picture of {seen.image.width} by {seen.image.height} pixels"


def choice(text: Any, finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion with one choice."""
    content = {"role": "assistant", "content": text} | message
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return answer | {"choices": [{"index": 0, "message": content, "finish_reason": finish, "logprobs": None}]}


def good(seen: Seen, before: int = 0) -> Reply:
    """The reply of a server that works."""
    return 200, choice(caption(seen)), {}


def error(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    """An error as OpenAI sends it."""
    return status, {"error": {"message": message} | more}, headers or {}


@dataclass
class VisionServer:
    """A running server: its port, the script that answers, and what it has seen."""

    port: int = 0
    script: Script = good
    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> str:
        """The address for params.yaml."""
        return f"http://127.0.0.1:{self.port}/v1"

    def run(self, script: Script) -> None:
        """Answer by another script, and forget what was seen."""
        self.script, self.seen = script, []


def _seen(body: dict[str, Any], headers: dict[str, str]) -> Seen:
    if isinstance(body["messages"][-1]["content"], str):  # a text model's request, for readers of captions
        return Seen(body, headers, Image.new("RGB", (1, 1), "grey"), body["messages"][-1]["content"].encode())
    url = next(part["image_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "image_url")
    kind, _, text = url.partition(",")
    assert kind in ("data:image/jpeg;base64", "data:image/png;base64"), kind
    content = base64.b64decode(text, validate=True)
    image = Image.open(io.BytesIO(content))
    image.load()
    return Seen(body, headers, image, content)


def _handler(server: VisionServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers one request."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self._send(*error(404, f"no {self.path}"))
                return
            seen = _seen(body, {name.lower(): value for name, value in self.headers.items()})
            with server.lock:
                same = (seen.content, body.get("seed"))
                before = sum((other.content, other.body.get("seed")) == same for other in server.seen)
                server.seen.append(seen)
            self._send(*server.script(seen, before))

        def _send(self, status: int, content: Any, headers: dict[str, str]) -> None:
            if status < 0:
                self.close_connection = True
                return
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            fields = {"Content-Type": "application/json", "Content-Length": str(len(data))} | headers
            for name, value in fields.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Print nothing."""

    return Handler


@contextmanager
def serving(script: Script = good, port: int = 0) -> Iterator[VisionServer]:
    """A server on this machine while the block runs."""
    server = VisionServer(script=script)
    with ThreadingHTTPServer(("127.0.0.1", port), _handler(server)) as http:
        server.port = http.server_port
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            http.shutdown()


if __name__ == "__main__":
    with serving(port=int(sys.argv[1]) if len(sys.argv) > 1 else 0) as running:
        sys.stdout.write(f"{running.address}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
