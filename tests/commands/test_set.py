"""`cvsi set`: one value of params.yaml changes, every other byte stays; what is refused leaves the file as it was."""

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cvsi.commands import set_value as command
from cvsi.commands.main import app, main
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.yaml_edit import Document, changed, one_line
from tests.imports import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
ACTIVE = "                    # datasets that are indexed, captioned and edited"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of the project's params.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path / "params.yaml"


def invoke(*words: str) -> str:
    """Run `cvsi set`; its output. What it refuses is raised as CvsiError."""
    result = CliRunner().invoke(app, ["set", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def lines_changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """The lines that only one of two texts has."""
    one, other = before.splitlines(), after.splitlines()
    return [line for line in one if line not in other], [line for line in other if line not in one]


def leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All scalars and empty collections of a document with their dotted keys."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    if not items:
        yield key, content
    for name, item in items:
        yield from leaves(item, f"{key}.{name}" if key else str(name))


@pytest.mark.parametrize(
    ("key", "value", "old", "new", "line"),
    [
        ("captioners.tiny.n", "9", "    n: 5", "    n: 9", "captioners.tiny.n: 5 -> 9; shared by the dataset demo"),
        ("datasets.fashioniq-dress.fusion.query.edited", "-0.5",
         "      query: {edited: 0.2, pseudo: 0.6, reference: 0.2}",
         "      query: {edited: -0.5, pseudo: 0.6, reference: 0.2}",
         "datasets.fashioniq-dress.fusion.query.edited: 0.2 -> -0.5; shared by the datasets fashioniq-shirt"),
        ("active", "[demo, circo]", f"active: [demo]{ACTIVE}", f"active: [demo, circo]{ACTIVE}",
         "active: [demo] -> [demo, circo]"),
        ("active.0", "circo", f"active: [demo]{ACTIVE}", f"active: [circo]{ACTIVE}", "active.0: demo -> circo"),
        ("editors.qwen.context", "2048", "    context: 4096", "    context: 2048",
         "editors.qwen.context: 4096 -> 2048; shared by the datasets circo, cirr-val, cirr-test1, fashioniq-dress"),
        ("backbones.vit-b-32.revision", "null", "    revision: a6f597a30f7b82c51704746581f9a4e41421e878",
         "    revision: null", "a6f597a30f7b82c51704746581f9a4e41421e878 -> null"),
        ("runs.demo-tiny.backbone", "vit-b-32", "  demo-tiny: {dataset: demo, backbone: tiny}",
         "  demo-tiny: {dataset: demo, backbone: vit-b-32}", "runs.demo-tiny.backbone: tiny -> vit-b-32"),
        ("store", '"a b"', "store: cache/store                # may be a folder that a team shares",
         'store: "a b"                # may be a folder that a team shares', "store: cache/store -> a b"),
        ("datasets.cirr-val.splits", "[test1, val]", "    splits: [val]", "    splits: [test1, val]",
         "[val] -> [test1, val]"),
        ("datasets.circo.captioner", "*tiny_captioner", "    captioner: *blip2", "",
         "; shared by the datasets cirr-val"),
    ],
)  # fmt: skip
def test_one_line_changes_and_the_sharers_are_named(
    place: Path, key: str, value: str, old: str, new: str, line: str
) -> None:
    place.chmod(0o640)
    assert line in invoke(key, value)
    text = place.read_text(encoding="utf-8")
    assert lines_changed(TEXT, text) == ([old], [new] if new else [])
    assert len(text.splitlines()) == len(TEXT.splitlines())
    assert stat.S_IMODE(place.stat().st_mode) == 0o640
    assert sorted(path.name for path in place.parent.iterdir()) == ["params.yaml"]
    params.load()


def test_a_key_of_an_alias_is_changed_where_it_is_written(place: Path) -> None:
    output = invoke("datasets.demo.captioner.n", "9")
    assert "datasets.demo.captioner.n is written at captioners.tiny.n" in output
    assert "captioners.tiny.n: 5 -> 9; shared by the dataset demo" in output
    assert params.load().dataset("demo").captioner["n"] == 9 == params.load().captioners["tiny"]["n"]


def test_a_merged_key_is_added_where_it_is_set_and_the_source_keeps_its_value(place: Path) -> None:
    output = invoke("datasets.cirr-test1.benchmark", "circo")
    assert "cirr -> circo; in place of the value merged from datasets.cirr-val.benchmark" in output
    text = place.read_text(encoding="utf-8")
    assert text.replace("    <<: *cirr\n    benchmark: circo\n", "    <<: *cirr\n") == TEXT
    assert params.load().dataset("cirr-val").benchmark == "cirr"


def test_a_merged_mapping_is_replaced_for_those_that_merge_it_again(place: Path) -> None:
    assert "shared by the dataset cirr-test1" in invoke("datasets.cirr-val.fusion", "pdv")
    settings = params.load()
    fusions = [settings.dataset(name).fusion for name in ("cirr-val", "cirr-test1")]
    assert fusions == ["pdv", "pdv"] and isinstance(settings.dataset("circo").fusion, dict)


def test_a_block_becomes_one_value_and_keeps_its_anchor(place: Path) -> None:
    invoke("captioners.tiny", "{model: demo/weights/blip2, n: 3}")
    assert "  tiny: &tiny_captioner {model: demo/weights/blip2, n: 3}\n\n  blip2:" in place.read_text(encoding="utf-8")
    assert params.load().dataset("demo").captioner == {"model": "demo/weights/blip2", "n": 3}


def test_a_whole_section_is_no_sharer_of_itself(place: Path) -> None:
    output = invoke("runs", "{demo-tiny: {dataset: demo, backbone: vit-b-32}}")
    assert "shared" not in output and params.load().run("demo-tiny").backbone == "vit-b-32"
    assert "# what is embedded and scored" in place.read_text(encoding="utf-8")


def test_a_setting_that_no_dataset_uses_is_said_to_change_no_result(place: Path) -> None:
    place.write_text(TEXT.replace("editors:\n", "editors:\n  spare: {engine: vllm, model: x}\n"), encoding="utf-8")
    assert "used by no dataset, so no result changes" in invoke("editors.spare.model", "y")


def test_the_same_value_writes_nothing(place: Path) -> None:
    before = place.stat()
    assert "captioners.tiny.n: is 5 already; nothing changed" in invoke("captioners.tiny.n", "5")
    assert (place.stat().st_mtime_ns, place.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("captioners.tiny.x", "1", "no key captioners.tiny.x; captioners.tiny has: model, precision, n"),
        ("captioner.tiny.n", "1", "no key captioner.tiny.n; there are: active, runs"),
        ("captioners.tiny.n.x", "1", "captioners.tiny.n has no keys, only the value 5"),
        ("active.7", "demo", "no key active.7; active has 1 items, numbered from 0"),
        ("active.-1", "demo", "no key active.-1"),
        ("", "1", "no key"),
        ("captioners..n", "1", "no key captioners..n"),
        pytest.param("." * 299, "1", "no key", id="dots"),
        pytest.param("a." * 9000, "1", "no key a.a.", id="long"),
        ("captioners.tiny.n", "\udcff", "the value is not valid YAML"),  # bytes of a command line that are no UTF-8
        ("\udcff", "1", "no key"),
        ("captioners.tiny.n", '"\x07"', "the value is not valid YAML"),
        ("captioners.tiny.n", "-1", "n: Input should be greater than 0 (got -1); params.yaml is unchanged"),
        ("captioners.tiny.n", "many", "captioners.tiny.n: Input should be a valid integer"),
        ("datasets.demo.fusion.query.edited", ".nan", "datasets.demo.fusion"),
        ("datasets.demo.fusion", "{query: {edits: 1}, gallery: {image: 1}}", "edits"),
        ("datasets.demo.fusion", "no-such-method", "no-such-method"),
        ("datasets.demo.format", "coco", "coco"),
        ("runs.demo-tiny.dataset", "x}", "runs.demo-tiny names dataset 'x}'"),
        ("active", "[nowhere]", "active names 'nowhere'"),
        ("editors.qwen.context", "a: b", "editors.qwen.context: Input should be a valid integer"),
        ("editors.tiny.engine", "vlm", "vlm"),
        ("compute.workers", "0", "compute.workers"),
        ("store", "s3://bucket/store", "not a folder"),
        ("store", "cache/demo/x", "store: cache/demo/x lies in"),
        ("captioners.tiny.n", "", "the value is empty"),
        ("captioners.tiny.n", "[1", "the value is not valid YAML"),
        ("captioners.tiny.n", "*nothing", "no anchor for *nothing; there are: "),
        ("captioners.tiny", "{n: &n 5, m: *n}", "an anchor or an alias inside a value"),
        ("captioners.tiny.n", "!!python/object:os.system {}", "the value is not valid YAML"),
        pytest.param("captioners.tiny.n", "[" * 400 + "]" * 400, "nested too deeply", id="deep"),
        ("captioners.blip2", "{model: x, n: 3}", "blip2 has comments inside, which would be lost"),
        ("captioners", "{}", "captioners has comments inside, which would be lost"),
        ("datasets.cirr-val.editor.context", "99", "set editors.qwen.context, where it is written, for all"),
        ("datasets.cirr-test1.fusion.query.edited", "0.7", "cvsi set datasets.cirr-test1.fusion '{query: {edited: 0.6"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_the_file_as_it_was(place: Path, key: str, value: str, message: str) -> None:
    before = place.stat()
    with pytest.raises(CvsiError) as error:
        invoke(key, value)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert place.read_text(encoding="utf-8") == TEXT and place.stat().st_ino == before.st_ino
    assert [path.name for path in place.parent.iterdir()] == ["params.yaml"]


def test_an_anchor_that_others_use_is_not_lost(place: Path) -> None:
    text = TEXT.replace("  tiny: &tiny_captioner\n    model:", "  tiny: &tiny_captioner\n    model: &weights").replace(
        "model: demo/weights/llama", "model: *weights"
    )
    assert text.count("*weights") == 1
    place.write_text(text, encoding="utf-8")
    with pytest.raises(CvsiError, match=r"captioners.tiny cannot be changed in the text .*weights"):
        invoke("captioners.tiny", "{model: demo/weights/blip2}")
    assert "shared by the editor tiny and the dataset demo" in invoke("captioners.tiny.model", "demo/other")


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o555])
def test_a_read_only_file_is_refused_also_for_root(place: Path, mode: int) -> None:
    place.chmod(mode)
    with pytest.raises(CvsiError, match=r"params.yaml: the file is read-only and unchanged; .*chmod u\+w"):
        invoke("captioners.tiny.n", "9")
    assert place.read_text(encoding="utf-8") == TEXT


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"\xff\xfe", "not UTF-8"), (b"a: [", "not valid YAML"), (b"- 1\n", "not a mapping"),
     (b"", "not a mapping"), (b"a: 1\n---\nb: 2\n", "not valid YAML"),
     pytest.param(b"a: " + b"[" * 1000 + b"]" * 1000, "nested too deeply", id="deep"),
     (b"a: &a [*a]\n", "recursive|nested|no key"), (b"day: 2026-13-45\n", "not valid YAML")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_line(place: Path, content: bytes | None, message: str) -> None:
    place.unlink() if content is None else place.write_bytes(content)
    with pytest.raises(CvsiError, match=f"params.yaml: .*({message})"):
        invoke("captioners.tiny.n", "9")


def test_a_folder_in_its_place_is_one_line(place: Path) -> None:
    place.unlink()
    place.mkdir()
    with pytest.raises(CvsiError, match=r"params.yaml: cannot be read"):
        invoke("captioners.tiny.n", "9")


@pytest.mark.parametrize("how", ["written", "replaced", "deleted"])
def test_a_file_that_another_program_changed_meanwhile_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def edit(settings: params.Params) -> None:
        if how == "replaced":
            place.with_name("new").write_text("other: 1\n")
            place.with_name("new").replace(place)
        elif how == "written":
            place.write_text("other: 1\n")
        else:
            place.unlink()

    monkeypatch.setattr(command, "check_blocks", edit)
    with pytest.raises(CvsiError, match=r"another program changed the file meanwhile|cannot be written"):
        invoke("captioners.tiny.n", "9")
    assert not place.exists() if how == "deleted" else place.read_text() == "other: 1\n"
    assert len(list(place.parent.iterdir())) == (how != "deleted")


def test_a_full_disk_is_one_line_and_the_file_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "flush", full)
    with pytest.raises(CvsiError, match=r"params.yaml: cannot be written .No space left on device.; it is unchanged"):
        invoke("captioners.tiny.n", "9")
    assert place.read_text(encoding="utf-8") == TEXT


