"""Packs of captions and edits: their content, checks of an untrusted pack, and two clones that share rows by one."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cvsi.commands import forecast, pack, pack_format, requirements
from cvsi.commands.pack_readme import readme
from cvsi.commands.unpack import unpack
from cvsi.core import params, tables
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.schema import CAPTIONS, EDITS, STORED_CAPTIONS, STORED_EDITS
from cvsi.datasets import index
from cvsi.models import model_id
from cvsi.pipeline.captions import caption_job
from cvsi.pipeline.edits import edit_job, queries_with_captions
from cvsi.pipeline.prompting import few_shot
from cvsi.store.rows import RowStore, Store
from tests.conftest import Workspace, environment

UNUSUAL = 'a <script>alert("x")</script> | `code` & *stars*\n# no heading'
ABSENT = "absent/models"


def make(captions: dict[str, list[str]] | None = None) -> None:
    """Index, captions and edits of `toy`, written by hand, in the store and as outputs, as the stages would."""
    content = params.load()
    index.build("toy", content)
    images = pl.DataFrame(tables.read("index", "toy", "images.parquet"))
    lines = captions or {name: [f"{name} {k}" for k in range(5)] for name in images["image_id"]}
    rows = images.select("image_id", "digest").with_columns(captions=pl.Series([lines[i] for i in images["image_id"]]))
    captioning = caption_job("toy", content)
    captioning.rows().append(rows.select(key="digest", captions="captions").to_arrow().cast(STORED_CAPTIONS))
    with tables.output("captions", "toy", recipe=captioning.recipe()) as out:
        out.shard(rows.to_arrow(), CAPTIONS)
    queries = queries_with_captions("toy")
    answered = queries.select("key", "query_id", "split").with_columns(
        edited=pl.Series([[UNUSUAL], ["a yellow disc"], ["a white disc"]]), added=pl.lit("disc"),
        status=pl.Series(["ok", "ok", "no usable answer: edited"]), answers=pl.Series([["x", "y"]] * 3),
        finish=pl.Series([["stop", "stop"]] * 3), answer_status=pl.Series([["ok", "ok"]] * 3),
    )  # fmt: skip
    editing = edit_job("toy", content)
    editing.rows().append(answered.select(STORED_EDITS.names).to_arrow().cast(STORED_EDITS))
    with tables.output("edits", "toy", recipe=editing.recipe()) as out:
        out.shard(answered.to_arrow(), EDITS)


@pytest.fixture
def packed(toy: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of `toy`, made once and copied; the working directory contains it."""
    kept = tmp_path_factory.getbasetemp() / "toy-packed"
    if kept.exists():
        shutil.copytree(kept, toy.path, dirs_exist_ok=True)
    else:
        make()
        pack.write("toy", toy.path / "pack", params.load())
        shutil.copytree(toy.path, kept)
    return toy.path / "pack"


