"""Lines, headings, a table or tags to texts by role: the forms of a reader's answer that are no JSON."""

import re
from collections.abc import Mapping
from typing import Any

from cvsi.pipeline.answer_forms import BULLET


def by_line(text: str, roles: Mapping[str, int]) -> dict[str, Any]:
    """The texts by role of lines `role: text; text`; lines after one, without a label of their own, belong to it."""
    names = "|".join(map(re.escape, roles))
    label = re.compile(
        rf"^(?:\s*\(?\d+[.)])?[\s>#*_`\"'\[(|-]*({names})[\s*_`\"'\])]*(?:[:\uff1a=|]|-\s)[\s*_`]*(.*)$",
        re.IGNORECASE,
    )
    tags = rf"<({names})>([^<]*)</\1>"
    text = re.sub(tags, lambda match: f"\n{match[1]}: {' '.join(match[2].split())}\n", text, flags=re.I)
    text = re.sub(rf"^#+[ \t]*({names})[ \t]*:?[ \t]*\n\s*", r"\1:\n", text, flags=re.IGNORECASE | re.MULTILINE)
    # Labels one after the other on a line begin lines of their own.
    text = re.sub(rf"(?<=\S)[,;.]?[ \t]+({names})[ \t]*:(?=\s)", r"\n\1:", text, flags=re.IGNORECASE)
    texts, current, blank = dict[str, list[str]](), "", False
    for line in text.split("\n"):
        if match := label.match(line):
            current, blank = match[1].casefold(), False
            texts.setdefault(current, []).extend(_items(match[2].rstrip(" |")))
        elif not line.strip():
            blank = True
        elif current and (BULLET.match(line.strip()) or not (texts[current] or blank)):
            texts[current] += _items(line)
        else:
            current = ""
    return dict(texts)


def _items(line: str) -> list[str]:
    return [item.strip() for item in line.strip().strip("[]").split(";") if item.strip()]