def test_a_link_stays_a_link(place: Path) -> None:
    place.rename(place.with_name("shared.yaml"))
    place.symlink_to("shared.yaml")
    invoke("captioners.tiny.n", "9")
    assert place.is_symlink() and "    n: 9\n" in place.with_name("shared.yaml").read_text()


def test_the_command_line_prints_one_line_without_a_traceback(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cvsi", "set", "captioners.tiny.x", "1"])
    with pytest.raises(SystemExit) as code:
        main()
    assert code.value.code == 1 and capsys.readouterr().err.count("\n") == 1


KEYS = [key for key, value in leaves(yaml.safe_load(TEXT))]


@pytest.mark.parametrize(("start", "newline"), [("", "\n"), ("\ufeff", "\r\n")])
def test_setting_what_is_there_gives_the_same_bytes(start: str, newline: str) -> None:
    text = start + TEXT.replace("\n", newline)
    document = Document(text, "params.yaml")
    for key in KEYS:
        try:
            change = document.set(key, one_line(document.get(key)))
        except CvsiError as error:
            assert "comes from a merge" in str(error)
        else:
            assert change.text == text or change.merged_from, key


@pytest.mark.parametrize(
    ("text", "key", "value", "expected"),
    [
        ("a:\nb: 1\n", "a", "2", "a: 2\nb: 1\n"),  # an empty value
        ("a: &x\nb: *x\n", "a", "2", "a: &x 2\nb: *x\n"),
        ("a: &x 1 # c\nb: *x\n", "a", "2", "a: &x 2 # c\nb: *x\n"),
        ("a: 'it''s' # c\n", "a", '"x"', 'a: "x" # c\n'),
        ("a: |\n  one\n  two\n\nb: 1\n", "a", "x", "a: x\n\nb: 1\n"),
        ("a: one\n  two\nb: 1\n", "a", "x", "a: x\nb: 1\n"),
        ("a: [1, 2, {b: 3}] # c\n", "a.2.b", "'x, y'", "a: [1, 2, {b: 'x, y'}] # c\n"),
        ("a: {b: 1}\n", "a.b", "x, y", "a: {b: 'x, y'}\n"),  # quoted where the place needs it
        ("a: {b: 1}\n", "a.b", "1, c: 2", "a: {b: {'1, c': 2}}\n"),  # no second key slips in
        ("a: 1\n", "a", "x # y", "a: x\n"),
        ("a: 1\n", "a", '"one\\ntwo"', 'a: "one\\ntwo"\n'),
        ("a: 1\n", "a", "- 1\n- 2", "a: [1, 2]\n"),
        ("a:\n- 1\n- 2 # c\nb: 1\n", "a[1]", "3", "a:\n- 1\n- 3 # c\nb: 1\n"),
        ("a:\n- 1\n- 2\nb: 1\n", "a", "[]", "a: []\nb: 1\n"),
        ("a:\n  b:\n    c: *x\n".replace("*x", "1"), "a.b", "2", "a:\n  b: 2\n"),
        ("x: &x 1\na:\n  b: *x\nc: 1\n", "a", "2", "x: &x 1\na: 2\nc: 1\n"),  # a block that ends with an alias
        ("a: # c\n  b: 1\n", "a", "2", "a: # c\n  2\n"),
        ("a.b:\n  c: 1\na:\n  b: {d: 1}\n", "a.b.c", "2", "a.b:\n  c: 2\na:\n  b: {d: 1}\n"),  # a dot in a name
        ("1: {true: x}\n", "1.true", "y", "1: {true: y}\n"),
        ("s: &s {k: 1}\na: {<<: *s, l: 2}\n", "a.k", "3", "s: &s {k: 1}\na: {<<: *s, k: 3, l: 2}\n"),
        ("s: &s {k: 1}\nt: &t {k: 2}\na:\n  <<: [*s, *t] # c\n", "a.k", "3",
         "s: &s {k: 1}\nt: &t {k: 2}\na:\n  <<: [*s, *t] # c\n  k: 3\n"),
        ("a: 1", "a", "2", "a: 2"),  # no line break at the end
        ("a: 'é😀' # ü\n", "a", "😀é", "a: 😀é # ü\n"),
    ],
)  # fmt: skip
def test_layouts(text: str, key: str, value: str, expected: str) -> None:
    for newline in ("\n", "\r\n"):
        change = Document(text.replace("\n", newline), "x.yaml").set(key, value)
        assert change.text == expected.replace("\n", newline)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n  b: {x: 1}\n  # more\n\nc: 1\n", "a:\n  b: {x: 1}\n  new:\n    x: *y # z\n  # more\n\nc: 1\n"),
        ("a:\n    b:\n        x: 1   # c\n", "a:\n    b:\n        x: 1   # c\n    new:\n      x: *y # z\n"),
        ("a: {}                # none\nc: 1\n", "a:\n  new:\n    x: *y # z                # none\nc: 1\n"),
        ("a:\n  b: 1", "a:\n  b: 1\n  new:\n    x: *y # z\n"),
    ],
)
def test_an_entry_is_added_at_the_end_of_its_section(text: str, expected: str) -> None:
    start = "y: &y 1\n"
    assert Document(start + text, "x.yaml").append("a", "new", "x: *y # z\n") == start + expected


