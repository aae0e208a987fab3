"""What servers with OpenAI's interface report, each in its own words, to the kind of fault."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

CONTEXT = re.compile(
    r"""context[ _-]?(?:length|window|size|limit)|maximum\ context|max_model_len|n_ctx|too\ long
    |too\ many\ (?:input\ )?tokens|(?:input|prompt|sequence)\ length|token\ limit|tokens?\ (?:exceed|allowed)
    |reduce\ the\ length|exceed\w*\ .{0,40}(?:token|length|context|limit)|(?:prompt|input)\ is\ too
    |larger\ than\ the\ (?:maximum|context)|max_new_tokens""",
    re.IGNORECASE | re.VERBOSE,
)
FILTER = re.compile(
    r"content[ _-]?(?:filter|policy|management|moderation)|filtered|safety|moderat|responsible ?ai|prohibited",
    re.IGNORECASE,
)
SYSTEM_ROLE = re.compile(
    r"system[^.]{0,40}role|role[^.]{0,40}system|system (?:message|prompt)|developer instruction|roles? must alternate",
    re.IGNORECASE,
)
VISION = re.compile(  # of a model or a server that takes no images at all, not of one bad image
    r"""(?:image|vision|multi-?modal)(?:_url|s)?(?:\ (?:inputs?|content|messages?|parts?|data))?
        \ (?:is|are)(?:n't|\ not)\ (?:currently\ )?(?:supported|available|enabled|allowed)
    | (?:not|n't)\ (?:support|accept|take|have|a)\b.{0,20}\b(?:images?(?!\ (?:of|format|size|type))|vision|multi-?modal)
    | unsupported\ content\ part\ type|compiled\ for\ multimodal|mmproj|missing\ data\ required\ for\ image
    | image_url.{0,40}(?:only\ supported|expected)|at\ most\ 0\ image|no\ endpoints?\ .{0,20}support\ image
    | content\W{0,3}\ must\ be\ a\ string""",
    re.IGNORECASE | re.VERBOSE,
)
TEMPLATE = re.compile(r"chat[ _-]?template|jinja|conversation roles", re.IGNORECASE)
UNSUPPORTED = r".{0,60}(?:support|unknown|unrecogni|unexpected|extra|not permitted|not allowed|invalid)"
PARAMETERS = {  # the setting that avoids a complaint, and the complaint
    "max_tokens_as: max_completion_tokens": rf"use.{{0,10}}max_completion_tokens|max_tokens{UNSUPPORTED}",
    "max_tokens_as: max_tokens": rf"max_completion_tokens{UNSUPPORTED}",
    "send_temperature: false": rf"temperature{UNSUPPORTED}",
    "send_top_p: false": rf"top_p{UNSUPPORTED}",
    "send_seed: false": rf"\bseed\b{UNSUPPORTED}",
    "send_stop: false": rf"\bstop\b{UNSUPPORTED}",
    "top_logprobs: 5": rf"top_logprobs(?:{UNSUPPORTED}|.{{0,60}}(?:between|at most|less|greater|maximum))"
    r"|logprobs of \d+, which is greater",
    "chat_template_kwargs: {}": "chat_template_kwargs",
    "output: json": rf"(?:response_format|json_schema){UNSUPPORTED}",
    "output: text": rf"(?:response_format|json_schema){UNSUPPORTED}",
}


def is_local(address: str) -> bool:
    """Whether an address is this machine's own."""
    host = (urlsplit(address).hostname or "").rstrip(".")
    try:
        number = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return number.is_loopback or number.is_unspecified


def avoiding(message: str, sent: set[str]) -> str:
    """The setting, among those `sent`, that avoids what a server complains about; empty where there is none."""
    fits = [
        setting for setting, complaint in PARAMETERS.items() if setting in sent and re.search(complaint, message, re.I)
    ]
    return fits[0] if fits else ""


def retry_after(headers: Any) -> float:
    """The seconds of a response's `Retry-After` (a number or a date) or `retry-after-ms`; 0 without one."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(float(milliseconds) / 1000, 0.0)
        value = headers.get("retry-after") or "0"
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
