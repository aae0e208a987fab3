"""The editor engine `server`: any server with OpenAI's interface, several requests at once, each retried.

The key is read from the environment alone and appears in no line, record or artifact. A prompt that is too long for the
model gets the answer None.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Compute
from cvsi.models.editor import STOP, Answer, EditorSettings
from cvsi.models.engines import Engine, Requirements, facts_of
from cvsi.store.rows import Store

KEY = "CVSI_EDITOR_KEY"  # not OPENAI_API_KEY: a teammate's params.yaml must not send that one to another address
RETRIES = 6
TIMEOUT_SECONDS = 300.0


class ServerEditorSettings(EditorSettings):
    """A language model behind an OpenAI-compatible server."""

    engine: Literal["server"]
    address: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")]


class ServerEditor:
    """Requests to the server, several at once, each retried with growing pauses."""

    def __init__(self, editor: ServerEditorSettings, compute: Compute, worker: int = 0) -> None:
        """Prepare requests; nothing is sent yet."""
        self.editor = editor
        self.at_once = 1 if editor.exact else compute.requests
        key = os.environ.get(KEY, "")
        if not (key.isascii() and key.isprintable()):
            raise CvsiError(
                f"the environment variable {KEY} is no key: it contains a line break or accents; set it again"
            )

    def answers(self, prompts: Sequence[str]) -> list[Answer]:
        """One raw answer per prompt, in order; raises CvsiError where the server cannot be reached or refuses."""
        return asyncio.run(self._all(prompts))

    async def _all(self, prompts: Sequence[str]) -> list[Answer]:
        import openai  # a second of imports

        gate = asyncio.Semaphore(self.at_once)
        key = os.environ.get(KEY) or "none"
        address = self.editor.address
        async with openai.AsyncOpenAI(
            base_url=address, api_key=key, max_retries=RETRIES, timeout=TIMEOUT_SECONDS
        ) as client:

            async def one(prompt: str) -> Answer:
                async with gate:
                    return await self._ask(client, prompt)

            try:
                return list(await asyncio.gather(*map(one, prompts)))
            except openai.OpenAIError as error:
                raise self._explained(error) from None

    async def _ask(self, client: Any, prompt: str) -> Answer:
        import openai

        settings = {"model": self.editor.model, "temperature": 0.0, "max_tokens": self.editor.max_tokens, "stop": STOP}
        try:
            if self.editor.style == "completion":
                response = await client.completions.create(prompt=prompt, **settings)
                return _text(response.choices[0].text)
            turns = [{"role": "user", "content": prompt}]
            response = await client.chat.completions.create(messages=turns, **settings)
            return _text(response.choices[0].message.content)
        except openai.BadRequestError as error:
            if "context length" in str(error) or "too long" in str(error):
                return None
            raise
        except (AttributeError, IndexError, TypeError, ValueError):  # HTML from a proxy, or JSON of another kind
            raise CvsiError(
                f"{self.editor.address}: its answer is not in OpenAI's format; check the address (it ends in /v1)"
            ) from None

    def _explained(self, error: Exception) -> CvsiError:
        """One line for a failed request, without the key, which some servers quote."""
        import openai

        address, model = self.editor.address, self.editor.model
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return CvsiError(f"{address}: the key was refused; set the environment variable {KEY}")
        if isinstance(error, openai.NotFoundError):
            return CvsiError(f"{address}: no model '{model}' there (or no such path); check the editor in params.yaml")
        if isinstance(error, openai.APIConnectionError):
            return CvsiError(
                f"{address}: no answer after {RETRIES} retries; is the server up? Then run the stage again"
            )
        return CvsiError(f"{address}: the server refused: {cause(error, os.environ.get(KEY, ''))}")


def _text(content: Any) -> str:
    if not isinstance(content, str | None):
        raise TypeError(content)
    return content or ""


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
