"""An engine's settings to the options of its requests, and conversations with a system message to requests.

The common part of what the engines `server` send; `server_client` sends it.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from cvsi.core.console import info
from cvsi.models.editor import Answer
from cvsi.models.server_client import MaxTokensAs, ServerClient
from cvsi.models.server_errors import SYSTEM_ROLE

OTHER: dict[MaxTokensAs, MaxTokensAs] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}


class ServerSettings(Protocol):
    """The settings that every engine `server` has."""

    @property
    def model(self) -> str:
        """The name that the server knows."""

    @property
    def max_tokens_as(self) -> MaxTokensAs:
        """How the longest answer is called."""

    @property
    def send_temperature(self) -> bool:
        """Whether the server takes a temperature."""

    @property
    def chat_template_kwargs(self) -> Mapping[str, Any]:
        """What the chat template gets."""


def avoidable(settings: ServerSettings, more: Mapping[str, bool] | None = None) -> frozenset[str]:
    """The settings that would change what is sent: the common ones, and those of `more` whose value is true.

    They are keys of `server_errors.PARAMETERS`.
    """
    sent = {
        f"max_tokens_as: {OTHER[settings.max_tokens_as]}": True,
        "send_temperature: false": settings.send_temperature,
        "chat_template_kwargs: {}": bool(settings.chat_template_kwargs),
        **(more or {}),
    }
    return frozenset(setting for setting, is_sent in sent.items() if is_sent)


def options(settings: ServerSettings, max_tokens: int, temperature: float = 0.0) -> dict[str, Any]:
    """The options of a request that every engine sends."""
    body: dict[str, Any] = {settings.max_tokens_as: max_tokens}  # a completion has no max_completion_tokens
    if settings.chat_template_kwargs:
        body["chat_template_kwargs"] = dict(settings.chat_template_kwargs)
    sent: dict[str, Any] = {"model": settings.model, "extra_body": body}
    return sent | ({"temperature": temperature} if settings.send_temperature else {})


def json_format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The option by which an answer is JSON of a schema."""
    named = {"name": name, "schema": dict(schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


class Conversations:
    """Conversations with a system message, until the server says that its model has no system role."""

    def __init__(self, client: ServerClient) -> None:
        """Begin with system messages."""
        self.client, self.system = client, True

    async def answer(self, send: Callable[[bool], Awaitable[Answer]]) -> Answer:
        """The answer of `send`, which is told whether to send a system message; sent again where it is refused."""
        import openai  # a second of imports

        with_system = self.system
        try:
            return await send(with_system)
        except openai.APIStatusError as error:
            refused = error.status_code in (400, 422) and SYSTEM_ROLE.search(self.client.message(error))
            if not (with_system and refused):
                raise
        if self.system:
            info("the server's model has no system role; the task is sent in the first user message")
        self.system = False
        return await send(False)
