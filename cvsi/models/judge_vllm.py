"""The judge engine `vllm`: a vision-language model in vLLM's offline engine, questions to first-token probabilities.

Only the probabilities of the tokens that spell an answer are computed. vLLM caches the prefix of a prompt, and the
candidate is last in it, so the reference image is encoded once per query.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field

from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Compute
from cvsi.models.editor import TOO_LONG, Answer
from cvsi.models.engines import Engine, Model, Requirements
from cvsi.models.judge import JudgeSettings, Question, Verdict, canvas, conversation, judge_facts, normalised, scaled
from cvsi.models.model_id import identify, require
from cvsi.models.server_errors import CONTEXT
from cvsi.models.vllm_chat import NO_REASONING
from cvsi.models.vllm_engine import loading, start
from cvsi.store.rows import Store


class VllmJudgeSettings(JudgeSettings):
    """A vision-language model on this machine, by hub name or folder; `context` is the longest prompt, in tokens."""

    engine: Literal["vllm"] = "vllm"
    context: Annotated[int, Field(ge=16, le=1 << 20)] = 8192


class VllmJudge:
    """vLLM's offline engine."""

    def __init__(self, settings: VllmJudgeSettings, compute: Compute, worker: int = 0) -> None:
        """Load the engine; raises CvsiError where the model cannot be loaded, or has no token for an answer."""
        require(settings.model)
        self.settings = settings
        with loading("judge", settings.model, "lower the judge's context or compute.gpu_memory"):
            self.engine: Any = start(
                settings.model, settings.revision, settings.precision, compute, max_model_len=settings.context,
                limit_mm_per_prompt={"image": 1 if settings.images == "canvas" else 2},
            )  # fmt: skip
        self.tokenizer = self.engine.get_tokenizer()
        if not getattr(self.tokenizer, "chat_template", None) and settings.images == "pair":
            raise CvsiError(
                f"params.yaml: judge model '{settings.model}' has no chat template, which says where two images go; "
                "set images: canvas"
            )
        self.sampling = self._sampling()

    def prepare(self, image: Image.Image) -> Image.Image:
        """An image (RGB), scaled down to `image_size`."""
        return scaled(image, self.settings.image_size)

    def verdicts(self, questions: Sequence[Question[Image.Image]]) -> list[Answer]:
        """A verdict per question, in order; one that is longer than the context gets the finish reason `too long`."""
        try:
            return [_verdict(output) for output in self._outputs(questions)]
        except CvsiError:
            raise
        except Exception as error:  # of a template, which raises what it likes, or of the engine
            self._require_too_long(error)
        if len(questions) == 1:
            return [Answer("", TOO_LONG)]
        half = len(questions) // 2
        return [*self.verdicts(questions[:half]), *self.verdicts(questions[half:])]

    def _require_too_long(self, error: Exception) -> None:
        """Raise CvsiError for an error other than a prompt that is longer than the context."""
        if not CONTEXT.search(str(error)):
            raise CvsiError(
                f"params.yaml: judge model '{self.settings.model}' fails on a question ({cause(error)}); if it takes a "
                "single image, set images: canvas"
            ) from None

    def _outputs(self, questions: Sequence[Question[Image.Image]]) -> Any:
        if not getattr(self.tokenizer, "chat_template", None):
            prompts = [
                {
                    "prompt": one.before + one.between,
                    "multi_modal_data": {"image": canvas(one.reference, one.candidate)},
                }
                for one in questions
            ]
            return self.engine.generate(prompts, self.sampling, use_tqdm=False)
        conversations = [conversation(question, self.settings.images, _part) for question in questions]
        # Without reasoning, the first token is the answer.
        return self.engine.chat(conversations, self.sampling, use_tqdm=False, chat_template_kwargs=dict(NO_REASONING))

    def _sampling(self) -> Any:
        """One token, with the probabilities of all tokens that spell an answer; CvsiError where there are none."""
        from vllm import SamplingParams
        from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS

        size = len(self.tokenizer)
        texts = [normalised(text) for text in self.tokenizer.batch_decode([[number] for number in range(size)])]
        chosen: list[int] = []
        for answer in self.settings.answers:
            tokens = [number for number, text in enumerate(texts) if text == normalised(answer)]
            if not tokens:
                raise CvsiError(
                    f"params.yaml: judge model '{self.settings.model}' has no token for the answer '{answer}'; name "
                    "answers that are one token each, such as yes and no"
                )
            chosen += tokens[: MAX_LOGPROB_TOKEN_IDS // 2]
        return SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=chosen)


def _part(image: Image.Image) -> dict[str, Any]:
    """A part of the user's message, without the loss of an encoding."""
    return {"type": "image_pil", "image_pil": image}


def _verdict(output: Any) -> Verdict:
    """The alternatives for the first token of one output."""
    first = output.outputs[0]
    reported = first.logprobs[0] if first.logprobs else {}
    tokens = tuple(one.decoded_token or "" for one in reported.values())
    return Verdict(first.text, first.finish_reason or "", tokens, tuple(one.logprob for one in reported.values()))


def _recipe(settings: VllmJudgeSettings, precision: str, store: Store) -> dict[str, Any]:
    facts = judge_facts(settings)
    return facts | identify(settings.model, settings.revision, store) | {"precision": precision}


ENGINE = Engine(
    settings=VllmJudgeSettings,
    requirements=lambda settings: Requirements(
        (Model(settings.model, settings.revision, settings.precision),), packages=("vllm",)
    ),
    recipe=_recipe,
    load=VllmJudge,
    one_worker=True,
)
