"""The forms in which a language model may give an answer, to the answer itself: what surrounds it is removed.

Special tokens, code fences, JSON, labels, a polite beginning, an explanation after it, list markers, markup, quotes.
What was removed first is named, for the status `repaired`.
"""

import ast
import html
import json
import re
from collections.abc import Sequence
from typing import Any

MARKERS = 10  # list markers, quotes and the like around one line
LONGEST_LITERAL = 2000  # characters of a Python literal, whose parser is recursive
INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\u00ad]")

ROLE = re.compile(
    r"^\s*(?:<\|start_header_id\|>\w+<\|end_header_id\|>|<\|im_start\|>\s*assistant|<start_of_turn>\s*model"
    r"|<\|(?:assistant|start\|>assistant)\|?>|\[/INST\]|<s>|<bos>|<\|begin_of_text\|>)"
)
SPECIAL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|</?s>|<(?:eos|bos|pad|unk|end_of_turn|start_of_turn)>|\[/?INST\]|<｜[^>]{1,40}｜>"
    r"|<(?:start|end|eot|eom)>|\[(?:end|eos|stop|done)\]",
    re.IGNORECASE,
)
FENCE = re.compile(r"(```|~~~)(?:[\w-]*[ \t]*\n)?(.*?)(?:\1|\Z)", re.DOTALL)
ANSWER_TAG = re.compile(
    r"<(\w*(?:answer|output|response|result|edited|description|caption|added|objects)\w*)>(.*?)</\1>", re.I | re.S
)
INLINE_TAG = re.compile(r"^<(b|i|em|strong|u|p|span|q)>(.*)</\1>$", re.IGNORECASE | re.DOTALL)
BOXED = re.compile(r"^\$*\\boxed\{(?:\\text\{)?(.*?)\}*\$*$", re.DOTALL)
BULLET = re.compile(
    r"^(?:(?:[-*•·–—‣◦▪+]|\(?\d{1,2}[.):]|\([a-z]\)|[a-z]\))\s+|(?:[-•·–—‣◦▪]|\d{1,2}[.)])(?=[^\W\d_]))"
)
RULER = re.compile(r"^[-=~#_*]{2,}\s+|\s*[-=~#_*]{2,}$")  # a line of signs before or after a text
PAIRS = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"), ("„", "“"), ("「", "」"), ("(", ")"), ("[", "]"))

COMMON_LABELS = r"final\ answer|answer|output|result|response|assistant|final(?=\s*:)|ai(?=\s*:)|a(?=\s*:)"
LABELS = {
    "edited": rf"""(?:edited|new|modified|updated|final|target|resulting|changed|revised|altered|other)\s+
        (?:image\s+|photo\s+)?(?:descriptions?|captions?|image|photo|content)
        | description | caption | edited | edit | (?:one\s+)?sentence | photo | image | picture | {COMMON_LABELS}""",
    "added": rf"""(?:objects?|items?|things?|elements?|people|properties)(?:\s+\w+){{0,3}}?\s+added
        | (?:added|new|additional)\s+(?:objects?|items?|elements?|things?) | added | objects? | {COMMON_LABELS}""",
}
OTHER_LABELS = r"""image\ content|instructions?|explanation|notes?|reasoning|rationale|reason|changes?(?:\ made)?|input
    |user|question|q(?=\s*:)|human|system|thinking
    |thoughts?|thought\ process|original(?:\ description)?|captions?|analysis"""
POLITE = r"(?:(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|yes|great|alright|got it|no problem)\b[!,.: ]*)"
PREAMBLE = re.compile(
    POLITE
    + r"?\s*(?:here(?:'s|\u2019s| is| are| you go| it is)|this is|below is|the following is|based on)\b[^:\n]{0,160}:",
    re.I,
)
KEYS = {
    "edited": ("edited", "edited_description", "edited description", "description", "caption", "edit", "answer",
               "output", "result", "response", "text", "sentence", "final"),
    "added": ("added", "objects", "objects_added", "added_objects", "objects most likely added", "items", "answer",
              "output", "result", "response", "list", "text"),
}  # fmt: skip
ERROR_KEYS = frozenset({"error", "errors", "message", "detail", "status", "code", "refusal"})


