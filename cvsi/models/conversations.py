"""What engines in chat style share: answers as JSON, parts of messages, and conversations without a system role."""

from collections.abc import Mapping, Sequence
from typing import Any

from cvsi.models.editor import Turn

LONGEST = {"edited": 400, "added": 200}  # characters of an answer as JSON
JSON_SCHEMA = {
    "type": "object",
    "properties": {task: {"type": "string", "maxLength": length} for task, length in LONGEST.items()},
    "required": list(LONGEST),
    "additionalProperties": False,
}


def merged(conversation: Sequence[Turn]) -> list[Turn]:
    """A conversation whose system message is the beginning of the first user's turn, for templates without such a role.

    Some templates drop a system message without an error.
    """
    if not conversation or conversation[0]["role"] != "system":
        return list(conversation)
    system, first, *rest = conversation
    return [Turn(role=first["role"], content=f"{system['content']}\n\n{first['content']}"), *rest]


def text_part(text: str) -> dict[str, Any]:
    """A text as a part of a message."""
    return {"type": "text", "text": text}


def image_part(url: str) -> dict[str, Any]:
    """An image as a part of a message, from its data URL."""
    return {"type": "image_url", "image_url": {"url": url}}


def template_facts(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keys `chat_template_kwargs` as flat facts of a recipe, as a pack needs them."""
    return {f"chat_template_kwargs.{name}": value for name, value in options.items()}
