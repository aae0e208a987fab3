"""What engines in chat style share: the schema of an answer as JSON, and conversations without a system role."""

from collections.abc import Sequence

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
