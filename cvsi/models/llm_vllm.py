"""The editor engine `vllm`: a language model in vLLM's offline engine, prompts to raw answers, greedy."""

from collections.abc import Sequence
from typing import Any, Literal

from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Compute
from cvsi.models.conversations import JSON_SCHEMA, merged
from cvsi.models.editor import STOP, TOO_LONG, Answer, EditorSettings, Prompt, Turn
from cvsi.models.engines import Engine, Model, Requirements, facts_of
from cvsi.models.model_id import identify, require
from cvsi.models.vllm_chat import COMPACT, NO_REASONING, has_system_role
from cvsi.models.vllm_engine import loading, start
from cvsi.store.rows import Store

REASONING_OPENS = ("<think>", "<thinking>", "<reasoning>", "<thought>", "[THINK]", "◁think▷")


class VllmEditorSettings(EditorSettings):
    """A language model on this machine, by hub name or folder."""

    engine: Literal["vllm"] = "vllm"


class VllmEditor:
    """vLLM's offline engine."""

    def __init__(self, editor: VllmEditorSettings, compute: Compute, worker: int = 0) -> None:
        """Load the engine; raises CvsiError when the model cannot be loaded or has no chat template and needs one."""
        require(editor.model)
        from vllm import SamplingParams  # seconds of imports, needed only when a row is missing
        from vllm.sampling_params import StructuredOutputsParams

        # An answer's last bit depends on what is computed beside it and on what is cached; `exact` allows neither.
        options: dict[str, Any] = {"max_num_seqs": 1, "enable_prefix_caching": False} if editor.exact else {}
        options |= {"structured_outputs_config": dict(COMPACT)} if editor.output == "json" else {}
        with loading("editor", editor.model, "lower the editor's context or compute.gpu_memory"):
            self.engine: Any = start(
                editor.model, editor.revision, editor.precision, compute, max_model_len=editor.context, **options
            )
        self.settings, self.chat = editor, editor.style == "chat"
        self.tokenizer = self.engine.get_tokenizer()
        structured = StructuredOutputsParams(json=JSON_SCHEMA)
        self.sampling = SamplingParams(
            temperature=0.0, max_tokens=editor.max_tokens, stop=None if self.chat else [STOP],
            structured_outputs=structured if editor.output == "json" else None,
        )  # fmt: skip
        self.longest = self.engine.model_config.max_model_len - editor.max_tokens
        self.system: bool | None = None  # whether the template has the role, once a conversation was rendered

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One raw answer per prompt, in order; a prompt that leaves no space for an answer is not sent."""
        texts = self.texts(prompts)
        tokens = self.tokens(texts)
        short = [index for index, ids in enumerate(tokens) if len(ids) <= self.longest]
        inputs = [{"prompt_token_ids": tokens[index]} for index in short]
        outputs = self.engine.generate(inputs, self.sampling, use_tqdm=False) if inputs else []
        answers = [Answer("", TOO_LONG)] * len(prompts)
        for index, output in zip(short, outputs, strict=True):
            first = output.outputs[0]
            answers[index] = Answer(_opening(texts[index]) + first.text, first.finish_reason or "")
        return answers

    def texts(self, prompts: Sequence[Prompt]) -> list[str]:
        """Each prompt as the text that the model continues, in the chat template if there is one."""
        return [prompt if isinstance(prompt, str) else self._rendered(prompt) for prompt in prompts]

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's tokens, all at once, so that several cores are used; a template adds its special tokens."""
        if not texts:
            return []
        return self.tokenizer(list(texts), add_special_tokens=not self.chat)["input_ids"]  # type: ignore[no-any-return]

    def _rendered(self, turns: Sequence[Turn]) -> str:
        if self.system is None:
            self.system = has_system_role(self._template)
        return self._template(turns if self.system else merged(turns))

    def _template(self, turns: Sequence[Turn]) -> str:
        # Without reasoning an answer is a sentence.
        options = {**NO_REASONING, **self.settings.chat_template_kwargs}
        try:
            return self.tokenizer.apply_chat_template(  # type: ignore[no-any-return]
                list(turns), add_generation_prompt=True, tokenize=False, **options
            )
        except Exception as error:  # a template is a program of the model's author and raises what it likes
            name = f"params.yaml: editor model '{self.settings.model}'"
            if not getattr(self.tokenizer, "chat_template", None):
                raise CvsiError(
                    f"{name} has no chat template, it is no instruct model; set style: completion"
                ) from None
            raise CvsiError(
                f"{name}: its chat template refuses the conversation ({cause(error)}); set style: completion"
            ) from None


def _opening(text: str) -> str:
    """The tag of reasoning that the template opened at the prompt's end, which belongs to the answer."""
    return next((tag for tag in REASONING_OPENS if text.rstrip().endswith(tag)), "")


def _recipe(settings: VllmEditorSettings, precision: str, store: Store) -> dict[str, Any]:
    facts = facts_of(settings) | identify(settings.model, settings.revision, store) | {"precision": precision}
    # Before, the grammar allowed white space, so other answers may be stored.
    return facts | ({"white_space": "none"} if settings.output == "json" else {})


ENGINE = Engine(
    settings=VllmEditorSettings,
    requirements=lambda settings: Requirements(
        (Model(settings.model, settings.revision, settings.precision),), packages=("vllm",)
    ),
    recipe=_recipe,
    load=VllmEditor,
    one_worker=True,
)
