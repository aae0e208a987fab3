"""What the engines that use vLLM need to know of chat templates and of answers as JSON."""

from collections.abc import Callable, Mapping
from typing import Any

from cvsi.models.editor import Turn

NO_REASONING: Mapping[str, Any] = {"enable_thinking": False}  # templates that do not know the key ignore it
# Of the engine's configuration: small models write white space until the answer is cut, where a grammar allows it. The
# key of a request's own parameters does nothing in vLLM 0.32.
COMPACT: Mapping[str, Any] = {"backend": "xgrammar", "disable_any_whitespace": True}
PROBE = "probe"  # a system message by which a template shows whether it has the role


def has_system_role(rendered: Callable[[list[Turn]], str]) -> bool:
    """Whether a template, a function of messages, shows a system message; some refuse it, and some drop it silently.

    Raises whatever the template raises where it refuses a message of the user as well.
    """
    user = Turn(role="user", content="user")
    try:
        return PROBE in rendered([Turn(role="system", content=PROBE), user])
    except Exception:  # a template is a program of the model's author and raises what it likes
        rendered([user])
        return False
