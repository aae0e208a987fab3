"""The reader engine `server`: conversations with images to raw answers, by any server with OpenAI's interface.

`server_requests` has what all engines send, `server_client` the requests: several at once, retries, refusals, the key.
"""

from collections.abc import Sequence
from typing import Any, Literal

from cvsi.core.params import Compute
from cvsi.models.editor import Answer
from cvsi.models.engines import Engine, Requirements
from cvsi.models.reader import ReaderSettings, Reading, schema_of, turns_of
from cvsi.models.server_client import Address, MaxTokensAs, ServerClient, Service, chat_answer
from cvsi.models.server_requests import Conversations, avoidable, json_format, options
from cvsi.store.rows import Store

KEY = "CVSI_READER_KEY"  # not OPENAI_API_KEY: a teammate's params.yaml must not send that one to another address


class ServerReaderSettings(ReaderSettings):
    """A model behind an OpenAI-compatible server; the last two keys are for servers that differ."""

    engine: Literal["server"]
    address: Address
    max_tokens_as: MaxTokensAs = "max_tokens"
    send_temperature: bool = True


class ServerReader:
    """Readings to answers, by requests to the server."""

    def __init__(self, settings: ServerReaderSettings, compute: Compute, worker: int = 0) -> None:
        """Prepare requests; nothing is sent yet."""
        self.settings = settings
        service = Service(
            settings.address, settings.model, "reader", KEY, _sent(settings),
            template="start the server with a chat template", images=settings.sees == "image",
        )  # fmt: skip
        self.client = ServerClient(service, compute.requests)
        self.conversations = Conversations(self.client)

    def answers(self, readings: Sequence[Reading]) -> list[Answer]:
        """One raw answer per reading, in order; raises Unfinished, see `ServerClient.answers`."""
        return self.client.answers(readings, self._send)

    async def _send(self, client: Any, reading: Reading) -> Answer:
        """One request, and another one where the model has no system role."""

        async def send(system: bool) -> Answer:
            turns = turns_of(reading, system)
            return chat_answer(await client.chat.completions.create(messages=turns, **self._options()))

        return await self.conversations.answer(send)

    def _options(self) -> dict[str, Any]:
        settings = self.settings
        shape = json_format("roles", schema_of(settings)) if settings.output == "schema" else {}
        return options(settings, settings.max_tokens) | shape


def _sent(settings: ServerReaderSettings) -> frozenset[str]:
    """The settings that would change what is sent."""
    return avoidable(settings, {"output: json": settings.output == "schema"})


def _recipe(settings: ServerReaderSettings, precision: str, store: Store) -> dict[str, Any]:
    # The address is left out: another server with the same model gives the same rows. Its precision is unknown.
    return settings.facts("address", "max_tokens_as", "context") | {
        "model": settings.model,
        "revision": settings.revision,
    }


ENGINE = Engine(
    settings=ServerReaderSettings,
    requirements=lambda settings: Requirements(servers=(settings.address,)),
    recipe=_recipe,
    load=ServerReader,
    one_worker=True,
)
