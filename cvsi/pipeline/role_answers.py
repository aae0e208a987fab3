"""Raw answers of readers to texts by role: what is accepted as it is, repaired or refused, with one status each.

An answer should be one JSON object with a list of texts per role (or, with `output: lines`, a line per role). What
surrounds it is removed: reasoning, a code fence, sentences before and after. Of an answer that was cut, the whole texts
are kept. Texts that are no texts, too many or too long are left out or shortened. Whatever differs from the form that
was asked for is named in the status, so nothing is lost without a word. docs/readers.md has the rules.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import category

from cvsi.models.editor import CUT, Answer
from cvsi.models.reader import LONGEST_TEXT
from cvsi.pipeline.answer_forms import FENCE, Unusable, json_value, unmarked, without_tokens
from cvsi.pipeline.answers import UNPRINTABLE, Query, body_of, check_whole, repeats, words
from cvsi.pipeline.loose_json import loose_object
from cvsi.pipeline.role_lines import by_line

LONGEST_RAW = 20_000  # characters of an answer that are read
TRIES = 200  # braces at which an object may begin, and ends at which a cut one may be closed
NAMED = 4  # foreign keys that a status names
COPIED = 4  # words from which a text of an example counts as copied
LONGEST_REASON = 200  # characters of a status's reason
TWICE = "_twice"  # a key of our own: that another one was there twice
NOTHING = re.compile(r"(?:none|nothing|n/?a|not applicable|null|nil|empty|-+)\.?", re.IGNORECASE)
CUT_REPAIR = "cut, whole texts kept"
WRAPPERS = 3  # objects around the object with the roles
LOOSE_TRIES = 10  # braces at which text that is nearly JSON may begin
# Words that models add to a role's name.
ADDED = "s|texts?|lists?|items?|captions?|descriptions?|objects?|elements?|attributes?|images?"


@dataclass(frozen=True)
class Roles:
    """The texts by role, empty lists included, and the status."""

    texts: Mapping[str, list[str]]
    status: str


def parse(answer: Answer, roles: Mapping[str, int], query: Query, lines: bool = False) -> Roles:
    """An answer as texts by role; `roles` has the largest number of texts of each, `lines` is the form asked for."""
    try:
        lists, repairs = _lists(answer, roles, lines)
        texts, refused = dict[str, list[str]](), list[str]()
        for role, most in roles.items():
            texts[role] = _texts(lists.get(role, []), role, most, query, repairs, refused)
        if not any(texts.values()):
            none = "cut: max_tokens reached" if answer.finish == CUT else "no answer: no texts"
            raise Unusable(f"refused: {refused[0]}" if refused else none)
    except Unusable as status:
        return Roles({role: [] for role in roles}, str(status)[:LONGEST_REASON])
    repairs = list(dict.fromkeys([*repairs, *refused]))
    return Roles(texts, f"repaired: {', '.join(repairs)}"[:LONGEST_REASON] if repairs else "ok")


def _lists(answer: Answer, roles: Mapping[str, int], lines: bool) -> tuple[dict[str, Any], list[str]]:
    """The values by role as the answer has them, and what was repaired; raises Unusable where there are none."""
    body, cut = body_of(answer, partial=True), answer.finish == CUT
    if not body.strip():
        raise Unusable("no answer: empty")
    if len(body) > LONGEST_RAW:
        raise Unusable(f"refused: more than {LONGEST_RAW:,} characters")
    repairs = ["reasoning"] if body.strip() != answer.text.strip() else []
    fences = [fence[2].strip() for fence in FENCE.finditer(body) if fence[2].strip()]
    repairs += ["code"] if fences else []
    content = fences[-1] if fences else body.strip()
    if lines and "{" not in content and (found := by_line(content, roles)):
        return _whole_lines(found, cut), [*repairs, *_cut_line(cut), *_missing(found, roles)]
    for text in dict.fromkeys((*reversed(fences), body.strip(), without_tokens(body), _unescaped(body))):
        if with_repairs := _object(text, roles, cut):
            values, more = with_repairs
            more += ["escaped quotes"] if text == _unescaped(body) != body else []
            return values, [*repairs, *more, *_missing(values, roles)]
    if found := by_line(without_tokens(content), roles) or by_line(without_tokens(body), roles):
        repairs += [*([] if lines else ["lines instead of JSON"]), *_cut_line(cut)]
        return _whole_lines(found, cut), [*repairs, *_missing(found, roles)]
    raise Unusable(_why_none(body, roles, cut))


def _unescaped(text: str) -> str:
    """A text in which JSON stands as a text within JSON, with its quotes as they are meant."""
    return text.replace('\\\\"', '"').replace('\\"', '"') if '\\"' in text else text


def _object(text: str, roles: Mapping[str, int], cut: bool) -> tuple[dict[str, Any], list[str]] | None:
    """The last object of a text that has a role, as values by role, and what was repaired; None without one."""
    objects = [(value, alone) for value, alone in _objects(text) if _has_role(value, roles)]
    if objects:
        values, alone = objects[-1]
        repairs = [] if alone else ["text around the JSON"]
    elif (value := _literal(text)) is not None and _has_role(value, roles):
        values, repairs = value, ["JSON with other quotes or commas"]
    elif (value := _loose(text, roles, whole=True)) is not None:
        values, repairs = value, ["JSON with other quotes or commas"]
    elif (value := _closed(text)) is not None and _has_role(value, roles):
        values, repairs = value, [CUT_REPAIR if cut else "JSON without an end"]
    elif (value := _loose(text, roles, whole=False)) is not None:
        values, repairs = value, ["JSON with other quotes or commas", CUT_REPAIR if cut else "JSON without an end"]
    elif value := _entries(text, roles):
        values, repairs = value, ["a list of roles"]
    else:
        return None
    inner = _unwrapped(values, roles)
    repairs += ["inside another object"] if inner is not values else []
    for earlier, _ in reversed(objects[:-1]):  # an object per role; with the same roles it is a draft
        other = _unwrapped(earlier, roles)
        if not roles.keys() & other.keys() & inner.keys():
            inner, repairs = other | inner, [*repairs, "several objects"]
    inner, renamed = _renamed(inner, roles)
    repairs += renamed
    foreign = [key for key in inner if key not in roles and key != TWICE]
    repairs += ["a key twice"] if TWICE in inner else []
    repairs += [f"other roles ({', '.join(foreign[:NAMED])})"] if foreign else []
    return {role: inner[role] for role in roles if role in inner}, repairs


def _loose(text: str, roles: Mapping[str, int], whole: bool) -> dict[str, Any] | None:
    """The last object of a text that is nearly JSON and has a role; with `whole`, only one that ends."""
    starts = [match.start() for match in re.finditer("{", text)][:LOOSE_TRIES]
    for start in starts if not whole else reversed(starts):
        read = loose_object(text, start, _mapping)
        if read is not None and (read[1] or not whole) and _has_role(read[0], roles):
            return read[0]
    return None


def _entries(text: str, roles: Mapping[str, int]) -> dict[str, Any]:
    """The values by role of objects that each name a role and have its texts, such as `{"role": "target", "text": ..}`.

    An object with anything else is left out.
    """
    found = list[tuple[str, Any]]()
    for entry, _ in _objects(text):
        named = {key: value.strip().casefold() for key, value in entry.items() if isinstance(value, str)}
        keys = [key for key, value in named.items() if value in roles]
        if len(entry) == 2 and len(keys) == 1:
            found += [(named[keys[0]], value) for key, value in entry.items() if key != keys[0]]
    joined = _mapping(found)
    return {key: value for key, value in joined.items() if key != TWICE}


def _literal(text: str) -> dict[str, Any] | None:
    """The object that a text begins with, in Python's notation; None without one."""
    start = text.find("{")
    value = json_value(text[start:]) if start >= 0 else None
    return _mapping(value.items()) if isinstance(value, dict) else None


