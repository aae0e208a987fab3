"""Requests to a server with OpenAI's interface, several at once, each retried: the common part of the engines `server`.

The key is read from the environment alone and appears in no line, record or artifact. What goes wrong falls into three
kinds. A request that the model refuses (content filter, context) gets an answer with that finish reason. A failure that
may pass (429, 5xx, a timeout, no choices, broken JSON) is retried; if it persists, or if the server refuses the request
for another reason, the request fails in this run and nothing is stored for it. Whatever concerns every request (key,
model, address, a parameter, a model without vision) ends the run, as do many failures in a row; answers that arrived
are kept.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from cvsi.core.console import info
from cvsi.core.errors import CvsiError, cause
from cvsi.models.editor import FAILED, FILTERED, REFUSED, TOO_LONG, Answer, Unfinished
from cvsi.models.server_errors import CONTEXT, FILTER, TEMPLATE, VISION, avoiding, is_local, retry_after

R = TypeVar("R")

RETRIES = 6
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds; doubled from retry to retry
LONGEST_RETRY_AFTER = 600.0  # seconds that a server may ask to wait
PASSING = (408, 409, 425, 429)  # besides 5xx
NOT_ABOUT_IMAGES = (401, 403, *PASSING)
MAX_WORDS = 5000  # characters of a server's error that are searched
IN_A_ROW = 20  # failures without an answer between them that end the run
TIMEOUT_SECONDS = 300.0

Address = Annotated[str, Field(pattern=r"^https?://[^@\s]+$")]
MaxTokensAs = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True)
class Service:
    """A server and what messages about it name.

    `noun` is the block of params.yaml, `key` the environment variable of the key. `sent` are the settings that would
    change what is sent, see `server_errors.PARAMETERS`; `template` is the advice where there is no chat template.
    """

    address: str
    model: str
    noun: Literal["captioner", "editor", "reader", "judge"]
    key: str
    sent: frozenset[str]
    template: str
    images: bool = False


class NoAnswer(Exception):
    """A request gave no answer for a reason that may pass.

    `wait` is how long the server asks to wait, in seconds; `reached` is false where there was no connection.
    """

    def __init__(self, reason: str, wait: float = 0.0, reached: bool = True) -> None:
        """Keep the reason, for the status."""
        super().__init__(reason)
        self.wait, self.reached = wait, reached


class ServerClient:
    """Requests to the server, several at once, each retried with growing pauses."""

    def __init__(self, service: Service, at_once: int) -> None:
        """Prepare requests; nothing is sent yet. Raises CvsiError for a key that cannot be one."""
        self.service, self.at_once = service, at_once
        self.failures = 0  # in a row
        self.answered = False  # whether any request got an answer
        self.reduced = -TIMEOUT_SECONDS  # when there were last fewer at once, by `time.monotonic`
        key = os.environ.get(service.key, "")
        if not (key.isascii() and key.isprintable()):
            raise CvsiError(
                f"the environment variable {service.key} is no key: it contains a line break or accents; set it again"
            )

    def answers(self, requests: Sequence[R], send: Callable[[Any, R], Awaitable[Answer]]) -> list[Answer]:
        """One raw answer per request, in order; `send` gets an OpenAI client and a request, and sends it once.

        Raises Unfinished with the answers that arrived, from a CvsiError where the server cannot be reached, refuses
        every request or fails `IN_A_ROW` times, or from the signal that stops the run.
        """
        answers: list[Answer | None] = [None] * len(requests)
        try:
            asyncio.run(self._all(requests, send, answers))
        except BaseException as reason:
            if not any(answers):
                raise
            raise Unfinished(answers) from reason
        return [answer for answer in answers if answer is not None]

    def message(self, error: Any) -> str:
        """An error's text, without the key, which some servers quote."""
        return cause(error, os.environ.get(self.service.key, ""))

    async def _all(
        self, requests: Sequence[R], send: Callable[[Any, R], Awaitable[Answer]], answers: list[Answer | None]
    ) -> None:
        import httpx  # a second of imports
        import openai

        address = self.service.address
        remaining = iter(enumerate(requests))
        try:
            http = openai.DefaultAsyncHttpxClient(trust_env=not is_local(address))
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise CvsiError(
                f"{address}: the proxy of the environment cannot be used ({cause(error)}); unset ALL_PROXY "
                "and HTTPS_PROXY, or name the server's host in NO_PROXY"
            ) from None
        async with openai.AsyncOpenAI(
            base_url=address, api_key=os.environ.get(self.service.key) or "none", max_retries=0,
            timeout=TIMEOUT_SECONDS, http_client=http,
        ) as client:  # fmt: skip

            async def work(number: int) -> None:
                while number < self.at_once and (request := next(remaining, None)):
                    answers[request[0]] = await self._answer(lambda: send(client, request[1]))

            tasks = [asyncio.ensure_future(work(number)) for number in range(min(self.at_once, len(requests)))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer to a request, or one with the reason why there is none; CvsiError where the run must end."""
        try:
            answer = await self._retried(send)
        except NoAnswer as failure:
            if not failure.reached:
                raise CvsiError(
                    f"{self.service.address}: no answer after {RETRIES} retries; is the server up? Then run the stage "
                    f"again ({failure})"
                ) from None
            answer = Answer("", f"{FAILED}{failure}")
        self.failures = self.failures + 1 if not answer.permanent else 0
        self.answered |= answer.permanent
        if self.failures >= IN_A_ROW:
            raise CvsiError(
                f"{self.service.address}: {self.failures} requests in a row got no answer, the last: {answer.finish}; "
                "answers that arrived are kept; run the stage again later"
            )
        return answer

    async def _retried(self, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """Send again after growing pauses, or after as long as the server asks for."""
        for retry in range(RETRIES + 1):
            try:
                return await self._once(send)
            except NoAnswer as failure:
                if retry == RETRIES or failure.wait > LONGEST_RETRY_AFTER:
                    raise
                pause = min(FIRST_PAUSE * 2**retry, LONGEST_PAUSE) * random.uniform(0.75, 1.0)
                await asyncio.sleep(max(pause, failure.wait))
        raise AssertionError("unreachable")

    async def _once(self, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """One request; raises NoAnswer for what may pass and CvsiError for what concerns every request."""
        import httpx
        import openai

        try:
            return await send()
        except openai.APITimeoutError:
            self._reduce()
            raise NoAnswer(f"timeout after {TIMEOUT_SECONDS:g} s") from None
        except openai.APIConnectionError as error:
            raise NoAnswer(f"no connection: {cause(error.__cause__ or error)}", reached=False) from None
        except openai.APIStatusError as error:
            return self._refused(error)
        except (
            openai.APIError, httpx.HTTPError, AttributeError, LookupError, TypeError, ValueError, RecursionError
        ):  # fmt: skip
            # HTML from a proxy, broken or very deep JSON, JSON of another kind, no choices
            raise NoAnswer("an answer that is not in OpenAI's format; check the address (it ends in /v1)") from None

    def _reduce(self) -> None:
        """Send half as many at once after timeouts: many servers compute few at a time and let the others wait."""
        now = time.monotonic()
        if self.at_once == 1 or now - self.reduced < TIMEOUT_SECONDS / 2:  # timeouts of the same moment count once
            return
        self.at_once, self.reduced = self.at_once // 2, now
        info(
            f"{self.service.address}: no answer within {TIMEOUT_SECONDS:g} s; {self.at_once} requests at once from now "
            "on (compute.requests)"
        )

    def _refused(self, error: Any) -> Answer:
        """What follows from an HTTP status: an answer with a reason, NoAnswer, or a CvsiError."""
        import openai

        service, status, message = self.service, error.status_code, self.message(error)
        words = f"{message} {error.body}"[:MAX_WORDS]
        if service.images and not self.answered and status not in NOT_ABOUT_IMAGES and VISION.search(words):
            raise CvsiError(
                f"{service.address}: '{service.model}' takes no images there ({message}); name a vision model for the "
                f"{service.noun}, or start the server with the model's vision part (llama.cpp: --mmproj)"
            )
        if status in PASSING or status >= 500:
            if "insufficient_quota" in words:
                raise CvsiError(f"{service.address}: the account's quota is used up ({message})")
            if status >= 500 and CONTEXT.search(words):
                return Answer("", TOO_LONG)
            raise NoAnswer(f"HTTP {status}", retry_after(error.response.headers))
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            raise CvsiError(f"{service.address}: the key was refused; set the environment variable {service.key}")
        if isinstance(error, openai.NotFoundError):
            raise CvsiError(
                f"{service.address}: no model '{service.model}' there (or no such path); check the {service.noun} in "
                "params.yaml"
            )
        if CONTEXT.search(words):
            return Answer("", TOO_LONG)
        if FILTER.search(words):
            return Answer("", FILTERED)
        if setting := avoiding(words, set(service.sent)):
            raise CvsiError(
                f"{service.address}: the server refuses a parameter ({message}); set {setting} for the {service.noun}"
            )
        if TEMPLATE.search(words):
            raise CvsiError(
                f"{service.address}: the chat template of '{service.model}' is missing or refuses the conversation "
                f"({message}); {service.template}"
            )
        return Answer("", f"{FAILED}HTTP {status}, {message}")


def chat_answer(response: Any) -> Answer:
    """A chat response's text and finish reason; reasoning in a field of its own is left out.

    Raises AttributeError, IndexError, TypeError or KeyError for a response that is not in OpenAI's format.
    """
    choice = response.choices[0]
    text, refusal = choice.message.content, getattr(choice.message, "refusal", None)
    if isinstance(refusal, str) and refusal and not text:
        return Answer("", f"{REFUSED}{' '.join(refusal.split())}")
    if isinstance(text, list):  # parts, as some servers send them
        text = "".join(part["text"] for part in text if part.get("type") == "text")
    if not isinstance(text, str | None):
        raise TypeError(text)
    return Answer(text or "", finish_of(choice))


def finish_of(choice: Any) -> str:
    """A choice's finish reason, empty where the server gives none."""
    return choice.finish_reason if isinstance(choice.finish_reason, str) else ""
