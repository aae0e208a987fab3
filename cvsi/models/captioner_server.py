"""The captioner engine `server`: images to n sampled captions each, by any server with OpenAI's interface and vision.

Each caption is a request of its own, since many servers ignore `n`. Its seed comes from the settings' seed, the image's
digest and the caption's number, so that a caption depends on nothing else. `server_requests` has what all engines send,
`server_client` the requests: several at once, retries, refusals, the key.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from PIL import Image
from pydantic import Field, StringConstraints, model_validator

from cvsi.core.params import Compute
from cvsi.models.captioner import CaptionerSettings
from cvsi.models.conversations import image_part, template_facts, text_part
from cvsi.models.editor import Answer
from cvsi.models.engines import Engine, Requirements, facts_of
from cvsi.models.image_data import QUALITY, data_url
from cvsi.models.server_client import Address, MaxTokensAs, ServerClient, Service, chat_answer
from cvsi.models.server_requests import avoidable, options
from cvsi.store.rows import Store

KEY = "CVSI_CAPTIONER_KEY"  # not OPENAI_API_KEY: a teammate's params.yaml must not send that one to another address
PROMPT = (
    "Describe this image in one sentence of at most 30 words: what it shows, the colours, and where it is. "
    "Answer with the sentence alone."
)
SEED_BITS = 31  # what every server takes: some want 32 bits, signed


class ServerCaptionerSettings(CaptionerSettings):
    """A vision model behind an OpenAI-compatible server; the last five keys are for models and servers that differ.

    `prompt` is the text sent with the image, `image_size` the longest side sent, in pixels.
    """

    engine: Literal["server"]
    address: Address
    n: Annotated[int, Field(ge=1, le=64)] = 3
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_tokens: Annotated[int, Field(ge=1, le=32768)] = 128
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    prompt: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4096)] = PROMPT
    image_size: Annotated[int, Field(ge=32, le=4096)] = 768
    max_tokens_as: MaxTokensAs = "max_tokens"
    send_temperature: bool = True
    send_top_p: bool = True
    send_seed: bool = True
    chat_template_kwargs: dict[str, bool | int | float | str | None] = Field(default={})

    @model_validator(mode="after")
    def captions_differ(self) -> Self:
        """Refuse several captions without sampling, which would all be the same."""
        if self.n > 1 and self.temperature == 0 and self.send_temperature:
            raise ValueError(f"temperature is 0, so all {self.n} captions would be equal; set n: 1 or a temperature")
        return self


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
        turns = [{"role": "user", "content": [text_part(self.settings.prompt), image_part(request.image)]}]
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
    facts = facts_of(settings, "address", "max_tokens_as", "chat_template_kwargs")
    facts |= {"model": settings.model, "revision": settings.revision, "encoding": f"JPEG {QUALITY}"}
    return facts | template_facts(settings.chat_template_kwargs)


ENGINE = Engine(
    settings=ServerCaptionerSettings,
    requirements=lambda settings: Requirements(servers=(settings.address,)),
    recipe=_recipe,
    load=ServerCaptioner,
    one_worker=True,
    answers=True,
)