def _objects(text: str) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every JSON object of a text that is not within another one, and whether the text is nothing else."""
    decoder, at = (
        json.JSONDecoder(strict=False, object_pairs_hook=_mapping),
        text.find("{"),
    )  # grammars allow line breaks within texts
    for _ in range(TRIES):
        if at < 0:
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
            continue
        yield value, not (text[:at].strip() or text[end:].strip())
        at = text.find("{", end)


def _closed(text: str) -> dict[str, Any] | None:
    """The object that a text begins and does not end, as far as its values are whole; None without one."""
    start = text.find("{")
    ends, closers = list[tuple[int, str]](), list[str]()
    inside = escaped = False
    for number in range(max(start, 0), len(text) if start >= 0 else 0):
        sign = text[number]
        if inside:
            inside = escaped or sign != '"'
            escaped = sign == "\\" and not escaped
        elif sign == '"':
            inside, escaped = True, False
        elif sign in "{[":
            closers.append("}" if sign == "{" else "]")
        elif sign in "}]" and closers:
            closers.pop()
        if not inside and sign in '"}][':
            ends.append((number + 1, "".join(reversed(closers))))
    for end, closing in reversed(ends[-TRIES:]):
        try:
            value = json.loads(text[start:end] + closing, strict=False, object_pairs_hook=_mapping)
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    return None


def _unwrapped(value: dict[str, Any], roles: Mapping[str, int]) -> dict[str, Any]:
    """The object with the roles, which may be the only value of objects around it."""
    for _ in range(WRAPPERS):
        inner = [item for item in value.values() if isinstance(item, dict)]
        if not roles.keys().isdisjoint(value) or len(inner) != 1:
            break
        value = _mapping(inner[0].items())
    return value


def _has_role(value: dict[str, Any], roles: Mapping[str, int]) -> bool:
    return not roles.keys().isdisjoint(_renamed(_unwrapped(value, roles), roles)[0])


def _renamed(value: dict[str, Any], roles: Mapping[str, int]) -> tuple[dict[str, Any], list[str]]:
    """An object in which a missing role's name with a word more is the role, and which keys were renamed."""
    names = dict[str, str]()
    for role in roles:
        more = [key for key in value if re.fullmatch(rf"{re.escape(role)}_?(?:{ADDED})", key)]
        if role not in value and len(more) == 1:
            names[more[0]] = role
    renamed = {names.get(key, key): item for key, item in value.items()}
    return renamed, [f"{key} for {role}" for key, role in names.items() if key not in roles]


