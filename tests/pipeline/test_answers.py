"""What a language model may answer: forms of one good answer that are accepted, and answers that are refused."""

from collections.abc import Sequence

import pytest

from cvsi.core.statuses import STATUSES, kind, worst
from cvsi.models.editor import Answer
from cvsi.pipeline.answers import Parsed, Query, parse, parse_both
from cvsi.pipeline.reasoning import without_reasoning

GOOD = "a cat on a sofa"
EXAMPLE = "a turquoise kettle steaming beside a ginger kitten"
QUERY = Query(["a dog on a sofa", "a brown dog lying on a couch"], "make it a cat", [EXAMPLE])

FORMS = [
    # a label
    "Edited Description: {}", "edited description: {}", "**Edited Description:** {}", "**Edited Description**: {}",
    "- **Edited Description**: {}", "edited description - {}", "Edited Description (one sentence): {}", "Description: {}",
    "Edited description for the image: {}", "Answer: {}", "A: {}", "Output: {}", "Result => {}", "Final answer: **{}**",
    "The edited description is: {}", "The edited description is {}", "The edited description would be: {}",
    "### Edited Description\n{}", "### Edited Description:\n\n{}", "Edited Description:\n{}", "New caption: {}",
    # a polite beginning
    "Here is the edited description: {}", "Sure! Here is the edited description:\n\n{}", "Certainly! {}",
    "Here's the edited description:\n{}", "Sure, here you go:\n{}", "Of course.\n\n{}", "Here\u2019s the new caption: {}",
    # markup, lists, quotes
    "**{}**", "*{}*", "_{}_", "`{}`", "```\n{}\n```", "```{}```", "```text\n{}\n```", '"{}"', "'{}'", "“{}”", "«{}»",
    '"{}."', '"{}".', "- {}", "* {}", "• {}", "1. {}", "1) {}", "> {}", "# {}", "({})", "<b>{}</b>", "<p>{}</p>",
    # JSON and tags
    '{{"edited": "{}"}}', '{{"description": "{}"}}', '{{"edited_description": "{}", "added": "a cat"}}', '["{}"]',
    '```json\n{{"edited": "{}"}}\n```', "{{'edited': '{}'}}", '{{"Edited Description": "{}"}}', "<answer>{}</answer>",
    "<edited_description>{}</edited_description>", "\\boxed{{{}}}", "\\boxed{{\\text{{{}}}}}",
    # special tokens
    "{}<|im_end|>", "{}</s>", "{}<|eot_id|>", "{}<end_of_turn>", "{}<|endoftext|>", "{}<｜end▁of▁sentence｜>",
    "{}<|im_end|>\n<|im_start|>user\nnext", "<|assistant|>{}", "[/INST] {}", "<s>{}</s>", "<|im_start|>assistant\n{}",
    "<|start_header_id|>assistant<|end_header_id|>\n\n{}",
    # reasoning
    "<think>\n\n</think>\n\n{}", "<think>the dog\n\nbecomes a cat</think>\n{}", "so a cat.\n\nyes</think>\n\n{}",
    "<thinking>hm</thinking>{}", "[THINK]hm[/THINK]{}", "◁think▷hm◁/think▷{}", "<think>a</think><think>b</think>{}",
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{}", "<THINK>hm</THINK>\n{}",
    # what follows the answer
    "{}\n\n(I changed the dog.)", "{}\n\nExplanation: the dog was replaced.", "{}\nNote: the sofa stays", "{}.\n\nThis keeps it.",
    "{}\nImage Content: a car\nInstruction: red\nEdited Description: a red car", "{}. I changed the dog to a cat.",
    "{} (changed from a dog)", "{}\nObjects most likely added: a cat", "{}\n\nLet me know if you need more!",
    # the prompt again, and both answers
    "Image Content: a dog\nInstruction: make it a cat\nEdited Description: {}",
    "Edited Description: {}\nObjects most likely added: a cat", "1. Edited Description: {}\n2. Objects most likely added: a cat",
    # blanks and signs
    "\n\n{}", "  {}  ", "{}\r\n", "\ufeff{}", "\u200b{}", "{}.", "The other photo shows {}", "The edited image features {}",
    # more of each kind
    'Edited Description:{}', 'EDITED DESCRIPTION: {}', 'Edited Description : {}', '*Edited Description:* {}',
    'Edited description → {}', '[Edited Description] {}', '[Edited Description]: {}', '<|begin_of_text|>{}',
    'Answer:\n\n{}', 'The answer is: {}', 'Here you go: {}', 'Okay, the edited description is: {}',
    'Sure thing! {}', 'My edited description: {}', '1) Edited Description\n{}', '{}###', '{}\n---',
    '{}\n\n---\n\nImage Content: x', '--- {} ---', 'Edited Image Content: {}', 'Here is the answer:\n"{}"',
    'Here is the edited description of the photo:\n\n**{}**',
    'Based on the instruction, the edited description is: {}',
    'Based on the captions and the instruction, the edited description would be:\n\n{}',
    'The edited description of the image would be: {}', 'Edited description: **{}**.',
    '{{"Edited Description":"{}","Objects most likely added":"cat"}}', '{{"answer":{{"edited":"{}"}}}}',
    '```\n{{"edited":"{}"}}\n```', '```markdown\n{}\n```', '~~~\n{}\n~~~', '<edited>{}</edited>',
    '<result>\n{}\n</result>', 'Edited Description:\n- {}', 'Edited Description:\n\n1. {}',
    'Revised description: {}', 'Updated caption: {}', 'Target image: {}', 'Target image description: {}',
    'Final description: {}', 'Response: {}', 'Caption: {}', 'output: "{}"', 'Sentence: {}', 'One sentence: {}',
    'Photo: {}', 'The photo: {}', 'Image: {}', 'Modified image: {}',
    "Here's a sentence describing the changed photo: {}", 'Changed photo: {}', 'The changed photo shows {}',
    'The photo now shows {}', 'In the edited photo, {}', '{}\n\nNo other changes.', 'assistant: {}',
    '### Response:\n{}', '### Answer\n{}', '<|start|>assistant<|channel|>final<|message|>{}<|return|>',
    'analysis: hm\n\nfinal: {}', '<thought>\nx\n</thought>\n{}', '<|think|>x<|/think|>{}',
    'Thinking: the dog becomes a cat.\n\nAnswer: {}',
    "Let's think step by step. The dog becomes a cat.\n\nEdited Description: {}", '{} [end]', '{}<end>',
    '<start>{}<end>', '{}[EOS]', '{} <|end_of_text|>', '{}<|eom_id|>', "'{}'.", '\\"{}\\"', '{}\\n', '\\n{}',
    '“{}.”', '•{}', '-{}', '–{}', '1.{}', 'Edited: {}', 'Edit: {}', 'edited: {}', 'description="{}"', 'A: "{}"',
    'Q: x\nA: {}',
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_the_good_answer_gives_that_answer(form: str) -> None:
    parsed = parse(Answer(form.format(GOOD), "stop"), "edited", QUERY)
    assert parsed.usable and parsed.text is not None
    assert parsed.text.removesuffix(".") == GOOD


@pytest.mark.parametrize(
    "answer", [GOOD, f"  {GOOD}\n", f"{GOOD}.", f"<think>\n\n</think>\n\n{GOOD}", "A cat on a sofa, which reads \"no\"."]
)  # fmt: skip
def test_a_plain_answer_is_ok_and_unchanged(answer: str) -> None:
    parsed = parse(Answer(answer, "stop"), "edited", QUERY)
    assert parsed == Parsed(answer.rpartition("</think>")[2].strip(), "ok")


@pytest.mark.parametrize(
    ("answer", "text", "status"),
    [
        (f"Edited Description: {GOOD}", GOOD, "repaired: label"),
        (f'{{"edited": "{GOOD}"}}', GOOD, "repaired: JSON"),
        (f"**{GOOD}**", GOOD, "repaired: markup"),
        (f"```\n{GOOD}\n```", GOOD, "repaired: code"),
        (f"{GOOD}\n\nExplanation: x", GOOD, "repaired: label"),
    ],
)
def test_a_repair_is_named(answer: str, text: str, status: str) -> None:
    assert parse(Answer(answer, "stop"), "edited", QUERY) == Parsed(text, status)


REFUSED = [
    ("I'm sorry, but I can't assist with that.", "the model declines"),
    ("I\u2019m sorry, I can\u2019t help.", "the model declines"),
    ("As an AI language model, I cannot see images.", "the model declines"),
    ("Unfortunately, there is no way.", "the model declines"),
    ("Unable to determine.", "the model declines"),
    ("Please provide the image.", "asks for more"),
    ("Could you please share the photo?", "asks for more"),
    ("I need more information to edit.", "asks for more"),
    ("Let me know what to change!", "asks for more"),
    ("What is it?", "a question"),
    ("a cat a cat a cat a cat", "repeats itself"),
    ("the the the the", "repeats itself"),
    ("a cat lying on a brown sofa and a cat lying on a brown sofa", "repeats itself"),
    ("<html><body>502 Bad Gateway</body></html>", "a tag"),
    ("<!DOCTYPE html>", "a tag"),
    ("<div>a cat</div>", "a tag"),
    ("a cat <br> on a sofa", "a tag"),
    ("...", "no words"),
    ("-", "no words"),
    ("42", "no words"),
    ("\U0001f600", "no words"),
    ("The rules are:", "ends in a colon"),
    ("**The rules are:**", "ends in a colon"),
    ("The instructions are:", "repeats the prompt"),
    ("Image Content: a dog on a sofa", "repeats the prompt"),
    ("The instruction is to make it a cat.", "speaks of the task"),
    ("I have replaced the dog with a cat.", "speaks of the task"),
    ("The original image has a dog.", "speaks of the task"),
    ("A turquoise kettle steaming on a sofa", "repeats an example"),
    ("None", "says 'none'"),
    ("N/A", "says 'n/a'"),
    ("nothing", "says 'nothing'"),
    ("- red\n- a cat\n- a sofa", "a list instead of one description"),
    ('{"error": "rate limit"}', "JSON without a text"),
    ('{"a": 1, "b": 2}', "JSON without a text"),
    ("a cat\x1b[2J", "control characters"),
    ("a\0cat", "control characters"),
    ("\ud800", "control characters"),
    ("word " * 1000, "more than 2,000 characters"),
]


MORE_REFUSED = [
    "I apologize, but I am unable to process images.",
    "I'm just a language model.",
    "I am not able to help with this request.",
    "Sorry, I can't do that",
    "This request violates our content policy.",
    "I can't provide that",
    "Sure, what is the image?",
    "Hello! How can I help you today?",
    "Please provide the Image Content and the Instruction.",
    "You haven't provided an image.",
    "No image was provided.",
    "There is no image attached.",
    "It seems that the image is missing.",
    "I'd need to see the image first.",
    "Can you tell me more?",
    "Provide the image content.",
    "Error: model overloaded",
    "Internal Server Error",
    "502 Bad Gateway",
    "<!-- comment -->",
    "<p>Not found</p><hr>",
    "undefined",
    "NaN",
    "[object Object]",
    "lorem ipsum dolor sit amet",
    "test",
    "???",
    "…",
    "* * *",
    "---",
    "```",
    "```\n```",
    "a a a a a a",
    "cat cat cat cat cat",
    "red, red, red, red, red",
    "a dog, a dog, a dog, a dog",
    "and and and",
    "The instruction says to make it a cat",
    "Edit the description so that it is a cat",
    "To follow the instruction, replace dog by cat.",
    "The dog has been replaced by a cat as requested.",
    "As requested, the dog is now a cat.",
    "The description remains unchanged.",
    "No changes needed.",
    "Same as before",
    "Image Content: a dog\nInstruction: make it a cat",
    "User: make it a cat\nAssistant:",
    "[Your answer here]",
    "{edited description}",
    "<edited description>",
    "[insert description]",
    "a photo of ...",
    "The image content is a dog",
    "The image shows a dog, and the instruction is to make it a cat",
    "Task: describe",
    "Here is the edited description:",
    "Here is the edited description",
    "Edited description",
    "(no description)",
    "No description available.",
    "I think it is a cat",
    "My answer is a cat",
    '{"edited": null}',
    '{"edited": ""}',
    '{"role":"assistant","content":"a cat"}',
    "0",
    "123",
    "a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a a cat on a ",
    "http://example.com/cat.jpg",
    "data:image/png;base64,iVBORw0KGgo=",
    "![cat](cat.png)",
    "\\begin{document}",
]


@pytest.mark.parametrize(("answer", "reason"), REFUSED)
def test_an_answer_that_is_no_description_is_refused(answer: str, reason: str) -> None:
    assert parse(Answer(answer, "stop"), "edited", QUERY) == Parsed(None, f"refused: {reason}")


@pytest.mark.parametrize("answer", MORE_REFUSED)
def test_more_answers_that_are_no_description_are_not_used(answer: str) -> None:
    assert not parse(Answer(answer, "stop"), "edited", QUERY).usable


@pytest.mark.parametrize(
    "answer", ["", "  ", "\n\n", "Edited Description:", "<think>", "<think>a cat", "a cat</think>", "<|im_end|>"]
)
def test_an_answer_without_content_is_none(answer: str) -> None:
    parsed = parse(Answer(answer, "stop"), "edited", QUERY)
    assert parsed.text is None and kind(parsed.status) in ("no answer", "refused")
    assert kind(parsed.status) == "no answer" or answer == "<|im_end|>"


def test_words_of_the_query_itself_are_no_sign_of_a_bad_answer() -> None:
    query = Query(
        ["a sign with instructions", "a turquoise kettle beside a kitten"], "is steaming and ginger", [EXAMPLE]
    )
    for text in ("a red sign with instructions", "a turquoise kettle steaming beside a ginger kitten"):
        assert parse(Answer(text, "stop"), "edited", query) == Parsed(text, "ok")


@pytest.mark.parametrize(
    ("finish", "text", "status"),
    [
        ("length", "a cat on a", "cut: max_tokens reached"),
        ("length", "<think>a cat", "cut: max_tokens reached while reasoning"),
        ("length", "", "cut: max_tokens reached"),
        ("content_filter", "a cat", "refused: content filter"),
        ("too long", "", "too long"),
        ("refused: HTTP 400, no", "", "refused: HTTP 400, no"),
        ("failed: HTTP 503", "", "no answer: HTTP 503"),
        ("", "a cat", "ok"),
        ("stop", "a cat", "ok"),
        ("eos", "a cat", "ok"),
    ],
)
def test_the_finish_reason_counts(finish: str, text: str, status: str) -> None:
    parsed = parse(Answer(text, finish), "edited", QUERY)
    assert parsed.status == status and parsed.usable == (status == "ok")


NOTHING = [
    "None", "none.", "N/A", "nothing", "Nothing is added.", "No objects are added.", "No new objects", "[]", "- None", "null",
    "**None**", "(none)", '{"added": []}', '{"objects": null}', "Objects most likely added: None", "None (the dog is removed)",
    "There are no new objects.", "none, the dog stays", "None\nThe dog becomes a cat.", "The objects most likely added are none",
    "No additional objects are likely to be added to the image.", "None\n\nExplanation: nothing new.", "not applicable",
]  # fmt: skip


@pytest.mark.parametrize("answer", NOTHING)
def test_nothing_added_is_an_empty_text_and_ok(answer: str) -> None:
    assert parse(Answer(answer, "stop"), "added", QUERY) == Parsed("", "ok")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("a cat, a hat", "a cat, a hat"),
        ("- a cat\n- a hat", "a cat, a hat"),
        ("* a cat\n\n* a hat", "a cat, a hat"),
        ("1. a cat\n2. **a hat**", "a cat, a hat"),
        ("a cat\na hat", "a cat, a hat"),
        ('["a cat", "a hat"]', "a cat, a hat"),
        ('{"objects": ["a cat", "a hat"]}', "a cat, a hat"),
        ("Objects most likely added: a cat, a hat", "a cat, a hat"),
        ("The objects most likely added are: a cat, a hat", "a cat, a hat"),
        ("The objects most likely added are a cat, a hat", "a cat, a hat"),
        ("Here are the objects most likely added:\n\n- a cat\n- a hat\n\nThese fit.", "a cat, a hat"),
        ("**Objects most likely added:**\n* a cat\n* a hat", "a cat, a hat"),
        ("Edited Description: a cat on a sofa\nObjects most likely added: a cat, a hat", "a cat, a hat"),
        ("a cat, a hat\n\nExplanation: they are new", "a cat, a hat"),
    ],
)
def test_a_list_of_objects_is_one_line(answer: str, text: str) -> None:
    parsed = parse(Answer(answer, "stop"), "added", QUERY)
    assert parsed.text == text and parsed.usable


@pytest.mark.parametrize(
    ("answer", "edited", "added"),
    [
        ('{"edited": "a cat", "added": "a hat"}', Parsed("a cat", "ok"), Parsed("a hat", "ok")),
        ('{"edited": "a cat", "added": ""}', Parsed("a cat", "ok"), Parsed("", "ok")),
        ('{"edited": "a cat", "added": null}', Parsed("a cat", "ok"), Parsed("", "ok")),
        ('{"edited": "a cat", "added": ["a hat"]}', Parsed("a cat", "ok"), Parsed("a hat", "ok")),
        ('```json\n{"edited": "a cat", "added": "none"}\n```', Parsed("a cat", "ok"), Parsed("", "ok")),
        ('{"edited": "**a cat**", "added": "a"}', Parsed("a cat", "repaired: markup"), Parsed("a", "ok")),
        ('{"edited": "", "added": "a hat"}', Parsed(None, "no answer: empty"), Parsed("a hat", "ok")),
        ('{"edited": "a cat"}', Parsed("a cat", "ok"), Parsed(None, "no answer: no key added")),
        ('{"edited": 3, "added": "a"}', Parsed(None, "refused: edited is no text"), Parsed("a", "ok")),
        ("a cat", *[Parsed(None, "refused: no JSON object with edited and added")] * 2),
        ('{"edited": "a c', *[Parsed(None, "refused: no JSON object with edited and added")] * 2),
    ],
)
def test_both_answers_as_json(answer: str, edited: Parsed, added: Parsed) -> None:
    assert parse_both(Answer(answer, "stop"), QUERY) == (edited, added)


def test_a_cut_json_is_cut_for_both() -> None:
    assert [one.status for one in parse_both(Answer('{"edited": "a', "length"), QUERY)] == [
        "cut: max_tokens reached"
    ] * 2


@pytest.mark.parametrize(
    ("statuses", "one"),
    [
        (["ok", "repaired: label"], "repaired: label"),
        (["cut: max_tokens reached", "no answer: empty", "ok"], "no answer: empty"),
        (["refused: a tag", "too long"], "too long"),
        (["refused: a tag", "refused: a question"], "refused: a tag"),
    ],
)
def test_the_worst_status_of_a_row(statuses: Sequence[str], one: str) -> None:
    assert worst(statuses) == one


def test_the_order_of_statuses() -> None:
    assert STATUSES == ("too long", "refused", "no answer", "cut", "repaired", "ok")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a cat", "a cat"),
        ("<think></think>a cat", "a cat"),
        ("x</think>a cat", "a cat"),
        ("<think>x", None),
        ("<|channel|>analysis<|message|>x", None),
        ("a cat <think>x", "a cat "),
    ],
)
def test_reasoning_is_separated(text: str, rest: str | None) -> None:
    assert without_reasoning(text) == rest
