"""Text that is nearly JSON to its value, as language models write it: for answers that a JSON parser refuses.

Other quotes, quotes within texts, keys and values without quotes, missing or doubled commas, `=` for a colon, comments,
and an end that is missing. Of what is not ended, the whole values are kept.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

DEPTH = 12  # lists and objects within each other
QUOTES = {
    '"': '"', "'": "'", "`": "`", "\u201c": "\u201d\u201c", "\u201d": "\u201d", "\u201e": "\u201c\u201d",
    "\u2018": "\u2019\u2018", "\u2019": "\u2019", "\u00ab": "\u00bb", "\uff02": "\uff02", "\u300c": "\u300d",
}  # fmt: skip
COMMAS, COLONS = ",;\uff0c\u3001", ":=\uff1a"
CLOSING = frozenset(f"]}}){COMMAS}{COLONS}")
APOSTROPHES = "'\u2019`"  # at the end of a text that was cut, perhaps not its end
# Blanks and comments, which are short: an unended one must not be looked for at every quote.
SPACE = re.compile(r"(?:\s|//[^\n]{0,80}|#[^\n]{0,80}|/\*.{0,80}?\*/)*", re.DOTALL)
BARE = re.compile(rf"[^\n\]\}}{COMMAS}{COLONS}]+")
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
WORDS: dict[str, Any] = {"null": None, "none": None, "true": True, "false": False}
Pairs = Callable[[Iterable[tuple[Any, Any]]], dict[str, Any]]


class _Ended(Exception):
    """The text ended within a value."""


class _Refused(Exception):
    """What is there is no value."""


def loose_object(text: str, start: int, pairs: Pairs) -> tuple[dict[str, Any], bool] | None:
    """The object that begins at a brace of a text, and whether it ends; None where there is none.

    `pairs` makes a dictionary from keys and values.
    """
    parser = _Parser(text, start, pairs)
    try:
        value = parser.value(0)
    except (_Ended, _Refused):
        return None
    return (value, not parser.open) if isinstance(value, dict) else None


class _Parser:
    """Reads one value from a place in a text; `open` says that the text ended before it did."""

    def __init__(self, text: str, at: int, pairs: Pairs) -> None:
        self.text, self.at, self.pairs, self.open = text, at, pairs, False

    def value(self, depth: int) -> Any:
        """The value that begins here; raises _Ended for a text that is not whole, _Refused for another sign."""
        sign = self._next()
        if depth > DEPTH:
            raise _Refused
        if sign in "{[(":
            self.at += 1
            return self.pairs(self._members(depth)) if sign == "{" else self._items("]" if sign == "[" else ")", depth)
        return self._quoted() if sign in QUOTES else self._bare()

    def _members(self, depth: int) -> list[tuple[Any, Any]]:
        """The keys and values up to the closing brace, or up to the end of the text."""
        members = list[tuple[Any, Any]]()
        try:
            while (sign := self._next(COMMAS)) != "}":
                key = self._quoted() if sign in QUOTES else self._key()
                if self._next() not in COLONS:
                    raise _Refused
                self.at += 2 if self.text.startswith("=>", self.at) else 1
                members.append((key, self.value(depth + 1)))
                if self.open:
                    return members
            self.at += 1
        except _Ended:
            self.open = True
        return members

    def _items(self, closing: str, depth: int) -> list[Any]:
        items = list[Any]()
        try:
            while (sign := self._next(COMMAS)) != closing:
                if sign == "}":  # the list was not ended
                    return items
                items.append(self.value(depth + 1))
                if self.open:
                    return items
            self.at += 1
        except _Ended:
            self.open = True
        return items

    def _next(self, skipped: str = "") -> str:
        """The next sign that is no blank, no comment and none of `skipped`; raises _Ended at the end."""
        while True:
            match = SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at >= len(self.text):
                raise _Ended
            if self.text[self.at] not in skipped or not skipped:
                return self.text[self.at]
            self.at += 1

    def _quoted(self) -> str:
        """A text in quotes: it ends at a quote that a comma, a colon, a bracket or another text follows."""
        ends, written = QUOTES[self.text[self.at]], list[str]()
        self.at += 1
        while self.at < len(self.text):
            sign = self.text[self.at]
            if sign == "\\" and self.at + 1 < len(self.text):
                written.append(self._escaped())
                continue
            self.at += 1
            if sign in ends and self._ends_here(sign):
                return _joined(written)
            written.append(sign)
        raise _Ended

    def _ends_here(self, quote: str) -> bool:
        match = SPACE.match(self.text, self.at)
        after = match.end() if match else self.at
        if after >= len(self.text):
            return quote not in APOSTROPHES
        if self.text[after] in CLOSING:
            return True
        return after > self.at and self.text[after] in QUOTES  # a comma is missing

    def _escaped(self) -> str:
        sign = self.text[self.at + 1]
        digits = self.text[self.at + 2 : self.at + 6]
        if sign == "u" and re.fullmatch("[0-9a-fA-F]{4}", digits):
            self.at += 6
            return chr(int(digits, 16))
        self.at += 2
        return ESCAPES.get(sign, sign)

    def _key(self) -> str:
        match = re.compile(r"\w[\w -]*").match(self.text, self.at)
        if match is None:
            raise _Refused
        self.at = match.end()
        return match[0].strip()

    def _bare(self) -> Any:
        """A value without quotes, up to the next comma, bracket or line; a number and a word are no texts."""
        match = BARE.match(self.text, self.at)
        if match is None or not (word := match[0].strip()):
            raise _Refused
        self.at = match.end()
        if self.at >= len(self.text):
            raise _Ended  # perhaps not the whole value
        if word.casefold() in WORDS:
            return WORDS[word.casefold()]
        return float(word) if re.fullmatch(r"-?\d+(?:\.\d+)?", word) else word


def _joined(signs: list[str]) -> str:
    """A text of its signs, in which two halves of one sign that were escaped apart are one."""
    return "".join(signs).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
