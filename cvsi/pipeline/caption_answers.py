"""Raw answers of a vision model to captions: what is accepted as it is, repaired or refused, each with a status.

The statuses are those of edits. What surrounds a caption is removed (reasoning, a label, quotes, JSON, markup, a polite
beginning, offers of further help); of a caption that was cut, the whole sentences are kept. Words that a caption may
have are accepted, unlike in an edit: a picture may show instructions, and a description may speak of an image.
"""

import re
from collections.abc import Sequence

from cvsi.models.editor import CUT, Answer
from cvsi.pipeline.answer_forms import ANSWER_TAG, BULLET, POLITE, Unusable, fenced, json_value, text_of, unmarked
from cvsi.pipeline.answers import (
    DECLINES,
    NO_TEXT,
    SENTENCE_END,
    Parsed,
    check_form,
    content_of,
    repeats,
    words,
)
from cvsi.pipeline.reasoning import without_reasoning

NAMES = r"(?:captions?|descriptions?|sentences?|alt[ -]?text|summary|answer)"
PREAMBLE = re.compile(  # a colon before a digit is a time of day: "Here is a clock at 12:30"
    rf"""{POLITE}?\s*(?:
        here(?:'s|\u2019s|\ is|\ are|\ you\ go|\ it\ is)\b[^:\n]{{0,160}}
        | (?:this|below|the\ following)\ is[^:\n]{{0,80}}\b{NAMES}\b[^:\n]{{0,80}}
        | (?:one|an?|my|the)\s+(?:(?:image|photo|picture|short|brief|concise|possible|suitable|detailed|accurate
            |(?:one|single)[ -]sentence)\s+)*{NAMES}\b(?:\s+(?:of|for)\s[^:\n]{{0,60}}|\s+(?:is|would\ be))?
    ):(?!\d)\s*""",
    re.IGNORECASE | re.VERBOSE,
)
LABEL = re.compile(
    rf"""[\#>*_`"'(\[\s]*(?:(?:final|short|brief|detailed|image|photo|picture|one-sentence)\s+)*
    (?:{NAMES}|image|photo|picture|output|result|response|assistant|title)(?:\s*\#?\d{{1,2}})?
    [*_`"')\]]*\s*[:\uff1a](?!\d)[*_`"')\]\s]*""",
    re.IGNORECASE | re.VERBOSE,
)
NO_IMAGE = re.compile(
    r"""\b(?:no|not|n't|haven't|hasn't|didn't|without)\b.{0,40}\b(?:images?|photos?|pictures?)\b.{0,40}
        \b(?:provided|attached|uploaded|shared|included|received|available|loaded)\b
    | \b(?:images?|photos?|pictures?)\b.{0,30}\b(?:was|is|were|has|did|could)(?:\ not|n't)\b.{0,20}
        \b(?:provided|attached|uploaded|shared|included|received|visible|loaded|load|been)\b
    | \b(?:please|kindly|could\ you|can\ you)\b.{0,40}\b(?:provide|share|upload|attach|send)\b""",
    re.IGNORECASE | re.VERBOSE,
)
OFFERS = re.compile(
    r"""\b(?:let\ me\ know|feel\ free|I\ hope|hope\ (?:this|that)|would\ you\ like|do\ you\ want|if\ you(?:'d|\ would)?
        \ (?:like|need|want|have)|I\ can\ (?:also|provide|help)|is\ there\ anything)\b""",
    re.IGNORECASE | re.VERBOSE,
)
QUOTED = re.compile(r'"[^"]*"|\u201c[^\u201d]*\u201d')  # what a sign in the picture says


def parse(answer: Answer) -> Parsed:
    """An answer as one caption on one line."""
    try:
        raw = content_of(answer, partial=True)
        cut = answer.finish == CUT
        text, repair = _text(raw, cut)
        repair = "reasoning" if without_reasoning(answer.text) != answer.text else repair
        _check(text)
    except Unusable as status:
        return Parsed(None, str(status))
    if repair or text != " ".join(raw.split()):
        return Parsed(text, f"repaired: {repair or 'markup'}")
    return Parsed(text, "ok")


def _text(raw: str, cut: bool) -> tuple[str, str]:
    """The caption in a text, and what was removed around it; raises Unusable where there is none."""
    text, repair = raw, ""
    if tagged := ANSWER_TAG.search(text):
        text, repair = tagged[2], "tag"
    text, code = fenced(text)
    repair = repair or code
    content = json_value(text) if text[:1] in "{[" else None
    if content is not None and (value := text_of(content, "edited")) is not None:
        return " ".join(value.split()), "JSON"
    if isinstance(content, list):
        raise Unusable("refused: a list instead of one caption")
    if text[:1] == "{":
        raise Unusable("cut: max_tokens reached" if cut else "refused: JSON without a text")
    bare = _without_beginning(text)
    repair = repair or ("preamble" if bare != text.strip() else "")
    lines, more = _first_paragraph(bare)
    plain = " ".join(filter(None, map(unmarked, lines)))
    sentences = SENTENCE_END.split(plain)
    if cut and not more:
        sentences = sentences if plain.endswith((".", "!", "?")) else sentences[:-1]
        if not sentences:
            raise Unusable("cut: max_tokens reached")
        repair = "cut to whole sentences"
    while len(sentences) > 1 and OFFERS.search(_straight(sentences[-1])):
        sentences, more = sentences[:-1], True
    return " ".join(sentences), repair or ("commentary" if more else "")


def _without_beginning(text: str) -> str:
    """A text without a polite beginning, a preamble and a label."""
    before = None
    text = text.strip()
    while text != before:
        before = text
        for pattern in (PREAMBLE, LABEL):
            match = pattern.match(text)
            rest = text[match.end() :].strip() if match else ""
            text = rest or text
        polite = re.match(POLITE, text, re.IGNORECASE)
        if polite and polite[0].rstrip()[-1:] in ",.!:" and text[polite.end() :].strip():
            text = text[polite.end() :].strip()
    return text


def _first_paragraph(text: str) -> tuple[list[str], bool]:
    """The lines of the first paragraph that is one, and whether something follows; raises Unusable for a list."""
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip(" -*_=#\n")]
    if not paragraphs:
        raise Unusable("refused: no words")
    lines = [line.strip() for line in paragraphs[0].split("\n") if line.strip()]
    if sum(BULLET.match(line) is not None for part in paragraphs for line in part.split("\n")) > 1:
        raise Unusable("refused: a list instead of one caption")
    return lines, len(paragraphs) > 1


def _check(text: str) -> None:
    """Raise Unusable for a text that describes no image."""
    check_form(text)
    own = _straight(text)
    for pattern, reason in _REASONS:
        if pattern.search(own):
            raise Unusable(f"refused: {reason}")
    if repeats(words(text)):
        raise Unusable("refused: repeats itself")


_REASONS: Sequence[tuple[re.Pattern[str], str]] = (
    (NO_TEXT, "an error, an address or a placeholder"),
    (NO_IMAGE, "the model got no image"),
    (DECLINES, "the model declines"),
)


def _straight(text: str) -> str:
    """A text with straight apostrophes and without what is quoted in it, unless it is nothing but a quotation."""
    return (QUOTED.sub('""', text) if QUOTED.sub("", text).strip(" .") else text).replace("\u2019", "'")
