"""The editor engine `server`: any server with OpenAI's interface, several requests at once, each retried.

The key is read from the environment alone and appears in no line, record or artifact. What goes wrong falls into three
kinds. A query that the model refuses (content filter, context) gets an answer with that finish reason. A failure that
may pass (429, 5xx, a timeout, no choices, broken JSON) is retried; if it persists, or if the server refuses the request
for another reason, the query fails in this run and nothing is stored for it. Whatever concerns every query (key, model,
address, a parameter) ends the run, as do many failures in a row; answers that arrived are kept.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from cvsi.core.console import info
from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Compute
from cvsi.models.conversations import JSON_SCHEMA, merged
from cvsi.models.editor import (
    FAILED,
    FILTERED,
    REFUSED,
    STOP,
    STOPPED,
    TOO_LONG,
    Answer,
    EditorSettings,
    Prompt,
    Unfinished,
)
from cvsi.models.engines import Engine, Requirements, facts_of
from cvsi.models.server_errors import CONTEXT, FILTER, SYSTEM_ROLE, TEMPLATE, avoiding, is_local, retry_after
from cvsi.store.rows import Store

KEY = "CVSI_EDITOR_KEY"  # not OPENAI_API_KEY: a teammate's params.yaml must not send that one to another address
RETRIES = 6
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds; doubled from retry to retry
LONGEST_RETRY_AFTER = 600.0  # seconds that a server may ask to wait
PASSING = (408, 409, 425, 429)  # besides 5xx
MAX_WORDS = 5000  # characters of a server's error that are searched
IN_A_ROW = 20  # failures without an answer between them that end the run
TIMEOUT_SECONDS = 300.0


class ServerEditorSettings(EditorSettings):
    """A language model behind an OpenAI-compatible server; the last three keys are for servers that differ."""

    engine: Literal["server"]
    address: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")]
    max_tokens_as: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    send_temperature: bool = True
    send_stop: bool = True

    def neutral(self) -> set[str]:
        """Also how the longest answer is called and where it is cut; a temperature of the server changes answers."""
        return (
            super().neutral()
            | {"max_tokens_as", "send_stop"}
            | ({"send_temperature"} if self.send_temperature else set())
        )


class NoAnswer(Exception):
    """A request gave no answer for a reason that may pass.

    `wait` is how long the server asks to wait, in seconds; `reached` is false where there was no connection.
    """

    def __init__(self, reason: str, wait: float = 0.0, reached: bool = True) -> None:
        """Keep the reason, for the query's status."""
        super().__init__(reason)
        self.wait, self.reached = wait, reached


