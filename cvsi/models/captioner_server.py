"""The captioner engine `server`: images to n sampled captions each, by any server with OpenAI's interface and vision.

Each caption is a request of its own, since many servers ignore `n`. Its seed comes from the settings' seed, the image's
digest and the caption's number, so that a caption depends on nothing else. `server_client` has the requests themselves:
several at once, retries, refusals, the key.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from PIL import Image
from pydantic import Field, StringConstraints, model_validator

from cvsi.core.params import Compute
from cvsi.models.captioner import CaptionerSettings
from cvsi.models.editor import Answer
from cvsi.models.engines import Engine, Requirements, facts_of
from cvsi.models.image_data import QUALITY, data_url
from cvsi.models.server_client import Address, MaxTokensAs, ServerClient, Service, chat_answer
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
            settings.address, settings.model, "captioner", KEY, frozenset(_sent(settings)),
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
        content = [
            {"type": "text", "text": self.settings.prompt},
            {"type": "image_url", "image_url": {"url": request.image}},
        ]
        turns = [{"role": "user", "content": content}]
        return chat_answer(await client.chat.completions.create(messages=turns, **self._options(request.seed)))

    def _options(self, seed: int) -> dict[str, Any]:
        settings = self.settings
        body: dict[str, Any] = {settings.max_tokens_as: settings.max_tokens}
        if settings.chat_template_kwargs:
            body["chat_template_kwargs"] = settings.chat_template_kwargs
        options: dict[str, Any] = {"model": settings.model, "extra_body": body}
        if settings.send_temperature:
            options["temperature"] = settings.temperature
        if settings.send_top_p:
            options["top_p"] = settings.top_p
        if settings.send_seed:
            options["seed"] = seed
        return options


def seed_of(seed: int, digest: str, number: int) -> int:
    """The seed of one caption, a number of 31 bits, from the settings' seed, the image's digest and its number."""
    content = hashlib.sha256(f"{seed} {digest} {number}".encode()).digest()
    return int.from_bytes(content[:4], "big") >> (32 - SEED_BITS)


def _sent(settings: ServerCaptionerSettings) -> set[str]:
    """The settings that would change what is sent."""
    other = {"max_tokens", "max_completion_tokens"} - {settings.max_tokens_as}
    sent = {
        f"max_tokens_as: {other.pop()}": True,
        "send_temperature: false": settings.send_temperature,
        "send_top_p: false": settings.send_top_p,
        "send_seed: false": settings.send_seed,
        "chat_template_kwargs: {}": bool(settings.chat_template_kwargs),
    }
    return {setting for setting, is_sent in sent.items() if is_sent}


def _recipe(settings: ServerCaptionerSettings, precision: str, store: Store) -> dict[str, Any]:
    # The address is left out: another server with the same model gives the same rows. Its precision is unknown.
    facts = facts_of(settings, "address", "max_tokens_as") | {"model": settings.model, "revision": settings.revision}
    # A pack's recipe has flat facts alone.
    flat = {name: value for name, value in facts.items() if name != "chat_template_kwargs"}
    extra = {f"chat_template_kwargs.{name}": value for name, value in settings.chat_template_kwargs.items()}
    return flat | extra | {"encoding": f"JPEG {QUALITY}"}


ENGINE = Engine(
    settings=ServerCaptionerSettings,
    requirements=lambda settings: Requirements(servers=(settings.address,)),
    recipe=_recipe,
    load=ServerCaptioner,
    one_worker=True,
    answers=True,
)
