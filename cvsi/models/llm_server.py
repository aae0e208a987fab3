"""The editor engine `server`: what an editor sends to any server with OpenAI's interface, and reads from its answers.

`server_requests` has what all engines send, `server_client` the requests: several at once, retries, refusals, the key.
"""

from collections.abc import Sequence
from typing import Any, Literal

from cvsi.core.params import Compute
from cvsi.models.conversations import JSON_SCHEMA, merged
from cvsi.models.editor import STOP, STOPPED, Answer, EditorSettings, Prompt
from cvsi.models.engines import Engine, Requirements, facts_of
from cvsi.models.server_client import Address, MaxTokensAs, ServerClient, Service, chat_answer, finish_of
from cvsi.models.server_requests import Conversations, avoidable, json_format, options
from cvsi.store.rows import Store

KEY = "CVSI_EDITOR_KEY"  # not OPENAI_API_KEY: a teammate's params.yaml must not send that one to another address


class ServerEditorSettings(EditorSettings):
    """A language model behind an OpenAI-compatible server; the last three keys are for servers that differ."""

    engine: Literal["server"]
    address: Address
    max_tokens_as: MaxTokensAs = "max_tokens"
    send_temperature: bool = True
    send_stop: bool = True

    def neutral(self) -> set[str]:
        """Also how the longest answer is called and where it is cut; a temperature of the server changes answers."""
        return (
            super().neutral()
            | {"max_tokens_as", "send_stop"}
            | ({"send_temperature"} if self.send_temperature else set())
        )


class ServerEditor:
    """Prompts to answers, by requests to the server."""

    def __init__(self, editor: ServerEditorSettings, compute: Compute, worker: int = 0) -> None:
        """Prepare requests; nothing is sent yet."""
        self.editor = editor
        service = Service(
            editor.address, editor.model, "editor", KEY, _sent(editor),
            template="set style: completion, or start the server with a chat template",
        )  # fmt: skip
        self.client = ServerClient(service, 1 if editor.exact else compute.requests)
        self.conversations = Conversations(self.client)

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One raw answer per prompt, in order; raises Unfinished, see `ServerClient.answers`."""
        return self.client.answers(prompts, self._send)

    async def _send(self, client: Any, prompt: Prompt) -> Answer:
        """One request, and another one where the model has no system role."""
        if isinstance(prompt, str):
            response = await client.completions.create(prompt=prompt, **self._options(chat=False))
            return self._read(response, chat=False)

        async def send(system: bool) -> Answer:
            turns = list(prompt) if system else merged(prompt)
            response = await client.chat.completions.create(messages=turns, **self._options(chat=True))
            return self._read(response, chat=True)

        return await self.conversations.answer(send)

    def _options(self, chat: bool) -> dict[str, Any]:
        editor = self.editor
        sent = options(editor, editor.max_tokens)
        if not chat and editor.send_stop:
            sent["stop"] = STOP
        return sent | (json_format("edit", JSON_SCHEMA) if editor.output == "json" else {})

    def _read(self, response: Any, chat: bool) -> Answer:
        """A response's text and finish reason."""
        if chat:
            return chat_answer(response)
        choice = response.choices[0]
        text, finish = choice.text, finish_of(choice)
        if not isinstance(text, str | None):
            raise TypeError(text)
        text = text or ""
        if STOP in text.lstrip():  # a server without `stop`
            text, finish = text.lstrip().split(STOP)[0], STOPPED
        return Answer(text, finish)


def _sent(editor: ServerEditorSettings) -> frozenset[str]:
    """The settings that would change what is sent."""
    stops = editor.send_stop and editor.style != "chat"
    return avoidable(editor, {"send_stop: false": stops, "output: text": editor.output == "json"})


def _recipe(settings: ServerEditorSettings, precision: str, store: Store) -> dict[str, Any]:
    # The address is left out: another server with the same model gives the same rows. Its precision is unknown.
    return facts_of(settings, "address") | {"model": settings.model, "revision": settings.revision}


ENGINE = Engine(
    settings=ServerEditorSettings,
    requirements=lambda settings: Requirements(servers=(settings.address,)),
    recipe=_recipe,
    load=ServerEditor,
    one_worker=True,
)