class ServerEditor:
    """Requests to the server, several at once, each retried with growing pauses."""

    def __init__(self, editor: ServerEditorSettings, compute: Compute, worker: int = 0) -> None:
        """Prepare requests; nothing is sent yet."""
        self.editor = editor
        self.at_once = 1 if editor.exact else compute.requests
        self.system = True  # until the server refuses a system message
        self.failures = 0  # in a row
        key = os.environ.get(KEY, "")
        if not (key.isascii() and key.isprintable()):
            raise CvsiError(
                f"the environment variable {KEY} is no key: it contains a line break or accents; set it again"
            )

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One raw answer per prompt, in order.

        Raises Unfinished with the answers that arrived, from a CvsiError where the server cannot be reached, refuses
        every request or fails `IN_A_ROW` times, or from the signal that stops the run.
        """
        answers: list[Answer | None] = [None] * len(prompts)
        try:
            asyncio.run(self._all(prompts, answers))
        except BaseException as reason:
            if not any(answers):
                raise
            raise Unfinished(answers) from reason
        return [answer for answer in answers if answer is not None]

    async def _all(self, prompts: Sequence[Prompt], answers: list[Answer | None]) -> None:
        import httpx  # a second of imports
        import openai

        remaining = iter(enumerate(prompts))
        try:
            http = openai.DefaultAsyncHttpxClient(trust_env=not is_local(self.editor.address))
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise CvsiError(
                f"{self.editor.address}: the proxy of the environment cannot be used ({cause(error)}); unset ALL_PROXY "
                "and HTTPS_PROXY, or name the server's host in NO_PROXY"
            ) from None
        async with openai.AsyncOpenAI(
            base_url=self.editor.address, api_key=os.environ.get(KEY) or "none", max_retries=0, timeout=TIMEOUT_SECONDS,
            http_client=http,
        ) as client:  # fmt: skip

            async def work() -> None:
                for index, prompt in remaining:
                    answers[index] = await self._answer(client, prompt)

            tasks = [asyncio.ensure_future(work()) for _ in range(min(self.at_once, len(prompts)))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, client: Any, prompt: Prompt) -> Answer:
        """The answer to a prompt, or one with the reason why there is none; raises CvsiError where the run must end."""
        try:
            answer = await self._retried(lambda: self._ask(client, prompt))
        except NoAnswer as failure:
            if not failure.reached:
                raise CvsiError(
                    f"{self.editor.address}: no answer after {RETRIES} retries; is the server up? Then run the stage "
                    f"again ({failure})"
                ) from None
            answer = Answer("", f"{FAILED}{failure}")
        self.failures = self.failures + 1 if not answer.permanent else 0
        if self.failures >= IN_A_ROW:
            raise CvsiError(
                f"{self.editor.address}: {self.failures} requests in a row got no answer, the last: {answer.finish}; "
                "answers that arrived are kept; run the stage again later"
            )
        return answer

    async def _retried(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Ask again after growing pauses, or after as long as the server asks for."""
        for retry in range(RETRIES + 1):
            try:
                return await ask()
            except NoAnswer as failure:
                if retry == RETRIES or failure.wait > LONGEST_RETRY_AFTER:
                    raise
                pause = min(FIRST_PAUSE * 2**retry, LONGEST_PAUSE) * random.uniform(0.75, 1.0)
                await asyncio.sleep(max(pause, failure.wait))
        raise AssertionError("unreachable")

    async def _ask(self, client: Any, prompt: Prompt) -> Answer:
        """One request; raises NoAnswer for what may pass and CvsiError for what concerns every query."""
        import httpx
        import openai

        with_system = self.system and not isinstance(prompt, str)
        try:
            if isinstance(prompt, str):
                response = await client.completions.create(prompt=prompt, **self._options(chat=False))
            else:
                turns = list(prompt) if with_system else merged(prompt)
                response = await client.chat.completions.create(messages=turns, **self._options(chat=True))
            return self._read(response, chat=not isinstance(prompt, str))
        except openai.APITimeoutError:
            raise NoAnswer(f"timeout after {TIMEOUT_SECONDS:g} s") from None
        except openai.APIConnectionError as error:
            raise NoAnswer(f"no connection: {cause(error.__cause__ or error)}", reached=False) from None
        except openai.APIStatusError as error:
            if with_system and error.status_code in (400, 422) and SYSTEM_ROLE.search(self._message(error)):
                return await self._without_system_role(client, prompt)
            return self._refused(error)
        except (openai.APIError, httpx.HTTPError, AttributeError, IndexError, TypeError, ValueError):
            # HTML from a proxy, broken JSON, JSON of another kind, no choices
            raise NoAnswer("an answer that is not in OpenAI's format; check the address (it ends in /v1)") from None

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
        """A response's text and finish reason; reasoning in a field of its own is left out."""
        choice = response.choices[0]
        text = choice.message.content if chat else choice.text
        refusal = getattr(choice.message, "refusal", None) if chat else None
        finish = choice.finish_reason if isinstance(choice.finish_reason, str) else ""
        if isinstance(refusal, str) and refusal and not text:
            return Answer("", f"{REFUSED}{' '.join(refusal.split())}")
        if isinstance(text, list):  # parts, as some servers send them
            text = "".join(part["text"] for part in text if part.get("type") == "text")
        if not isinstance(text, str | None):
            raise TypeError(text)
        text = text or ""
        if not chat and STOP in text.lstrip():  # a server without `stop`
            text, finish = text.lstrip().split(STOP)[0], STOPPED
        return Answer(text, finish)

    async def _without_system_role(self, client: Any, prompt: Prompt) -> Answer:
        """The answer to a conversation without a system message, which is the form of all further ones."""
        if self.system:
            info("the server's model has no system role; the task is sent in the first user message")
        self.system = False
        return await self._ask(client, prompt)

    def _refused(self, error: Any) -> Answer:
        """What follows from an HTTP status: an answer with a reason, NoAnswer, or a CvsiError."""
        import openai

        status, message, address = error.status_code, self._message(error), self.editor.address
        words = f"{message} {error.body}"[:MAX_WORDS]
        if status in PASSING or status >= 500:
            if "insufficient_quota" in words:
                raise CvsiError(f"{address}: the account's quota is used up ({message})")
            if status >= 500 and CONTEXT.search(words):
                return Answer("", TOO_LONG)
            raise NoAnswer(f"HTTP {status}", retry_after(error.response.headers))
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            raise CvsiError(f"{address}: the key was refused; set the environment variable {KEY}")
        if isinstance(error, openai.NotFoundError):
            raise CvsiError(
                f"{address}: no model '{self.editor.model}' there (or no such path); check the editor in params.yaml"
            )
        if CONTEXT.search(words):
            return Answer("", TOO_LONG)
        if FILTER.search(words):
            return Answer("", FILTERED)
        if setting := avoiding(words, self._sent()):
            raise CvsiError(f"{address}: the server refuses a parameter ({message}); set {setting} for the editor")
        if TEMPLATE.search(words):
            raise CvsiError(
                f"{address}: the chat template of '{self.editor.model}' is missing or refuses the conversation "
                f"({message}); set style: completion, or start the server with a chat template"
            )
        return Answer("", f"{FAILED}HTTP {status}, {message}")

    def _sent(self) -> set[str]:
        """The settings that would change what is sent."""
        editor, chat = self.editor, self.editor.style == "chat"
        other = {"max_tokens", "max_completion_tokens"} - {editor.max_tokens_as}
        sent = {
            f"max_tokens_as: {other.pop()}": True,
            "send_temperature: false": editor.send_temperature,
            "send_stop: false": editor.send_stop and not chat,
            "chat_template_kwargs: {}": bool(editor.chat_template_kwargs),
            "output: text": editor.output == "json",
        }
        return {setting for setting, is_sent in sent.items() if is_sent}

    def _message(self, error: Any) -> str:
        """An error's text, without the key, which some servers quote."""
        return cause(error, os.environ.get(KEY, ""))


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
