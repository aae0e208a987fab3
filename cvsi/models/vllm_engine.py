"""A model to vLLM's offline engine: one way to start it, for every engine that uses vLLM."""

import gc
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cvsi.core.devices import NAMES, device, precision
from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Compute, Precision
from cvsi.models.transformers_keys import checked_prefix

WITHOUT_PREFIX = "without_prefix"  # the name of our way to load in vLLM
SEED_BYTES = 7  # vLLM adds a sequence's number to it and wants 64 bits, signed
LOWEST_TEMPERATURE = 0.01  # vLLM raises a lower one to this


def start(model: str, revision: str | None, chosen: Precision, compute: Compute, **options: Any) -> Any:
    """Start vLLM's `LLM` with a model's weights and precision; `options` are further arguments of it.

    The checkpoint's keys are compared with the model's first; raises CvsiError where they differ. Call it within
    `loading`: vLLM and its libraries raise many kinds of errors.
    """
    if "vllm" in sys.modules:
        gc.collect()  # an engine that is no longer used ends now; later, it would end the new one's process groups
    prefix, on = checked_prefix(model, revision), device(compute)
    # In this process the engine starts in a third of the time; its output would hide our lines.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0" if compute.tensor_parallel == 1 else "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM  # seconds of imports, needed only when a row is missing

    if prefix:
        options |= {"load_format": _without_prefix(prefix, model, compute)}
    if on.type == "cuda":
        options |= {"gpu_memory_utilization": compute.gpu_memory}
    return LLM(
        model, revision=revision, trust_remote_code=False, dtype=NAMES[precision(chosen, on.type)],
        enforce_eager=on.type == "cpu", seed=0, disable_log_stats=True,
        tensor_parallel_size=compute.tensor_parallel, **options,
    )  # fmt: skip


def seed_of(seed: int, digest: str, draw: int) -> int:
    """The seed of an image's draw, hashed: vLLM gives sequence i seed + i, so near seeds would share captions."""
    return int.from_bytes(hashlib.sha256(f"{seed} {digest} {draw}".encode()).digest()[:SEED_BYTES], "big")


def release() -> None:
    """Free the memory of an engine that is no longer used, before another one starts in the same process."""
    if "vllm" not in sys.modules:
        return
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


def _without_prefix(prefix: str, model: str, compute: Compute) -> str:
    """Register a loader that removes a prefix from every key; its name. Other processes would not know the loader."""
    if compute.tensor_parallel > 1 or os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
        raise CvsiError(f"{model}: every key begins with '{prefix}'; remove it from the keys to use several processes")
    from vllm.model_executor.model_loader import DefaultModelLoader, register_model_loader

    class WithoutPrefix(DefaultModelLoader):  # type: ignore[misc]  # vLLM has no types here
        def __init__(self, load_config: Any) -> None:
            super().__init__(replace(load_config, load_format="auto"))

        def get_all_weights(self, *arguments: Any) -> Iterator[tuple[str, Any]]:
            for name, tensor in super().get_all_weights(*arguments):
                yield name.removeprefix(prefix), tensor

    register_model_loader(WITHOUT_PREFIX)(WithoutPrefix)
    return WITHOUT_PREFIX


@contextmanager
def loading(noun: str, model: str, memory: str) -> Iterator[None]:
    """Turn any error while a model is loaded into one line; `memory` is the advice where memory is too small."""
    try:
        yield
    except CvsiError:
        raise
    except Exception as error:  # many kinds on a broken or hostile model; none of it was run
        reason = cause(error)
        hint = f"; {memory}" if "memory" in reason.lower() else ""
        raise CvsiError(f"params.yaml: {noun} model '{model}' does not load: {reason}{hint}") from None
