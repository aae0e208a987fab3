"""The editor engine `server`: what an editor sends to any server with OpenAI's interface, and reads from its answers.

`server_client` has the requests themselves: several at once, retries, refusals, the key.
"""

from collections.abc import Sequence
from typing import Any, Literal

from cvsi.core.console import info
from cvsi.core.params import Compute
from cvsi.models.conversations import JSON_SCHEMA, merged
from cvsi.models.editor import STOP, STOPPED, Answer, EditorSettings, Prompt
from cvsi.models.engines import Engine, Requirements, facts_of
from cvsi.models.server_client import Address, MaxTokensAs, ServerClient, Service, chat_answer, finish_of
from cvsi.models.server_errors import SYSTEM_ROLE
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
        self.system = True  # until the server refuses a system message
        service = Service(
            editor.address, editor.model, "editor", KEY, frozenset(_sent(editor)),
            template="set style: completion, or start the server with a chat template",
        )  # fmt: skip
        self.client = ServerClient(service, 1 if editor.exact else compute.requests)

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One raw answer per prompt, in order; raises Unfinished, see `ServerClient.answers`."""
        return self.client.answers(prompts, self._send)

    async def _send(self, client: Any, prompt: Prompt) -> Answer:
        """One request, and another one where the model has no system role."""
        import openai  # a second of imports

        if isinstance(prompt, str):
            response = await client.completions.create(prompt=prompt, **self._options(chat=False))
            return self._read(response, chat=False)
        with_system = self.system
        turns = list(prompt) if with_system else merged(prompt)
        try:
            response = await client.chat.completions.create(messages=turns, **self._options(chat=True))
        except openai.APIStatusError as error:
            refused = error.status_code in (400, 422) and SYSTEM_ROLE.search(self.client.message(error))
            if with_system and refused:
                return await self._without_system_role(client, prompt)
            raise
        return self._read(response, chat=True)

    def _options(self, chat: bool) -> dict[str, Any]:
        editor = self.editor
        body: dict[str, Any] = {editor.max_tokens_as: editor.max_tokens}  # a completion has no max_completion_tokens
        if editor.chat_template_kwargs:
            body["chat_template_kwargs"] = editor.chat_template_kwargs
        options: dict[str, Any] = {"model": editor.model, "extra_body": body}
        if editor.send_temperature:
            options["temperature"] = 0.0
        if not chat and editor.send_stop:
            options["stop"] = STOP
        if editor.output == "json":
            schema = {"name": "edit", "schema": JSON_SCHEMA, "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        return options

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

    async def _without_system_role(self, client: Any, prompt: Prompt) -> Answer:
        """The answer to a conversation without a system message, which is the form of all further ones."""
        if self.system:
            info("the server's model has no system role; the task is sent in the first user message")
        self.system = False
        return await self._send(client, prompt)


def _sent(editor: ServerEditorSettings) -> set[str]:
    """The settings that would change what is sent."""
    chat = editor.style == "chat"
    other = {"max_tokens", "max_completion_tokens"} - {editor.max_tokens_as}
    sent = {
        f"max_tokens_as: {other.pop()}": True,
        "send_temperature: false": editor.send_temperature,
        "send_stop: false": editor.send_stop and not chat,
        "chat_template_kwargs: {}": bool(editor.chat_template_kwargs),
        "output: text": editor.output == "json",
    }
    return {setting for setting, is_sent in sent.items() if is_sent}


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