@pytest.fixture
def other(packed: Path, toy: Workspace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Workspace:
    """Another person's workspace: the same images and parameters, an empty store, no captioner and no editor."""
    second = Workspace(tmp_path_factory.mktemp("other"))
    shutil.copytree(toy.path / "photos", second.path / "photos")
    shutil.copy(toy.path / "params.yaml", second.path)
    second.params(
        datasets__toy__captioner__model=f"{ABSENT}/blip2", datasets__toy__editor__model=f"{ABSENT}/llama",
        datasets__demo__captioner__model=f"{ABSENT}/blip2",
    )  # fmt: skip
    shutil.copytree(toy.path / "cache" / "toy" / "index", second.path / "cache" / "toy" / "index")
    monkeypatch.chdir(second.path)
    return second


def stored(workspace: Workspace) -> list[Path]:
    """The files of captions, edits and models in the store."""
    store = workspace.path / "cache" / "store"
    return [file for kind in ("captions", "edits", "weights") for file in (store / kind).rglob("*.parquet")]


def seal(folder: Path, **changes: Any) -> None:
    """Write a new manifest that fits the present files, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for kind in manifest["kinds"]:
        text = (folder / kind / "recipe.json").read_text(encoding="utf-8")
        try:
            manifest["kinds"][kind]["recipe"] = digest(json.loads(text))
        except ValueError:
            continue
    (folder / "manifest.json").write_text(json.dumps(manifest | changes), encoding="utf-8")


def test_a_pack_contains_rows_recipes_and_a_readme_and_nothing_of_the_machine(
    packed: Path, toy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {file.relative_to(packed).as_posix() for file in packed.rglob("*") if file.is_file()}
    parts = {f"{kind}/{name}" for kind in ("captions", "edits") for name in ("recipe.json", "part-00000.parquet")}
    assert names == {"manifest.json", "README.md"} | parts
    manifest = json.loads((packed / "manifest.json").read_text())
    assert manifest["schema"] == 1 and manifest["dataset"] == "toy"
    assert {kind: part["rows"] for kind, part in manifest["kinds"].items()} == {"captions": 8, "edits": 3}
    assert [part["model"] for part in manifest["kinds"].values()] == ["blip2", "llama"]
    for name, facts in manifest["files"].items():
        assert hashlib.sha256((packed / name).read_bytes()).hexdigest() == facts["sha256"]
    recipe = json.loads((packed / "captions" / "recipe.json").read_text())
    assert (toy.path / "cache/store/captions" / digest(recipe)).is_dir()
    rows = pl.read_parquet(packed / "captions" / "*.parquet")
    assert rows["key"].is_sorted() and rows.columns == ["key", "captions"] and rows.height == 8
    everything = b"".join(file.read_bytes() for file in packed.rglob("*") if file.is_file())
    assert str(Path.home()).encode() not in everything and b"/demo/weights" not in everything
    assert str(toy.path).encode() not in everything and b"red.png" not in (packed / "manifest.json").read_bytes()


def test_the_same_captions_give_the_same_bytes(packed: Path, toy: Workspace) -> None:
    for kind in ("captions", "edits"):  # the same rows, in other files, in another order
        table = tables.whole(kind, "toy")
        recipe = tables.provenance(Path(f"cache/toy/{kind}"))
        with tables.output(kind, "toy", recipe=recipe) as out:
            last = table.num_rows - 1
            for row in (
                range(last, -1, -1) if kind == "captions" else range(last + 1)
            ):  # edits are in the order of the queries
                out.shard(table.slice(row, 1), CAPTIONS if kind == "captions" else EDITS)
    shutil.rmtree("cache/store/captions")
    pack.write("toy", toy.path / "again", params.load())
    for file in packed.rglob("*"):
        if file.is_file():
            assert (toy.path / "again" / file.relative_to(packed)).read_bytes() == file.read_bytes(), file


def test_shards_have_4096_rows(toy: Workspace) -> None:
    make()
    recipe = tables.provenance(Path("cache/toy/captions"))
    keys = sorted(hashlib.sha256(str(number).encode()).hexdigest() for number in range(9000))
    with tables.output("captions", "toy", recipe=recipe) as out:
        out.shard(pa.table({"image_id": keys, "digest": keys, "captions": [["x"]] * 9000}), CAPTIONS)
    pack.write("toy", toy.path / "large", params.load(), ["captions"])
    files = sorted((toy.path / "large" / "captions").glob("*.parquet"))
    assert [pq.read_metadata(file).num_rows for file in files] == [4096, 4096, 808]
    assert pl.read_parquet(files)["key"].to_list() == keys
    assert pack_format.open_pack(toy.path / "large").manifest.kinds["captions"].rows == 9000


def test_an_existing_folder_is_never_written(packed: Path, toy: Workspace) -> None:
    before = {file: file.read_bytes() for file in packed.rglob("*") if file.is_file()}
    (toy.path / "link").symlink_to(toy.path / "missing")
    for out in (packed, toy.path / "link", Path()):
        with pytest.raises(CvsiError, match="exists already"):
            pack.write("toy", out, params.load())
    assert {file: file.read_bytes() for file in packed.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda: shutil.rmtree("cache/toy/edits"), "run the stage edits first"),
        (lambda: Path("cache/toy/captions/provenance.json").unlink(), "so the recipe of these rows is unknown"),
        (lambda: serve("/srv/models/gpt"), "names the model by a path of this machine"),
        (lambda: make({f"{name}.png": ["new"] for name in pack_names()}), None),
        (lambda: recaption(), "not made from the present index and captions"),
        (lambda: unsplit(), "not made from the present index and captions"),
    ],
)
def test_a_pack_that_cannot_be_made_leaves_nothing(toy: Workspace, spoil: Callable[[], Any], why: str | None) -> None:
    make()
    spoil()
    if why is None:  # all of it is new, which is no error
        pack.write("toy", toy.path / "out", params.load())
        return
    with pytest.raises(CvsiError, match=why):
        pack.write("toy", toy.path / "out", params.load())
    assert not (toy.path / "out").exists() and not list(toy.path.glob(".out*"))


def pack_names() -> list[str]:
    return [Path(name).stem for name in pl.read_parquet("cache/toy/index/images.parquet")["image_id"]]


def serve(model: str) -> None:
    """Edits of a server that names its model so."""
    file = Path("cache/toy/edits/provenance.json")
    file.write_text(json.dumps({"engine": "server", "model": model, "revision": None, "code": 1}))


def recaption() -> None:
    """New captions with the edits of the former ones: two queries have swapped their captions."""
    table = pl.read_parquet("cache/toy/captions/part-00000.parquet")
    queries = queries_with_captions("toy")
    first, second = queries["reference_id"][0], queries["reference_id"][1]
    ids = table["image_id"].replace({first: second, second: first})
    recipe = tables.provenance(Path("cache/toy/captions"))
    with tables.output("captions", "toy", recipe=recipe) as out:
        out.shard(table.with_columns(image_id=ids).to_arrow(), CAPTIONS)
    # The store has edits of these captions too, and they differ from those of the output.
    rows = (
        queries_with_captions("toy")
        .select("key")
        .with_columns(
            edited=pl.Series([["other"]] * 3),
            added=pl.lit("z"),
            status=pl.lit("ok"),
            answers=pl.Series([["x"]] * 3),
            finish=pl.Series([["stop"]] * 3),
        )
    )
    RowStore("cache/store", "edits", tables.provenance(Path("cache/toy/edits")), STORED_EDITS).append(
        rows.to_arrow().cast(STORED_EDITS)
    )


def unsplit() -> None:
    """Edits of fewer queries than the index has."""
    recipe, table = tables.provenance(Path("cache/toy/edits")), tables.whole("edits", "toy")
    with tables.output("edits", "toy", recipe=recipe) as out:
        out.shard(table.slice(0, 2), EDITS)


def test_edits_that_are_not_in_the_store_are_packed_with_a_warning(
    toy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    make()
    shutil.rmtree("cache/store/edits")
    pack.write("toy", toy.path / "out", params.load())
    assert "3 edits of 3 are not in the store" in capsys.readouterr().err


def test_without_the_models_every_row_is_used(
    packed: Path, toy: Workspace, other: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    content = params.load()
    job = caption_job("toy", content)
    with pytest.raises(CvsiError, match=r"absent/models/blip2: no such model folder.*cvsi unpack"):
        job.recipe()
    unpack(packed, content)
    printed = capsys.readouterr().out
    assert "captions: 8 rows added, 0 already stored" in printed and "edits: 3 rows added, 0 already stored" in printed
    assert f"captioner {ABSENT}/blip2 not found; using the pack's rows for it" in printed
    assert "toy: captions complete: 8 distinct images" in printed
    assert "toy: edits complete: 3 distinct queries" in printed
    images = pl.DataFrame(tables.read("index", "toy", "images.parquet"))
    rows = job.rows().get(images["digest"])
    origin = pl.read_parquet(toy.path / "cache/toy/captions/part-00000.parquet")
    assert rows["captions"].to_pylist() == origin["captions"].to_list()
    # No new row is computed under weights of which only the digest is known.
    with pytest.raises(CvsiError, match="no such model, and the store has no rows of it"):
        model_id.require(job.settings.model)
    before = stored(other)
    unpack(packed, content)
    printed = capsys.readouterr().out
    assert "captions: 0 rows added, 8 already stored" in printed and "edits: 0 rows added, 3 already stored" in printed
    assert stored(other) == before


def test_stored_rows_are_kept(packed: Path, other: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    opened = pack_format.open_pack(packed)
    keys = next(opened.parts("captions"))["key"].to_pylist()
    stored_rows = RowStore("cache/store", "captions", opened.recipe("captions"), STORED_CAPTIONS)
    stored_rows.append(pa.table({"key": keys[:2], "captions": [["mine"], ["mine"]]}, schema=STORED_CAPTIONS))
    unpack(packed, params.load())
    printed = capsys.readouterr()
    assert "captions: 6 rows added, 0 already stored" in printed.out
    assert "2 rows in the store differ from the pack's; the store's are kept" in printed.err
    again = RowStore("cache/store", "captions", opened.recipe("captions"), STORED_CAPTIONS)
    lines = again.get(pl.Series(keys))["captions"].to_pylist()
    assert lines[:2] == [["mine"], ["mine"]] and lines[2] != ["mine"]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def link(file: Path) -> None:
    target = file.with_name(f"{file.name}.real")
    file.rename(target)
    file.symlink_to(target)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("name", ["captions/part-00000.parquet", "edits/recipe.json", "README.md"])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (flip, "SHA-256 is not the manifest's"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "SHA-256 is not the manifest's"),
        (lambda file: file.write_bytes(file.read_bytes() + b" "), "are expected at most"),
        (lambda file: file.unlink(), "no plain file that can be read"),
        (link, "no plain file that can be read"),
        (pipe, "no plain file"),
        (lambda file: link(file.parent) if file.name != "README.md" else link(file), "a link|no plain file"),
    ],
)
def test_a_damaged_pack_adds_nothing(
    packed: Path, other: Workspace, name: str, spoil: Callable[[Path], None], why: str
) -> None:
    spoil(packed / name)
    with pytest.raises(CvsiError, match=why):
        unpack(packed, params.load())
    assert not stored(other)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema": 2}, "schema 2, this cvsi reads up to 1; update cvsi"),
        ({"schema": 0}, "schema"),
        ({"schema": "1; DROP"}, "schema"),
        ({"dataset": "../toy"}, "dataset"),
        ({"kinds": {}}, "kinds"),
        ({"kinds": {"vectors": {"rows": 0, "recipe": "0" * 64, "model": None}}}, "kinds"),
        ({"further": 1}, "further: unknown key"),
        ({"terms": {"x": "y" * 2000}}, "terms"),
        *(
            ({"files": {name: {"bytes": 1, "sha256": "0" * 64}}}, "files")
            for name in (
                "../x",
                "/etc/passwd",
                "captions/../../x",
                "captions/part-00000.parquet\n",
                "captions/x",
                "C:\\x",
            )
        ),
        ({"files": {"README.md": {"bytes": 1 << 40, "sha256": "0" * 64}}}, "files"),
        ({"files": {"README.md": {"bytes": 1, "sha256": "0" * 63}}}, "files"),
        ({"files": {}}, "names no captions/recipe.json"),
    ],
)
def test_a_manifest_is_validated(packed: Path, other: Workspace, change: dict[str, Any], why: str) -> None:
    seal(packed, **change)
    with pytest.raises(CvsiError, match=why) as caught:
        unpack(packed, params.load())
    assert len(str(caught.value)) < 700
    assert not stored(other)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"schema": 1, "schema": 1}', '{"schema": NaN}', "[" * 100_000, "\udcff"],
    ids=lambda text: ascii(text)[:20],
)
def test_a_manifest_that_is_no_json_object_is_one_line(packed: Path, other: Workspace, text: str) -> None:
    (packed / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CvsiError, match=r"manifest\.json"):
        unpack(packed, params.load())


def test_a_folder_without_a_manifest_and_a_missing_one(packed: Path, other: Workspace) -> None:
    for folder in (other.path, other.path / "missing"):
        with pytest.raises(CvsiError, match="no pack, it has no manifest"):
            unpack(folder, params.load())


KEYS = sorted(hashlib.sha256(str(number).encode()).hexdigest() for number in range(8))
LINES = [["a", "b"]] * 8
TEXTS = pa.list_(pa.string())
BAD_TEXT = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())


def rows(keys: Any, lines: Any, schema: pa.Schema = STORED_CAPTIONS) -> pa.Table:
    return pa.Table.from_arrays(
        [pa.array(keys, schema.field(0).type), pa.array(lines, schema.field(1).type)], schema=schema
    )


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (rows(KEYS, LINES).append_column("further", pa.array([1] * 8)), "columns key string"),
        (rows(KEYS, LINES).select(["key"]), "columns key string"),
        (rows(KEYS, LINES).select(["captions", "key"]), "columns captions list"),
        (rows(KEYS, LINES, pa.schema({"key": pa.large_string(), "captions": TEXTS})), "columns key large_string"),
        (rows(KEYS, ["x"] * 8, pa.schema({"key": pa.string(), "captions": pa.string()})), "captions string"),
        (rows([b"x"] * 8, LINES, pa.schema({"key": pa.binary(), "captions": TEXTS})), "columns key binary"),
        (rows([*KEYS[:7], None], LINES), "'key' has nulls"),
        (rows(KEYS, [*LINES[:7], None]), "'captions' has nulls"),
        (rows(KEYS, [*LINES[:7], ["a", None]]), "'captions' has nulls"),
        (rows([*KEYS[:7], "x" * 64], LINES), "not a SHA-256"),
        (rows([*KEYS[:7], KEYS[7].upper()], LINES), "not a SHA-256"),
        (rows([*KEYS[:7], KEYS[7] + "\n"], LINES), "not a SHA-256"),
        (rows([*KEYS[:7], KEYS[0]], LINES), "duplicate"),
        (rows(KEYS[:7], LINES[:7]), "7 rows of captions, the manifest says 8"),
        (rows(KEYS, [["x" * (2 << 20)]] * 8), "more text in one file"),
        (rows(KEYS, [["x" * (1 << 20)] * 80] * 8), "more text in one file"),  # 640 MiB, in a file of some kilobytes
        (rows(KEYS, [["x"] * (1 << 20)] * 8), "more in one file than a pack may hold"),
        (
            pa.table({"key": pa.array(KEYS[:1]), "captions": pa.ListArray.from_arrays([0, 1], BAD_TEXT)}),
            "Invalid UTF8",
        ),
    ],
)
def test_a_well_sealed_pack_with_bad_rows_adds_nothing(
    packed: Path, other: Workspace, table: pa.Table, why: str
) -> None:
    pq.write_table(table, packed / "captions" / "part-00000.parquet", compression="zstd")
    seal(packed)
    with pytest.raises(CvsiError, match=why):
        unpack(packed, params.load())
    assert not stored(other)


def test_a_key_in_two_files_and_rows_of_a_later_schema(packed: Path, other: Workspace) -> None:
    part = packed / "captions" / "part-00000.parquet"
    shutil.copy(part, packed / "captions" / "part-00001.parquet")
    manifest = json.loads((packed / "manifest.json").read_text())
    manifest["files"]["captions/part-00001.parquet"] = {}
    manifest["kinds"]["captions"]["rows"] = 16
    (packed / "manifest.json").write_text(json.dumps(manifest))
    seal(packed)
    with pytest.raises(CvsiError, match="duplicate"):
        unpack(packed, params.load())
    later = pq.read_table(part).replace_schema_metadata({"cvsi.schema": "99"})
    pq.write_table(later, part)
    seal(packed)
    with pytest.raises(CvsiError, match="schema version 99"):
        unpack(packed, params.load())
    assert not stored(other)


@pytest.mark.parametrize(
    "text",
    ["[]", '{"a": [1]}', '{"a": {"b": {"c": "d"}}}', '{"a": 1e999}', '{"a": NaN}', '{"a": 1, "a": 1}', "{" * 99_999],
    ids=lambda text: text[:20],
)
def test_a_recipe_of_another_form(packed: Path, other: Workspace, text: str) -> None:
    (packed / "captions" / "recipe.json").write_text(text)
    seal(packed)
    with pytest.raises(CvsiError, match=r"recipe\.json"):
        unpack(packed, params.load())
    assert not stored(other)


def test_a_changed_recipe_is_detected_by_its_digest(packed: Path, other: Workspace) -> None:
    kinds = json.loads((packed / "manifest.json").read_text())["kinds"]
    file = packed / "captions" / "recipe.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    seal(packed, kinds=kinds)
    with pytest.raises(CvsiError, match="not the recipe whose digest the manifest gives"):
        unpack(packed, params.load())
    assert not stored(other)


def test_files_that_the_manifest_does_not_name_are_not_opened(
    packed: Path, other: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    (packed / "captions" / "part-00001.parquet").write_bytes(b"no Parquet")
    os.mkfifo(packed / "pipe")
    unpack(packed, params.load())
    assert "2 files that the manifest does not name, not opened" in capsys.readouterr().err


def test_a_footer_whose_paths_are_not_its_columns_is_one_line(packed: Path) -> None:
    part = packed / "captions" / "part-00000.parquet"
    content = part.read_bytes()
    for at in [at for at in range(len(content) - 8) if content.startswith(b"captions", at)]:
        part.write_bytes(content[:at] + b"\0" + content[at + 1 :])
        seal(packed)
        with suppress(CvsiError):
            pack_format.open_pack(packed).check()


@given(data=st.data())
def test_any_changed_bytes_of_a_part_are_one_line_or_rows(packed: Path, data: st.DataObject) -> None:
    part = packed / "captions" / "part-00000.parquet"
    whole = part.read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    part.write_bytes(content)
    try:
        seal(packed)
        pack_format.open_pack(packed).check()
    except CvsiError as error:
        assert len(str(error)) < 600
    finally:
        part.write_bytes(whole)
        seal(packed)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"captioner__precision": "bf16"},
            "precision is bf16 here, fp32 in the pack: set precision: fp32 for the captioner",
        ),
        ({"captioner__n": 4}, "n is 4 here, 5 in the pack: set n: 5 for the captioner"),
        ({"captioner__engine": "vllm"}, "engine is vllm here"),
        (
            {"captioner__model": "Salesforce/blip2"},
            "the captioner is Salesforce/blip2 at no revision here, a folder of",
        ),
        (
            {"captioner__model": "./other"},
            "set model: ./packed/blip2 for the captioner (the folder may be missing)",
        ),
        ({"editor__max_tokens": 65}, "max_tokens is 65 here, 64 in the pack: set max_tokens: 64 for the editor"),
        ({"prompts": {"edited": "general", "added": "demo_added"}}, "set edited: demo_edited in the dataset's prompts"),
        ({"editor__model": "Qwen/Qwen"}, "the editor is Qwen/Qwen at no revision here"),
    ],
)
def test_each_difference_is_printed_with_the_value_to_set(
    packed: Path, other: Workspace, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], line: str
) -> None:
    other.params(**{f"datasets__toy__{name}": value for name, value in changes.items()})
    unpack(packed, params.load())
    (printed,) = [text for text in capsys.readouterr().out.splitlines() if line in text]
    assert printed.startswith("cvsi: toy: ") and " not used" in printed


def test_rows_that_are_missing_in_the_pack_are_counted(
    packed: Path, other: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("photos/red.png", "photos/more.png")
    (other.path / "photos" / "more.png").write_bytes(Path("photos/red.png").read_bytes() + b"\0")
    index.build("toy", params.load())
    unpack(packed, params.load())
    printed = capsys.readouterr().out
    assert "toy: captions fit, but 1 of 9 distinct images are missing in the store" in printed
    shutil.rmtree("cache/toy/index")
    unpack(packed, params.load())
    assert "toy: captions fit; how many are used is known once it is indexed" in capsys.readouterr().out


def test_a_missing_model_gets_the_weights_digest_of_the_first_pack(
    packed: Path, other: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    model_id.record(f"{ABSENT}/blip2", "f" * 64, Store(Path("cache/store")))
    unpack(packed, params.load())
    assert "blip2 not found; used for it are weights ffffffffffff" in capsys.readouterr().out
    other.params(datasets__toy__captioner__model="./second/blip2")
    unpack(packed, params.load())
    assert "toy: captions complete: 8 distinct images" in capsys.readouterr().out


def test_a_pack_is_for_the_dataset_of_its_name_or_else_for_all(
    packed: Path, other: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    # demo has the same captioner, so a line names it; its editor is another one, which this pack does not concern.
    other.params(
        active=["toy", "demo"],
        datasets__demo__captioner={"model": f"{ABSENT}/blip2", "precision": "fp32", "n": 5},
        datasets__demo__editor={"engine": "vllm", "model": "demo-absent/x/llama", "precision": "fp32"},
    )
    unpack(packed, params.load())
    printed = capsys.readouterr().out
    assert "demo: captions fit; how many" in printed and "demo: edits" not in printed and "demo-absent" not in printed
    content = yaml.safe_load((other.path / "params.yaml").read_text())
    content["datasets"]["mine"] = content["datasets"].pop("toy")
    content |= {"active": ["mine"], "runs": {}}
    (other.path / "params.yaml").write_text(yaml.safe_dump(content))
    unpack(packed, params.load())
    assert "mine: captions fit; how many" in capsys.readouterr().out


def test_the_preflight_counts_the_rows_of_a_missing_model(packed: Path, other: Workspace) -> None:
    other.params(runs={})
    before = requirements.collect(params.load())
    assert {f"folder {ABSENT}/blip2", f"folder {ABSENT}/llama"} <= set(before.missing)
    unpack(packed, params.load())
    after = requirements.collect(params.load())
    assert not [what for what in after.missing if ABSENT in what]
    assert any(note.startswith(f"captioner {ABSENT}/blip2 is not here") for note in after.notes)
    first = forecast.tasks(params.load(), after)[0]
    assert (first.name, first.kind, first.todo) == ("toy", "images to 5 captions", 0)


def test_digests_of_present_weights_and_hub_names_are_not_read_from_the_store(toy: Workspace) -> None:
    store = Store(Path("cache/store"))
    model_id.record("photos", "f" * 64, store)
    model_id.record("owner/name", "f" * 64, store)
    assert model_id.identify("photos", None, store)["weights"] == model_id.content_digest(Path("photos"))
    assert model_id.identify("owner/name", None, store) == {"model": "owner/name", "revision": None}
    assert not model_id.is_hub_name("./owner/name") and not model_id.is_hub_name("~/name")


def test_the_readme_shows_text_as_text(packed: Path) -> None:
    page = (packed / "README.md").read_text(encoding="utf-8")
    assert "<script" not in page and "\\u003cscript" in page and "\n# no heading" not in page
    assert page.startswith("# Captions and edits of toy\n")
    assert "8 images" in page and "40 captions" in page and "3 edits, each" in page and "1 fell back" in page
    assert "cvsi unpack FOLDER" in page and "nucleus" in page and "no usable answer: edited" in page
    prompt = few_shot("demo_edited")
    assert all(line.strip() in page for line in prompt.splitlines() if "<" not in line)
    rows = pl.DataFrame({"key": ["k"], "captions": [["<b>"]]})
    recipes: dict[Any, Any] = {"captions": {"x|y": "`<b>`\n# z"}}
    marked = readme("a", recipes, {"captions": "[l](u)"}, {"captions": rows}, {"who": "<i>"})
    assert "| x\\|y | \\`&lt;b&gt;\\` \\# z |" in marked and "\\[l\\]\\(u\\)" in marked and "who: &lt;i&gt;" in marked


@pytest.mark.xdist_group("project")
def test_a_clone_without_the_models_gets_the_same_tables_by_a_pack(project: Workspace, tmp_path: Path) -> None:
    clone = Workspace(tmp_path / "clone")
    shutil.copytree(
        project.path, clone.path, symlinks=True, ignore=shutil.ignore_patterns("cache", "tmp", "__pycache__")
    )
    for model in ("blip2", "llama"):
        shutil.rmtree(clone.path / "demo" / "weights" / model)
    assert not (clone.path / "cache").exists() and not (clone.path / ".dvc" / "cache").exists()
    dvc = ["dvc", "repro", "captions@demo", "edits@demo"]
    failed = call(clone, *dvc, code=None)
    assert "demo/weights/blip2: no such model folder" in failed and "Traceback" not in failed
    call(project, "cvsi", "pack", "demo", str(tmp_path / "pack"))
    printed = call(clone, "cvsi", "unpack", str(tmp_path / "pack"))
    assert "captions: 260 rows added" in printed and "captioner demo/weights/blip2 not found" in printed
    printed = call(clone, *dvc)
    assert ": 260 in the store, 0 to caption" in printed and ": 32 in the store, 0 to edit" in printed
    printed = call(clone, "cvsi", "unpack", str(tmp_path / "pack"))
    assert "demo: captions complete" in printed and "demo: edits complete" in printed
    assert clone.bytes_below("demo/captions", "demo/edits") == project.bytes_below("demo/captions", "demo/edits")
    steps = [
        step
        for file in (clone.path / "cache" / ".runs").glob("*.json")
        for step in json.loads(file.read_text())["steps"]
        if step["kind"] in ("captions", "edits")
    ]
    assert len(steps) >= 2 and all(step["computed"] == 0 and step["load_seconds"] == 0 for step in steps)
    # A new image needs the model, and the line names it.
    content = yaml.safe_load((clone.path / "params.yaml").read_text())
    clone.params(world__gallery=content["world"]["gallery"] + 1)
    failed = call(clone, *dvc, code=None)
    assert "demo/weights/blip2: no such model, and the store has no rows of it" in failed


def call(workspace: Workspace, *command: str, code: int | None = 0) -> str:
    """Run a command in a workspace; what it printed. Without a code it must fail."""
    done = subprocess.run(command, cwd=workspace.path, env=environment(workspace.path), text=True, capture_output=True)
    assert (done.returncode == code) if code is not None else done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr
