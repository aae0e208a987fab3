"""Raw answers of a language model to texts: what is accepted as it is, repaired or refused, each with a status.

A model answers as it likes: with its reasoning, a label, a list, JSON, markup, a polite beginning, or not to the
question at all. What an answer says is kept, what surrounds it is removed, and whatever cannot be a description of an
image (or a list of objects) is refused. Parsing happens when the stage writes its output, so that a better parser
needs no further call of the model. docs/editors.md has the rules.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unicodedata import category

from cvsi.core.statuses import usable
from cvsi.models.editor import CUT, FAILED, FILTERED, REFUSED, TOO_LONG, Answer
from cvsi.pipeline.answer_forms import POLITE, Unusable, extracted, fenced, json_value, without_tokens
from cvsi.pipeline.reasoning import without_reasoning

UNPRINTABLE = frozenset({"Cc", "Cs"})  # Unicode's categories
LONGEST = 2000  # characters of a text
RUN = 4  # words that count as copied from an example
LONGEST_RAW = 6000  # characters of an answer with all that surrounds its text
TAG = re.compile(r"</?[a-z!?][^<>]*>", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\[*])")
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
NOTHING = re.compile(
    r"""^(?:there\ (?:is|are|would\ be)\ )?
    (?:none|no|nothing|n/?a|not\ applicable|null|nil|empty|no\ one|nobody
      |no(?:\ (?:new|additional|other|further|specific|extra))*
       (?:\ (?:objects?|items?|things?|elements?|additions?|people))+)
    (?:\ (?:is|are|was|were|has\ been|have\ been|would\ be|likely|most\ likely|being|to\ be|new|else|here|at\ all
      |specified|mentioned|needed|added))*
    (?:\ (?:to|in)\ the\ (?:image|photo|scene|picture))?$
    | ^(?:none|nothing|n/a)\s*[,.;:(-]""",
    re.IGNORECASE | re.VERBOSE,
)
SUBJECT = {  # how a sentence may begin that names what it describes
    "edited": re.compile(
        r"""^(?:in\ )?the\ (?:
        (?:edited|new|other|modified|updated|final|resulting|target|second|changed|revised|altered)\ (?:
        (?:image|photo|picture)(?:\ (?:description|caption|content))?\ (?:is\ of|shows|features|depicts|displays
          |contains|has|would\ show|should\ show)
        | (?:(?:image|photo|picture)\ )?(?:description|caption)\ (?:is|would\ be|should\ be|could\ be|reads)
        | (?:image|photo|picture),(?:\ there\ (?:is|are))?
        ) | (?:image|photo|picture)\ now\ (?:shows|features|depicts|displays|contains|has)
        )[:,]?\ """,
        re.IGNORECASE | re.VERBOSE,
    ),
    "added": re.compile(
        r"""^the\ (?:\w+\ ){0,2}?(?:objects?|items?|elements?|things?)(?:\ that\ (?:is|are|was|were))?
        (?:\ most)?(?:\ likely)?(?:\ to\ be)?(?:\ added)?(?:\ to\ the\ (?:image|photo))?
        \ (?:is|are|would\ be|include|includes|might\ be|could\ be)[:,]?\ """,
        re.IGNORECASE | re.VERBOSE,
    ),
}
DECLINES = re.compile(
    r"""\bI(?:'m|\ am)\ (?:sorry|unable|not\ able|an?\ (?:AI|language|assistant))
    | \bI\ (?:can(?:not|'t|\ not)|do\ not|don't|won't|apologi[sz]e)
    | \bas\ an?\ (?:AI|language\ model|artificial)
    | \b(?:sorry|apologies|unfortunately)\b[,.\ ]
    | \b(?:unable|not\ possible|impossible)\ to\ (?:\w+\ )?(?:describe|determine|answer|edit|generate|provide|assist)
    | \bcannot\ (?:be\ determined|assist|help|comply|provide|describe)
    | \bagainst\ (?:my|the)\ (?:guidelines|policy)""",
    re.IGNORECASE | re.VERBOSE,
)
ASKS = re.compile(
    r"""\b(?:please|kindly|could\ you|can\ you|would\ you)\b.{0,40}\b(?:provide|share|upload|specify|give|clarify
      |describe|tell|send|enter|rephrase)
    | \b(?:no|not|n't|haven't|hasn't|didn't|without)\b.{0,40}\b(?:provided|attached|uploaded|specified|given)\b
    | \b(?:image|photo|picture|description|input)\ (?:is|was|seems)\ (?:missing|empty|not)\b
    | ^(?:hello|hi|hey|welcome)\b[,!]
    | \bmore\ (?:information|context)\b | \bmore\ details\ (?:are|is)\ (?:needed|required)
    | \b(?:let\ me\ know|feel\ free|how\ (?:can|may)\ I|I(?:'d|\ would)\b|I\ need\ more
      |what\ would\ you\ like)""",
    re.IGNORECASE | re.VERBOSE,
)
NO_TEXT = re.compile(
    r"""^(?:\W*(?:error|exception|traceback|warning|task)\b\W*:|internal\ server\ error
      |(?:[45]\d\d\ )?(?:bad\ (?:gateway|request)|service\ unavailable
        |gateway\ time-?out|not\ found|too\ many\ requests|unauthorized|forbidden))
    | ^\W*(?:undefined|nan|null|object\ object|todo|tbd|test|unknown|untitled|placeholder|lorem\ ipsum.*)\W*$
    | https?://|\bdata:\w+/|!\[|\\(?:begin|end)\b""",
    re.IGNORECASE | re.VERBOSE,
)
OF_THE_TASK = re.compile(
    r"""\b(?:instructions?|descriptions?|captions?|prompts?|image\ content|objects?\ (?:most\ )?likely|user|assistant
    | json
    | edited\ (?:image|photo|picture)s?
    | (?:this|my|your|the)\ (?:edit|answer|response|question|request)s?
    | (?:original|reference|source)\ (?:image|photo|picture)
    | (?:the|this)\ (?:other|second|new|first|edited)\ (?:image|photo|picture)
    | as\ (?:requested|instructed)|no\ changes?|unchanged|same\ as\ before
    | (?:has|have)\ been\ (?:replaced|changed|edited|modified)
    | I(?:'ve|'ll|'m|\ have|\ will|\ would|\ can|\ am|\ think|\ changed|\ added|\ removed|\ kept)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class Parsed:
    """A text and its status; None where the answer cannot be used."""

    text: str | None
    status: str

    @property
    def usable(self) -> bool:
        """Whether the text is used: `ok` or `repaired`."""
        return usable(self.status)


@dataclass(frozen=True)
class Query:
    """What an answer is compared with: the query's captions and instruction, and the texts of the prompt's examples."""

    captions: Sequence[str]
    instruction: str
    examples: Sequence[str] = ()

    @cached_property
    def own(self) -> str:
        """The captions and the instruction as one text in lower case."""
        return "\n".join([*self.captions, self.instruction]).casefold()

    @cached_property
    def own_words(self) -> frozenset[str]:
        """The words of the captions and the instruction."""
        return frozenset(words(self.own))

    @cached_property
    def example_runs(self) -> frozenset[tuple[str, ...]]:
        """All runs of `RUN` words in the examples."""
        return frozenset(run for text in self.examples for run in runs(words(text), RUN))


def parse(answer: Answer, task: str, query: Query) -> Parsed:
    """The answer to one task (`edited`: one description, `added`: a short list of objects) as one line of text.

    Nothing added is an empty text with the status `ok`.
    """
    try:
        raw = content_of(answer)
        text, repair = extracted(raw, task)
        return _accepted(text, repair, raw, task, query)
    except Unusable as status:
        return Parsed(None, str(status))


def parse_both(answer: Answer, query: Query) -> tuple[Parsed, Parsed]:
    """The answer with both tasks as JSON (`output: json`): the description and the objects, each with its status."""
    try:
        raw = content_of(answer)
        content = json_value(fenced(raw)[0].strip())
        if not isinstance(content, dict):
            raise Unusable("refused: no JSON object with edited and added")
    except Unusable as status:
        return Parsed(None, str(status)), Parsed(None, str(status))
    return _value(content, "edited", query), _value(content, "added", query)


def _value(content: dict[str, Any], task: str, query: Query) -> Parsed:
    value = content.get(task)
    value = ", ".join(map(str, value)) if isinstance(value, list) else value
    if value is None or (task == "added" and value == ""):
        return Parsed("", "ok") if task == "added" and task in content else Parsed(None, f"no answer: no key {task}")
    if not isinstance(value, str):
        return Parsed(None, f"refused: {task} is no text")
    return parse(Answer(value), task, query)


def content_of(answer: Answer, partial: bool = False) -> str:
    """The text without reasoning and special tokens; raises Unusable where the finish reason or the text forbid it.

    With `partial`, a text that was cut is returned as far as it goes.
    """
    text = body_of(answer, partial)
    if len(text) > LONGEST_RAW:
        raise Unusable(f"refused: more than {LONGEST:,} characters")
    text = without_tokens(text)
    if not text:
        raise Unusable("no answer: empty")
    if not UNPRINTABLE.isdisjoint(map(category, text.replace("\n", ""))):
        raise Unusable("refused: control characters")
    return text


def body_of(answer: Answer, partial: bool = False) -> str:
    """The text without reasoning, see `content_of`."""
    finish = answer.finish
    if finish == TOO_LONG:
        raise Unusable("too long")
    if finish == FILTERED:
        raise Unusable("refused: content filter")
    if finish.startswith(REFUSED):
        raise Unusable(finish)
    if finish.startswith(FAILED):
        raise Unusable(f"no answer: {finish.removeprefix(FAILED)}")
    text = without_reasoning(answer.text)
    if finish == CUT and not (partial and text and text.strip()):
        raise Unusable("cut: max_tokens reached" + (" while reasoning" if text is None else ""))
    if text is None or (not text.strip() and answer.text.strip()):
        raise Unusable("no answer: reasoning alone")
    return text


def _accepted(text: str, repair: str, raw: str, task: str, query: Query) -> Parsed:
    """The text, if it can be a description or a list of objects; raises Unusable with the reason."""
    if nothing := _says_nothing(text):
        if task == "added":
            return Parsed("", "ok")
        raise Unusable(f"refused: says {nothing!r}")
    polite = re.match(POLITE, text, re.IGNORECASE)
    text = text[polite.end() :].lstrip() if polite and polite[0].rstrip()[-1:] in ",.!:" else text
    check_whole(text, query)
    sentences = SENTENCE_END.split(text)
    while len(sentences) > 1 and any(_matches(pattern, sentences[-1], query) for pattern in (OF_THE_TASK, ASKS)):
        sentences.pop()
        repair = repair or "commentary"
    text = SUBJECT[task].sub("", " ".join(sentences)).strip()
    if task == "added" and _says_nothing(text):
        return Parsed("", "ok")
    _check_sentence(text, query)
    if text == " ".join(raw.split()):
        return Parsed(text, "ok")
    return Parsed(text, f"repaired: {repair or 'markup'}")


def _says_nothing(text: str) -> str:
    """The words by which an answer says that there is nothing, or an empty text."""
    bare = text.strip(" .!()[]{}<>\"'*-").casefold()
    return bare if NOTHING.match(bare) else ""


def check_form(text: str) -> None:
    """Raise Unusable for a text without words, of too many characters, with a tag, or cut at its end."""
    if not any(map(str.isalpha, text)):
        raise Unusable("refused: no words")
    if len(text) > LONGEST:
        raise Unusable(f"refused: more than {LONGEST:,} characters")
    if TAG.search(text):
        raise Unusable("refused: a tag")
    if text.rstrip(" *_").endswith((":", "\uff1a")):
        raise Unusable("refused: ends in a colon")
    if text.endswith(("...", "\u2026")):
        raise Unusable("refused: ends in an ellipsis")


def check_whole(text: str, query: Query) -> None:
    """Raise Unusable for a text that is no answer at all."""
    check_form(text)
    if _matches(NO_TEXT, text, query):
        raise Unusable("refused: an error, an address or a placeholder")
    if _matches(DECLINES, text, query):
        raise Unusable("refused: the model declines")


def _check_sentence(text: str, query: Query) -> None:
    """Raise Unusable for a text that is not about an image, is copied from an example, or repeats itself."""
    if _matches(ASKS, text, query):
        raise Unusable("refused: asks for more")
    if text.rstrip("\"'").endswith("?") and "?" not in query.instruction:
        raise Unusable("refused: a question")
    if _matches(OF_THE_TASK, text, query):
        raise Unusable("refused: speaks of the task")
    if _copied(text, query):
        raise Unusable("refused: repeats an example")
    if repeats(words(text)):
        raise Unusable("refused: repeats itself")


def _matches(pattern: re.Pattern[str], text: str, query: Query) -> bool:
    """Whether a text has the pattern in words that the query itself does not have (`a sign with instructions`)."""
    straight = text.replace("\u2019", "'")
    return any(match[0].casefold() not in query.own for match in pattern.finditer(straight))


def _copied(text: str, query: Query) -> bool:
    """Whether a run of words is from an example and not from the query, whose words may form the same run."""
    return any(run in query.example_runs and not query.own_words.issuperset(run) for run in runs(words(text), RUN))


def repeats(sequence: Sequence[str]) -> bool:
    """Whether words go round in a circle: a word or phrase three times in a row, or six words twice."""
    for size in range(1, 9):
        for start in range(len(sequence) - 3 * size + 1):
            first, second, third = (sequence[start + k * size : start + (k + 1) * size] for k in range(3))
            if first == second == third:
                return True
    six = list(runs(sequence, 6))
    return len(set(six)) < len(six)


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORD.findall(text.casefold())


def runs(sequence: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """All runs of `length` words."""
    return [tuple(sequence[start : start + length]) for start in range(len(sequence) - length + 1)]
