"""The editor engine `vllm`: a language model in vLLM's offline engine, prompts to raw answers, greedy."""

from collections.abc import Sequence
from typing import Any, Literal

from cvsi.core.params import Compute
from cvsi.models.editor import STOP, Answer, EditorSettings
from cvsi.models.engines import Engine, Model, Requirements, facts_of
from cvsi.models.model_id import identify, require
from cvsi.models.vllm_engine import loading, start
from cvsi.store.rows import Store


class VllmEditorSettings(EditorSettings):
    """A language model on this machine, by hub name or folder."""

    engine: Literal["vllm"] = "vllm"


class VllmEditor:
    """vLLM's offline engine."""

    def __init__(self, editor: VllmEditorSettings, compute: Compute, worker: int = 0) -> None:
        """Load the engine; raises CvsiError when the model cannot be loaded."""
        require(editor.model)
        from vllm import SamplingParams  # seconds of imports, needed only when a row is missing

        # An answer's last bit depends on what is computed beside it and on what is cached; `exact` allows neither.
        alone: dict[str, Any] = {"max_num_seqs": 1, "enable_prefix_caching": False} if editor.exact else {}
        with loading("editor", editor.model, "lower the editor's context or compute.gpu_memory"):
            self.engine: Any = start(
                editor.model, editor.revision, editor.precision, compute, max_model_len=editor.context, **alone
            )
        self.chat = editor.style == "chat"
        self.tokenizer = self.engine.get_tokenizer()
        self.sampling = SamplingParams(temperature=0.0, max_tokens=editor.max_tokens, stop=[STOP])
        self.longest = self.engine.model_config.max_model_len - editor.max_tokens

    def answers(self, prompts: Sequence[str]) -> list[Answer]:
        """One raw answer per prompt, in order; None for a prompt that leaves no space for an answer."""
        tokens = self.tokens(prompts)
        short = [index for index, ids in enumerate(tokens) if len(ids) <= self.longest]
        inputs = [{"prompt_token_ids": tokens[index]} for index in short]
        outputs = self.engine.generate(inputs, self.sampling, use_tqdm=False) if inputs else []
        answers: list[Answer] = [None] * len(prompts)
        for index, output in zip(short, outputs, strict=True):
            answers[index] = output.outputs[0].text
        return answers

    def tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """Each prompt's tokens, in the chat template if there is one; all at once, so that several cores are used."""
        if not prompts:
            return []
        if not self.chat:
            return self.tokenizer(list(prompts))["input_ids"]  # type: ignore[no-any-return]
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)  # type: ignore[no-any-return]


def _recipe(settings: VllmEditorSettings, precision: str, store: Store) -> dict[str, Any]:
    return facts_of(settings) | identify(settings.model, settings.revision, store) | {"precision": precision}


ENGINE = Engine(
    settings=VllmEditorSettings,
    requirements=lambda settings: Requirements(
        (Model(settings.model, settings.revision, settings.precision),), packages=("vllm",)
    ),
    recipe=_recipe,
    load=VllmEditor,
    one_worker=True,
)
