"""The reader engine `vllm`: a vision-language model, or a text model over captions, in vLLM's offline engine."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Compute
from cvsi.models.editor import TOO_LONG, Answer, Turn
from cvsi.models.engines import Engine, Model, Requirements
from cvsi.models.model_id import identify, require
from cvsi.models.reader import ReaderSettings, Reading, Turns, schema_of, turns_of
from cvsi.models.server_errors import CONTEXT
from cvsi.models.vllm_chat import COMPACT, NO_REASONING, has_system_role
from cvsi.models.vllm_engine import loading, start
from cvsi.store.rows import Store

MOST_IMAGES = re.compile(r"at most \d+ image", re.IGNORECASE)
ONE_IMAGE = "for queries with two reference images, name a model that takes two, or set second_reference: ignore"


class VllmReaderSettings(ReaderSettings):
    """A model on this machine, by hub name or folder."""

    engine: Literal["vllm"] = "vllm"


class VllmReader:
    """vLLM's offline engine."""

    def __init__(self, settings: VllmReaderSettings, compute: Compute, worker: int = 0) -> None:
        """Load the engine; raises CvsiError when the model cannot be loaded or has no chat template."""
        require(settings.model)
        from vllm import SamplingParams  # seconds of imports, needed only when a row is missing
        from vllm.sampling_params import StructuredOutputsParams

        images = 2 if settings.sees == "image" else 0  # of a model that takes one, vLLM allows one
        with loading("reader", settings.model, "lower the reader's context or compute.gpu_memory"):
            self.engine: Any = start(
                settings.model, settings.revision, settings.precision, compute, max_model_len=settings.context,
                limit_mm_per_prompt={"image": images, "video": 0, "audio": 0}, structured_outputs_config=dict(COMPACT),
            )  # fmt: skip
        self.settings = settings
        self.tokenizer = self.engine.get_tokenizer()
        structured = StructuredOutputsParams(json=schema_of(settings))
        self.sampling = SamplingParams(
            temperature=0.0, max_tokens=settings.max_tokens,
            structured_outputs=structured if settings.output == "schema" else None,
        )  # fmt: skip
        self.system: bool | None = None  # whether the template has the role, once a conversation was rendered

    def answers(self, readings: Sequence[Reading]) -> list[Answer]:
        """One raw answer per reading, in order; a prompt that leaves no space for an answer is not computed."""
        if self.system is None:
            self.system = self._has_system_role()
        conversations = [turns_of(reading, self.system) for reading in readings]
        try:
            return self._chat(conversations)
        except Exception as error:  # vLLM refuses all where one prompt is too long
            if not CONTEXT.search(str(error)):
                raise self._failed(error) from None
        return [self._alone(conversation) for conversation in conversations]

    def _alone(self, conversation: Turns) -> Answer:
        try:
            return self._chat([conversation])[0]
        except Exception as error:
            if not CONTEXT.search(str(error)):
                raise self._failed(error) from None
            return Answer("", TOO_LONG)

    def _failed(self, error: Exception) -> CvsiError:
        one = f"; {ONE_IMAGE}" if MOST_IMAGES.search(str(error)) else ""
        return CvsiError(f"params.yaml: reader model '{self.settings.model}': {cause(error)}{one}")

    def _chat(self, conversations: Sequence[Turns]) -> list[Answer]:
        options = {**NO_REASONING, **self.settings.chat_template_kwargs}
        outputs = self.engine.chat(list(conversations), self.sampling, use_tqdm=False, chat_template_kwargs=options)
        firsts = [output.outputs[0] for output in outputs]
        return [Answer(first.text, first.finish_reason or "") for first in firsts]

    def _has_system_role(self) -> bool:
        try:
            return has_system_role(self._rendered)
        except Exception as error:
            raise CvsiError(
                f"params.yaml: reader model '{self.settings.model}': no chat template, or one that refuses the "
                f"conversation ({cause(error)}); name an instruct model"
            ) from None

    def _rendered(self, turns: list[Turn]) -> str:
        return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def _recipe(settings: VllmReaderSettings, precision: str, store: Store) -> dict[str, Any]:
    return settings.facts() | identify(settings.model, settings.revision, store) | {"precision": precision}


ENGINE = Engine(
    settings=VllmReaderSettings,
    requirements=lambda settings: Requirements(
        (Model(settings.model, settings.revision, settings.precision),), packages=("vllm",)
    ),
    recipe=_recipe,
    load=VllmReader,
    one_worker=True,
)