def _mapping(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """An object's values by key in the form of a role's name; of keys that are equal then, the values are joined."""
    values = dict[str, Any]()
    for key, value in pairs:
        name = "_".join(re.findall(r"\w+", str(key).casefold()))
        if name in values and name != TWICE:
            both = [item if isinstance(item, list) else [item] for item in (values[name], value)]
            values |= {name: [*both[0], *both[1]], TWICE: True}
        else:
            values[name] = value
    return values


def _whole_lines(texts: dict[str, Any], cut: bool) -> dict[str, Any]:
    """The texts of lines without the last one, where the answer was cut."""
    last = next(reversed(texts))
    return texts | {last: texts[last][:-1]} if cut else texts


def _cut_line(cut: bool) -> list[str]:
    return [CUT_REPAIR] if cut else []


def _missing(values: Mapping[str, Any], roles: Mapping[str, int]) -> list[str]:
    missing = [role for role in roles if role not in values]
    return [f"without {' and '.join(missing)}"] if missing else []


def _why_none(text: str, roles: Mapping[str, int], cut: bool) -> str:
    """The status of an answer without any role."""
    if cut:
        return "cut: max_tokens reached"
    foreign = [key for value, _ in _objects(text) for key in value if key != TWICE]
    if foreign:
        return f"refused: other roles alone ({', '.join(foreign[:NAMED])})"
    return f"refused: no JSON object with {' or '.join(roles)}"


def _texts(value: Any, role: str, most: int, query: Query, repairs: list[str], refused: list[str]) -> list[str]:
    """The texts of one role; what was left out or changed is added to `repairs` and `refused`."""
    if not isinstance(value, list):
        repairs.append(f"{role} is no list")
        inner = [item for item in value.values() if isinstance(item, list)] if isinstance(value, dict) else []
        value = [] if value is None else inner[0] if len(inner) == 1 == len(value) else [value]
    if value and all(isinstance(item, list) for item in value):
        repairs.append(f"{role}: lists within a list")
        value = [one for item in value for one in item]
    texts = list[str]()
    for item in value:
        item = _only_text(item)
        if item is None:
            refused.append(f"an entry of {role} is no text")
            continue
        try:
            text = _text(item, query)
        except Unusable as status:
            refused.append(f"{role}: {str(status).removeprefix('refused: ')}")
            continue
        if text != " ".join(item.split()) and text:
            repairs.append(f"{role}: {'shortened' if len(item) > LONGEST_TEXT else 'markup'}")
        if text and text.casefold() not in map(str.casefold, texts):
            texts.append(text)
        else:
            repairs.append(f"{role}: {'duplicates' if text else 'nothing'}")
    if len(texts) > most:
        repairs.append(f"{role}: the first {most} of {len(texts)}")
    return texts[:most]


def _only_text(item: Any) -> str | None:
    """An entry's text; an object with one text has it, too."""
    if isinstance(item, dict):
        inner = [value for value in item.values() if isinstance(value, str)]
        return inner[0] if len(inner) == 1 else None
    return item if isinstance(item, str) else None


def _text(raw: str, query: Query) -> str:
    """One text on one line, empty where it says nothing; raises Unusable for what describes no part of an image."""
    line = " ".join(raw.split())
    if not UNPRINTABLE.isdisjoint(map(category, line)):
        raise Unusable("refused: control characters")
    text = unmarked(without_tokens(line)) if line else ""
    if not text or NOTHING.fullmatch(text):
        return ""
    text = shortened(text)
    check_whole(text, query)
    if repeats(words(text)):
        raise Unusable("refused: repeats itself")
    if _copied(text, query.examples) and text.casefold() not in query.own:
        raise Unusable("refused: repeats an example")
    return text


def _copied(text: str, examples: Sequence[str]) -> bool:
    """Whether a text of some length is one of the examples'."""
    spoken = words(text)
    return len(spoken) >= COPIED and any(spoken == words(example) for example in examples)


def shortened(text: str) -> str:
    """A text of at most `LONGEST_TEXT` characters: its whole sentences, or its whole words."""
    if len(text) <= LONGEST_TEXT:
        return text
    beginning = text[: LONGEST_TEXT + 1]
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", beginning)]
    return text[: ends[-1]] if ends else beginning.rpartition(" ")[0].rstrip(",;") or text[:LONGEST_TEXT]
