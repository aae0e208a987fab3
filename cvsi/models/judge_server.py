"""The judge engine `server`: what a judge sends to any server with OpenAI's interface and vision, and reads from it.

`server_requests` has what all engines send, `server_client` the requests: several at once, retries, refusals, the key.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field

from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.models.conversations import image_part, template_facts
from cvsi.models.editor import FAILED, FILTERED, REFUSED, Answer
from cvsi.models.engines import Engine, Requirements
from cvsi.models.image_data import ENCODING, data_url
from cvsi.models.judge import ROUNDING, JudgeSettings, Question, Verdict, conversation, judge_facts, scaled
from cvsi.models.server_client import IN_A_ROW, Address, MaxTokensAs, ServerClient, Service, chat_answer
from cvsi.models.server_requests import avoidable, options
from cvsi.store.rows import Store

KEY = "CVSI_JUDGE_KEY"  # not OPENAI_API_KEY: a teammate's params.yaml must not send that one to another address
REPORTED = 20  # the most alternatives that OpenAI's interface reports
MOST = 1000  # alternatives that are read; more are no answer
LARGEST_CANVAS = 1 << 16  # pixels: a canvas is not scaled again


class ServerJudgeSettings(JudgeSettings):
    """A vision model behind an OpenAI-compatible server; the last four keys are for models and servers that differ."""

    engine: Literal["server"]
    address: Address
    top_logprobs: Annotated[int, Field(ge=2, le=REPORTED)] = REPORTED
    max_tokens_as: MaxTokensAs = "max_tokens"
    send_temperature: bool = True
    chat_template_kwargs: dict[str, bool | int | float | str | None] = Field(default={})


class ServerJudge:
    """Questions to verdicts, by requests to the server."""

    def __init__(self, settings: ServerJudgeSettings, compute: Compute, worker: int = 0) -> None:
        """Prepare requests; nothing is sent yet."""
        self.settings = settings
        service = Service(
            settings.address, settings.model, "judge", KEY, _sent(settings),
            template="start the server with a chat template", images=True,
        )  # fmt: skip
        self.client = ServerClient(service, compute.requests)
        self.without = 0  # answers without logprobs in a row

    def prepare(self, image: Image.Image) -> str | Image.Image:
        """An image (RGB) as a data URL, or scaled down where it becomes a part of a canvas."""
        size = self.settings.image_size
        return scaled(image, size) if self.settings.images == "canvas" else data_url(image, size)

    def verdicts(self, questions: Sequence[Question[Any]]) -> list[Answer]:
        """A verdict per question, or the reason why there is none; raises Unfinished, see `ServerClient.answers`."""
        return self.client.answers(questions, self._send)

    async def _send(self, client: Any, question: Question[Any]) -> Answer:
        turns = conversation(question, self.settings.images, _part)
        response = await client.chat.completions.create(messages=turns, **self._options())
        return self._read(response)

    def _options(self) -> dict[str, Any]:
        return options(self.settings, 1) | {"logprobs": True, "top_logprobs": self.settings.top_logprobs}

    def _read(self, response: Any) -> Answer:
        """A response's first token; raises CvsiError where many responses in a row have no probabilities.

        Other exceptions mean a response that is not in OpenAI's format, or whose numbers are no probabilities.
        """
        answer, choice = chat_answer(response), response.choices[0]
        if answer.finish == FILTERED or answer.finish.startswith(REFUSED):
            return answer
        if getattr(choice, "logprobs", None) is None or choice.logprobs.content is None:
            self.without += 1
            if self.without < IN_A_ROW:
                return Answer("", f"{FAILED}an answer without logprobs")
            raise CvsiError(
                f"{self.settings.address}: the answers have no logprobs, from which verdicts are computed; use a "
                "server or a model that reports them (vLLM, llama.cpp and OpenAI do)"
            )
        self.without = 0
        first = choice.logprobs.content[0]
        given = list(first.top_logprobs)
        if first.token not in [one.token for one in given]:  # at a temperature of the server, any token may be drawn
            given.append(first)
        tokens, logprobs = tuple(str(one.token) for one in given), tuple(float(one.logprob) for one in given)
        if len(tokens) > MOST or not all(logprob <= ROUNDING for logprob in logprobs):  # NaN is not, either
            raise ValueError(f"{len(tokens)} alternatives, or a number that is no logarithm of a probability")
        return Verdict(answer.text, answer.finish, tokens, logprobs)


def _part(image: str | Image.Image) -> dict[str, Any]:
    """A part of the user's message, from a data URL or a canvas."""
    return image_part(image if isinstance(image, str) else data_url(image, LARGEST_CANVAS))


def _sent(settings: ServerJudgeSettings) -> frozenset[str]:
    """The settings that would change what is sent."""
    return avoidable(settings, {"top_logprobs: 5": settings.top_logprobs > 5})


def _recipe(settings: ServerJudgeSettings, precision: str, store: Store) -> dict[str, Any]:
    # The address is left out: another server with the same model gives the same rows. Its precision is unknown.
    facts = judge_facts(settings, "address", "max_tokens_as", "chat_template_kwargs")
    facts |= template_facts(settings.chat_template_kwargs)
    return facts | {"model": settings.model, "revision": settings.revision, "encoding": ENCODING}


ENGINE = Engine(
    settings=ServerJudgeSettings,
    requirements=lambda settings: Requirements(servers=(settings.address,)),
    recipe=_recipe,
    load=ServerJudge,
    one_worker=True,
)
