"""The reader engine `server`: conversations with images to raw answers, by any server with OpenAI's interface.

`server_client` has the requests themselves: several at once, retries, refusals, the key.
"""

from collections.abc import Sequence
from typing import Any, Literal

from cvsi.core.console import info
from cvsi.core.params import Compute
from cvsi.models.editor import Answer
from cvsi.models.engines import Engine, Requirements
from cvsi.models.reader import ReaderSettings, Reading, schema_of, turns_of
from cvsi.models.server_client import Address, MaxTokensAs, ServerClient, Service, chat_answer
from cvsi.models.server_errors import SYSTEM_ROLE
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
        self.system = True  # until the server refuses a system message
        service = Service(
            settings.address, settings.model, "reader", KEY, frozenset(_sent(settings)),
            template="start the server with a chat template", images=settings.sees == "image",
        )  # fmt: skip
        self.client = ServerClient(service, compute.requests)

    def answers(self, readings: Sequence[Reading]) -> list[Answer]:
        """One raw answer per reading, in order; raises Unfinished, see `ServerClient.answers`."""
        return self.client.answers(readings, self._send)

    async def _send(self, client: Any, reading: Reading) -> Answer:
        """One request, and another one where the model has no system role."""
        import openai  # a second of imports

        with_system = self.system
        try:
            turns = turns_of(reading, with_system)
            return chat_answer(await client.chat.completions.create(messages=turns, **self._options()))
        except openai.APIStatusError as error:
            refused = error.status_code in (400, 422) and SYSTEM_ROLE.search(self.client.message(error))
            if not (with_system and refused):
                raise
        if self.system:
            info("the server's model has no system role; the task is sent in the first user message")
        self.system = False
        return await self._send(client, reading)

    def _options(self) -> dict[str, Any]:
        settings = self.settings
        body: dict[str, Any] = {settings.max_tokens_as: settings.max_tokens}
        if settings.chat_template_kwargs:
            body["chat_template_kwargs"] = settings.chat_template_kwargs
        options: dict[str, Any] = {"model": settings.model, "extra_body": body}
        if settings.send_temperature:
            options["temperature"] = 0.0
        if settings.output == "schema":
            schema = {"name": "roles", "schema": schema_of(settings), "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        return options


def _sent(settings: ServerReaderSettings) -> set[str]:
    """The settings that would change what is sent."""
    other = {"max_tokens", "max_completion_tokens"} - {settings.max_tokens_as}
    sent = {
        f"max_tokens_as: {other.pop()}": True,
        "send_temperature: false": settings.send_temperature,
        "chat_template_kwargs: {}": bool(settings.chat_template_kwargs),
        "output: json": settings.output == "schema",
    }
    return {setting for setting, is_sent in sent.items() if is_sent}


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