def test_an_entry_is_added_to_the_project_file_and_nothing_else_changes() -> None:
    document = Document(TEXT, "params.yaml")
    text = document.append("datasets", "own", "format: folder\nroot: photos\ncaptioner: *tiny_captioner\n")
    assert list(changed(document.data, yaml.safe_load(text))) == [("datasets", "own")]
    assert lines_changed(TEXT, text)[0] == []
    for section, name, message in (
        ("datasets", "demo", "exists already"), ("nothing", "x", "no key nothing"), ("store", "x", "not a mapping"),
        ("active", "x", "not a mapping"), ("datasets", "x: {y", "cannot be added"),
    ):  # fmt: skip
        with pytest.raises(CvsiError, match=message):
            document.append(section, name, "format: folder\n")


@pytest.mark.parametrize(
    ("key", "after", "words"),
    [
        ("captioners.blip2", "    seed: 0", "captioners.blip2.revision: not set -> abc; shared by the datasets circo"),
        ("datasets.circo.captioner", "    seed: 0", "captioner.revision is written at captioners.blip2"),
        ("editors.tiny", "    max_tokens: 64", "editors.tiny.revision: not set -> abc; shared by the dataset demo"),
        ("backbones.tiny", "    preprocess: target-pad", "backbones.tiny.revision: not set -> abc"),
    ],
)  # fmt: skip
def test_a_missing_revision_is_added_to_its_block(place: Path, key: str, after: str, words: str) -> None:
    assert words in invoke(f"{key}.revision", "abc")
    removed, added = lines_changed(TEXT, place.read_text(encoding="utf-8"))
    assert (removed, added) == ([], ["    revision: abc"])
    lines = place.read_text(encoding="utf-8").splitlines()
    assert lines[lines.index("    revision: abc") - 1] == after
    assert "abc already" not in invoke(f"{key}.revision", "def"), "and changed like any other key"


@pytest.mark.parametrize(
    "text", ["a: {model: x, n: 1}", "a: {model: x}  # why", "a:\n  model: x  # why\n", "a:\r\n  n: 1\r\n  model: x\r\n"]
)
def test_a_key_is_added_in_any_layout(text: str) -> None:
    change = Document(text, "file").add("a.revision", "abc")
    assert yaml.safe_load(change.text) == {"a": yaml.safe_load(text)["a"] | {"revision": "abc"}}
    assert change.text.count("# why") == text.count("# why") and change.text.count("\r\n") in (0, 4)


@pytest.mark.parametrize(
    "key", ["runs.demo-tiny", "world", "captioners", "captioners.absent", "datasets.demo", "active"]
)
def test_a_revision_of_what_has_none_is_refused(place: Path, key: str) -> None:
    with pytest.raises(CvsiError, match="no key"):
        invoke(f"{key}.revision", "abc")
    assert place.read_text(encoding="utf-8") == TEXT