class Unusable(Exception):
    """An answer cannot be used; the message is its status."""


def without_tokens(text: str) -> str:
    """A text without the special tokens of chat templates, entities and invisible characters; lines end in LF."""
    text = INVISIBLE.sub("", html.unescape(text)).replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    while role := ROLE.match(text):
        text = text[role.end() :]
    before, every = SPECIAL.split(text, maxsplit=1)[0], SPECIAL.sub(" ", text)
    return (before if before.strip() else every).strip()


def extracted(text: str, task: str) -> tuple[str, str]:
    """The part of a text that answers the task, on one line, and what was removed around it (empty for nothing)."""
    repair = ""
    if tagged := ANSWER_TAG.search(text):
        text, repair = tagged[2], "tag"
    text, code = fenced(text)
    repair = repair or code
    content = json_value(text) if text[:1] in "{[" else None
    if content is not None and (found := text_of(content, task)) is not None:
        return found, "JSON"
    if text[:1] == "{":
        raise Unusable("refused: JSON without a text")
    part, labelled = _section(text, task)
    repair = repair or labelled
    lines, dropped = _lines(part, task)
    return _plain(lines, task), repair or dropped


def fenced(text: str) -> tuple[str, str]:
    """The content of a code fence, and "code" where there is one."""
    fence = FENCE.search(text)
    return (fence[2].strip(), "code") if fence and fence[2].strip() else (text.strip(), "")


def json_value(text: str) -> Any:
    """The JSON value that a text begins with, or a Python literal; None where there is neither."""
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text) if len(text) < LONGEST_LITERAL else None
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def text_of(content: Any, task: str) -> str | None:
    """The text for a task in a JSON value; None where it has none."""
    if isinstance(content, dict):
        folded = {str(key).strip().casefold(): value for key, value in content.items()}
        named = [folded[key] for key in KEYS[task] if key in folded]
        if not named and (len(folded) > 1 or not ERROR_KEYS.isdisjoint(folded)):
            return None
        return text_of((named or list(folded.values()) or [""])[0], task)
    if isinstance(content, list):
        texts = [item for item in content if isinstance(item, str)]
        if len(texts) != len(content) or (task == "edited" and len(texts) != 1):
            return None
        return ", ".join(texts) or "none"
    return content if isinstance(content, str) else ("none" if content is None else None)


def _label(task: str) -> re.Pattern[str]:
    """A label at the beginning of a line, with its markup: the group `own` is that of the task."""
    others = "|".join([OTHER_LABELS, *(LABELS[other] for other in LABELS if other != task)])
    return re.compile(
        rf"""^[ \t]*(?:(?:[-*\u2022>]|\#+|\d+[.)])[ \t]+)?[#>*_`"'(\[]*[ \t]*(?:(?:the|my|your|an?)\ )?
        (?:(?P<own>{LABELS[task]})|{others})
        [ \t]*(?:\(s\))?(?:[ \t]+(?:of|for|in|\()[^:\n]{{0,40}}(?=:))?[*_`"')\]]*[ \t]*(?:(?:is|are|would\ be)[ \t]*)?
        (?:[:\uff1a]|[ \t][-\u2013\u2014][ \t]|[ \t]?(?:=>?|->|\u2192)[ \t]?|(?<=\])[ \t]+|\n(?=\S))[ \t*_`]*""",
        re.IGNORECASE | re.MULTILINE | re.VERBOSE,
    )


OF_TASK = {task: _label(task) for task in LABELS}


def _section(text: str, task: str) -> tuple[str, str]:
    """The part of a text that belongs to the task: before another label, or after its own; and "label" if there is one.

    Raises Unusable where all parts belong to other labels.
    """
    matches = list(OF_TASK[task].finditer(text))
    if not matches:
        return text, ""
    before = text[: matches[0].start()]
    if matches[0]["own"] is None and _without_preamble(before).strip():
        return before, "label"  # what follows is the prompt's next example; before an own label, it is reasoning
    ends = [*(match.start() for match in matches[1:]), len(text)]
    parts = [text[match.end() : end] for match, end in zip(matches, ends, strict=True) if match["own"] is not None]
    if answered := [part for part in parts if part.strip()]:
        return answered[0], "label"
    raise Unusable("no answer: a label alone" if parts else "refused: repeats the prompt")


