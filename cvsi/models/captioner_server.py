"""The captioner engine `server`: images to n sampled captions each, by any server with OpenAI's interface and vision.

Each caption is a request of its own, since many servers ignore `n`. Its seed comes from the settings' seed, the image's
digest and the caption's number, so that a caption depends on nothing else. `server_requests` has what all engines send,
`server_client` the requests: several at once, retries, refusals, the key.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from PIL import Image

from cvsi.core.params import Compute
from cvsi.models.captioner import Prompt, PromptedSettings, message
from cvsi.models.editor import Answer
from cvsi.models.engines import Engine, Requirements
from cvsi.models.image_data import data_url
from cvsi.models.server_client import Address, MaxTokensAs, ServerClient, Service, chat_answer
from cvsi.models.server_requests import avoidable, options
from cvsi.store.rows import Store

KEY = "CVSI_CAPTIONER_KEY"  # not OPENAI_API_KEY: a teammate's params.yaml must not send that one to another address
PROMPT = (
    "Describe this image in one sentence of at most 30 words: what it shows, the colours, and where it is. "
    "Answer with the sentence alone."
)
SEED_BITS = 31  # what every server takes: some want 32 bits, signed


class ServerCaptionerSettings(PromptedSettings):
    """A vision model behind an OpenAI-compatible server; the last four keys are for models and servers that differ."""

    engine: Literal["server"]
    address: Address
    prompt: Prompt = PROMPT
    max_tokens_as: MaxTokensAs = "max_tokens"
    send_temperature: bool = True
    send_top_p: bool = True
    send_seed: bool = True

    @property
    def greedy(self) -> bool:
        """As before, where the temperature is sent: otherwise the server has its own."""
        return self.send_temperature and super().greedy


class Request(NamedTuple):
    """One caption to get: the image as a data URL, and the seed."""

    image: str
    seed: int


class ServerCaptioner:
    """Images to raw answers, by requests to the server."""

    def __init__(self, settings: ServerCaptionerSettings, compute: Compute, worker: int = 0) -> None:
        """Prepare requests; nothing is sent yet."""
        self.settings = settings
        service = Service(
            settings.address, settings.model, "captioner", KEY, _sent(settings),
            template="start the server with a chat template", images=True,
        )  # fmt: skip
        self.client = ServerClient(service, compute.requests)

    def prepare(self, image: Image.Image) -> str:
        """An image (RGB) as a data URL: a JPEG without metadata, at most `image_size` pixels wide and high."""
        return data_url(image, self.settings.image_size)

    def answers(self, images: Sequence[str], digests: Sequence[str]) -> list[Answer]:
        """`n` raw answers per image, image by image; raises Unfinished, see `ServerClient.answers`."""
        numbers = range(self.settings.n)
        requests = [
            Request(image, seed_of(self.settings.seed, digest, number))
            for image, digest in zip(images, digests, strict=True)
            for number in numbers
        ]
        return self.client.answers(requests, self._send)

    async def _send(self, client: Any, request: Request) -> Answer:
        turns = message(self.settings.prompt, request.image)
        return chat_answer(await client.chat.completions.create(messages=turns, **self._options(request.seed)))

    def _options(self, seed: int) -> dict[str, Any]:
        settings = self.settings
        sent = options(settings, settings.max_tokens, settings.temperature)
        if settings.send_top_p:
            sent["top_p"] = settings.top_p
        if settings.send_seed:
            sent["seed"] = seed
        return sent


def seed_of(seed: int, digest: str, number: int) -> int:
    """The seed of one caption, a number of 31 bits, from the settings' seed, the image's digest and its number."""
    content = hashlib.sha256(f"{seed} {digest} {number}".encode()).digest()
    return int.from_bytes(content[:4], "big") >> (32 - SEED_BITS)


def _sent(settings: ServerCaptionerSettings) -> frozenset[str]:
    """The settings that would change what is sent."""
    return avoidable(settings, {"send_top_p: false": settings.send_top_p, "send_seed: false": settings.send_seed})


def _recipe(settings: ServerCaptionerSettings, precision: str, store: Store) -> dict[str, Any]:
    # The address is left out: another server with the same model gives the same rows. Its precision is unknown.
    names = {"engine", "model", "revision", "send_temperature", "send_top_p", "send_seed"}
    return settings.facts() | settings.model_dump(include=names)


ENGINE = Engine(
    settings=ServerCaptionerSettings,
    requirements=lambda settings: Requirements(servers=(settings.address,)),
    recipe=_recipe,
    load=ServerCaptioner,
    one_worker=True,
    answers=True,
)
