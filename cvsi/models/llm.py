"""Prompts to raw answers, greedy: vLLM in this process, or an OpenAI-compatible server.

Both send the same text and take the same answer. A prompt that is too long for the model is not asked; its answer is
None. A server's key comes from the environment alone and appears in no line, record or artifact.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Protocol

from cvsi.core.errors import CvsiError, cause
from cvsi.core.model_settings import Editor
from cvsi.core.params import Compute
from cvsi.models.vllm_engine import loading, start

STOP = "\n\n"
KEY = "CVSI_EDITOR_KEY"  # not OPENAI_API_KEY: a teammate's params.yaml must not send that one to an address of theirs
RETRIES = 6
TIMEOUT_SECONDS = 300.0

Answer = str | None


class Engine(Protocol):
    """What answers prompts."""

    def answers(self, prompts: Sequence[str]) -> list[Answer]:
        """One raw answer a prompt, in order; None for a prompt that is too long."""


def load(editor: Editor, compute: Compute) -> Engine:
    """The engine that an editor names, ready to answer; raises CvsiError where it can not be had."""
    return Server(editor, compute) if editor.engine == "server" else Vllm(editor, compute)


class Vllm:
    """vLLM's offline engine."""

    def __init__(self, editor: Editor, compute: Compute) -> None:
        """Load the engine; raises CvsiError when the model can not be loaded."""
        from vllm import SamplingParams  # seconds of imports, needed only when a row is missing

        # An answer's last bit depends on what is computed beside it and on what is cached; so nothing is.
        alone: dict[str, Any] = {"max_num_seqs": 1, "enable_prefix_caching": False} if editor.exact else {}
        with loading("editor", editor.model, "lower the editor's context or compute.gpu_memory"):
            self.engine: Any = start(editor, compute, max_model_len=editor.context, **alone)
        self.chat = editor.style == "chat"
        self.tokenizer = self.engine.get_tokenizer()
        self.sampling = SamplingParams(temperature=0.0, max_tokens=editor.max_tokens, stop=[STOP])
        self.room = self.engine.model_config.max_model_len - editor.max_tokens

    def answers(self, prompts: Sequence[str]) -> list[Answer]:
        """One raw answer a prompt, in order; None for a prompt that leaves no room for an answer."""
        questions = self.tokens(prompts)
        asked = [place for place, tokens in enumerate(questions) if len(tokens) <= self.room]
        inputs = [{"prompt_token_ids": questions[place]} for place in asked]
        outputs = self.engine.generate(inputs, self.sampling, use_tqdm=False) if inputs else []
        found: list[Answer] = [None] * len(prompts)
        for place, output in zip(asked, outputs, strict=True):
            found[place] = output.outputs[0].text
        return found

    def tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """Each prompt's tokens, a chat's template around it; all at once, which the tokenizer does on several cores."""
        if not prompts:
            return []
        if not self.chat:
            return self.tokenizer(list(prompts))["input_ids"]  # type: ignore[no-any-return]
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)  # type: ignore[no-any-return]


class Server:
    """Any server that speaks OpenAI's interface: several requests at once, each retried with growing pauses."""

    def __init__(self, editor: Editor, compute: Compute) -> None:
        """Prepare requests; nothing is sent yet."""
        self.editor = editor
        self.at_once = 1 if editor.exact else compute.requests
        key = os.environ.get(KEY, "")
        if not (key.isascii() and key.isprintable()):
            raise CvsiError(
                f"the environment variable {KEY} holds what no key can: a line break or accents; set it anew"
            )

    def answers(self, prompts: Sequence[str]) -> list[Answer]:
        """One raw answer a prompt, in order; raises CvsiError where the server can not be reached or refuses."""
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
                found = await client.completions.create(prompt=prompt, **settings)
                return _text(found.choices[0].text)
            turns = [{"role": "user", "content": prompt}]
            found = await client.chat.completions.create(messages=turns, **settings)
            return _text(found.choices[0].message.content)
        except openai.BadRequestError as error:
            if "context length" in str(error) or "too long" in str(error):
                return None
            raise
        except (AttributeError, IndexError, TypeError, ValueError):  # HTML from a proxy, or JSON of another kind
            raise CvsiError(
                f"{self.editor.address}: what it answers is not OpenAI's format; check the address (it ends in /v1)"
            ) from None

    def _explained(self, error: Exception) -> CvsiError:
        """One line for a failed request; nothing of the key, which servers like to quote."""
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
