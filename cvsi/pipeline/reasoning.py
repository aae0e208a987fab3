"""A raw answer without the model's reasoning: between tags, before a closing tag alone, or in channels."""

import re

NAMES = r"(?:think|thinking|thought|thoughts|reason|reasoning|reflection|analysis|scratchpad|seed:think)"
OPENING = re.compile(
    rf"<{NAMES}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|start_of_thinking\|>|<\|think(?:ing)?\|>", re.IGNORECASE
)
CLOSING = re.compile(
    rf"</{NAMES}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|end_of_thinking\|>|<\|/think(?:ing)?\|>", re.IGNORECASE
)
FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\s*<\|message\|>")
OTHER_CHANNEL = re.compile(r"<\|channel\|>\s*(?:analysis|commentary)")


def without_reasoning(text: str) -> str | None:
    """The text after the reasoning, whose opening tag may be part of the prompt; None where the reasoning never ends.

    >>> without_reasoning("<think>a dog?</think> a cat")
    ' a cat'
    >>> without_reasoning("a dog?</think> a cat")
    ' a cat'
    >>> without_reasoning("<think>a dog?") is None
    True
    """
    channels = list(FINAL_CHANNEL.finditer(text))
    if channels:
        return text[channels[-1].end() :]
    if OTHER_CHANNEL.search(text):
        return None
    closings = list(CLOSING.finditer(text))
    rest = text[closings[-1].end() :] if closings else text
    opening = OPENING.search(rest)
    if opening is None:
        return rest
    before = rest[: opening.start()]
    return before if before.strip() else None