def _without_preamble(text: str) -> str:
    """A text without a polite beginning: `Sure! Here is the description:`."""
    text = PREAMBLE.sub("", text.lstrip(), count=1) if PREAMBLE.match(text.lstrip()) else text
    lines = text.strip().split("\n")
    while len(lines) > 1 and (lines[0].rstrip(" *_").endswith(":") or re.fullmatch(POLITE, lines[0].strip(), re.I)):
        lines = lines[1:]
    text = "\n".join(lines).strip()
    polite = re.match(POLITE, text, re.IGNORECASE)
    return "" if polite and polite.end() == len(text) else text


def _lines(text: str, task: str) -> tuple[list[str], str]:
    """The lines that answer: the first paragraph, or every item of a list; and what was left out."""
    content = _without_preamble(text)
    repair = "preamble" if content.strip() != text.strip() else ""
    paragraphs = [paragraph for paragraph in re.split(r"\n\s*\n", content) if paragraph.strip(" -*_=#\n")]
    if not paragraphs:
        raise Unusable("no answer: empty" if not text.strip() else "refused: no words")
    items = [line.strip() for line in content.split("\n") if BULLET.match(line.strip())]
    if task == "added" and len(items) > 1:
        return items, "list"
    lines = [line.strip() for line in paragraphs[0].split("\n") if line.strip()]
    bullets = sum(BULLET.match(line) is not None for line in lines)
    if task == "edited" and (bullets > 1 or len(items) > 1):
        raise Unusable("refused: a list instead of one description")
    if task == "added":
        return lines, repair or ("list" if len(lines) > 1 else "commentary" if len(paragraphs) > 1 else "")
    kept = lines[:1]
    for line in lines[1:]:  # a wrapped sentence goes on in lower case
        if kept[-1].endswith((".", "!", "?")) or not line[:1].islower():
            break
        kept.append(line)
    left_out = len(kept) < len(lines) or len(paragraphs) > 1
    return [" ".join(kept)], repair or ("commentary" if left_out else "")


def _plain(lines: Sequence[str], task: str) -> str:
    """Lines without markup, list markers and quotes, as one."""
    plain = [unmarked(line) for line in lines]
    return ", ".join(line.rstrip(",;") for line in plain if line) if len(plain) > 1 else "".join(plain)


def unmarked(line: str) -> str:
    """One line without markup: stripped until nothing changes."""
    for _ in range(MARKERS):
        before = line
        line = " ".join(line.replace("\\n", " ").replace('\\"', '"').split())
        line = BULLET.sub("", line) if len(line) > 2 else line
        line = re.sub(r"^(?:#{1,6}\s+|>+\s*)", "", line)
        line = re.sub(r"(\*\*|__|`{1,3})(.+?)\1", r"\2", line)
        line = re.sub(r"(?<!\w)([*_])(\S(?:.*?\S)?)\1(?!\w)", r"\2", line)
        line = re.sub(r"\\([_*#&%$\-.\[\]()])", r"\1", line)
        line = BOXED.sub(r"\1", line)
        line = re.sub(
            r"\s*[(\[](?:notes?|explanation|changed|changes|as |since |because |I )[^)\]]*[)\]]\.?$",
            "",
            line,
            flags=re.I,
        )
        if inline := INLINE_TAG.match(line):
            line = inline[2].strip()
        for opening, closing in PAIRS:
            inner = line[len(opening) :].removesuffix(".").removesuffix(closing)
            if len(line) > 1 and line.startswith(opening) and line.rstrip(".").endswith(closing) and (
                opening not in inner and closing not in inner
            ):  # fmt: skip
                line = inner.strip()
        line = RULER.sub("", line).replace("**", "").strip("`").strip()
        line = line.strip('"').strip() if line.count('"') % 2 else line
        if line == before:
            break
    return line
