"""`cvsi add`: a folder becomes entries of params.yaml, every other byte stays; what is refused leaves the file."""

import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from cvsi.commands import add as command
from cvsi.commands.main import app, main
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone
from cvsi.models import presets
from cvsi.models.catalogue import of_backbone, of_model
from cvsi.models.engines import captioner_settings, editor_settings
from tests.imports import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
OF_THE_HUB = [name for name in presets.presets() if name != presets.TINY]
LOCAL = [name for name in OF_THE_HUB if name != presets.SERVER]
MODELS = ("captioners", "editors")
SERVED = ("--preset", "server", "--model", "llava:7b")
PRESET = ("--preset", "gpu-24gb")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with a copy of params.yaml, and `photos` with two pictures; the file's path."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    shutil.copy(ROOT / "params.yaml", project)
    photos(project / "photos")
    return project / "params.yaml"


def photos(folder: Path, *names: str) -> Path:
    """A folder with small pictures; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("a.png", "b.jpg"):
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def invoke(*words: str) -> str:
    """Run `cvsi add`; its output. What it refuses is raised as CvsiError."""
    result = CliRunner().invoke(app, ["add", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def without_added(output: str, after: str) -> str:
    """The text of params.yaml with the lines of the printed diff taken back."""
    lines = after.splitlines(keepends=True)
    groups = re.split(r"^params\.yaml, .*:$", output, flags=re.M)[1:]
    for group in groups:
        removed = [f"{line[1:]}\n" for line in group.splitlines() if line.startswith("-")]
        added = [f"{line[1:]}\n" for line in group.splitlines() if line.startswith("+")]
        (at,) = [place for place in range(len(lines)) if lines[place : place + len(added)] == added]
        lines[at : at + len(added)] = removed
    return "".join(lines)


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_every_preset_is_what_its_engines_take_and_the_catalogue_knows(name: str) -> None:
    preset = presets.preset(name)
    if name == presets.SERVER:
        preset = presets.served(preset, command.ADDRESS, "llava", "qwen2.5")
    captioner = captioner_settings(preset.captioner.settings, "captioner")
    editor = editor_settings(preset.editor.settings, "editor")
    backbone = Backbone.model_validate(preset.backbone.settings)
    assert backbone.phi is None and editor.style == "chat"
    entry = of_backbone(backbone)
    assert entry.revision and entry.revision.value == backbone.revision and entry.download and entry.terms
    for settings in (captioner, editor) if name != presets.SERVER else ():
        entry = of_model(settings.model)
        assert entry.revision and entry.revision.value == settings.revision
        assert entry.download and entry.parameters and entry.terms


@pytest.mark.parametrize("options", [*[("--preset", name) for name in LOCAL], SERVED], ids=lambda words: words[1])
def test_the_entries_are_added_and_every_other_byte_stays(place: Path, options: tuple[str, ...]) -> None:
    output = invoke("photos", *options)
    after = place.read_text(encoding="utf-8")
    assert without_added(output, after) == TEXT
    content = params.load()
    run = f"photos-{options[1]}"
    assert content.active == ("demo", "photos") and content.runs[run].dataset == "photos"
    dataset, backbone = content.dataset("photos"), content.backbone(content.runs[run].backbone)
    assert (dataset.format, dataset.root) == ("folder", "photos") and backbone.phi is None
    assert dataset.fusion == {"query": {"edited": 1.0}, "gallery": {"image": 0.8, "caption": 0.2}}
    assert dataset.prompts.edited == "chat_general"
    assert "# No weight for `pseudo`: the published phi" in output
    assert "photos: 2 images" in output and "no such file, so there are no queries (none are needed" in output
    for step in ("cvsi check ", "cvsi check --download", "dvc repro", f"cvsi search {run} --text 'a beach'"):
        assert f"next: {step}" in output


def test_the_demos_models_are_used_again_by_the_preset_tiny(place: Path) -> None:
    output = invoke("photos", "--preset", "tiny")
    assert "captioners:" not in output and "editors:" not in output and "backbones:" not in output
    content = params.load()
    dataset, demo = content.dataset("photos"), content.dataset("demo")
    assert (dataset.captioner, dataset.editor, dataset.prompts) == (demo.captioner, demo.editor, demo.prompts)
    assert dataset.fusion == demo.fusion and content.runs["photos-tiny"].backbone == "tiny"
    assert "pseudo`" not in output


def test_a_second_folder_uses_the_entries_of_the_first(place: Path) -> None:
    invoke("photos", *PRESET)
    between = yaml.safe_load(place.read_text(encoding="utf-8"))
    photos(place.parent / "more")
    output = invoke("more", *PRESET)
    after = yaml.safe_load(place.read_text(encoding="utf-8"))
    for section in ("captioners", "editors", "backbones"):
        assert after[section] == between[section] and f"params.yaml, {section}:" not in output
    assert "+    captioner: *blip2_2_7b" in output and "+    editor: *qwen" in output


@pytest.mark.parametrize("again", ["photos", "./photos/", "other/../photos", "link", "{absolute}"])
def test_the_same_folder_again_is_one_line_and_changes_nothing(place: Path, again: str) -> None:
    (place.parent / "other").mkdir()
    (place.parent / "link").symlink_to("photos")
    invoke("photos", *PRESET)
    before = place.read_bytes()
    output = invoke(again.format(absolute=place.parent / "photos"))
    assert place.read_bytes() == before
    lines = [line for line in output.splitlines() if not line.startswith("next:")]
    assert len(lines) == 1 and "is the dataset photos already, in the runs photos-gpu-24gb; nothing changed" in lines[0]


def test_another_name_makes_a_second_dataset_of_the_folder(place: Path) -> None:
    invoke("photos", *PRESET)
    invoke("photos", "--name", "again", *PRESET)
    assert {params.load().dataset(name).root for name in ("photos", "again")} == {"photos"}


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("holiday", "holiday"), ("Holiday Photos", "holiday-photos"), ("Été à Nîmes", "ete-a-nimes"),
        ("2023", "photos-2023"), ("2023.07.01", "photos-2023-07-01"), ("写真", "photos"), ("no", "photos-no"),
        ("null", "photos-null"), ("a.b", "a-b"), ("--x--", "x"), ("it's $HOME \"x\" #1: {a}", "it-s-home-x-1-a"),
        ("x" * 120, "x" * 40), ("_private", "private"), ("1e3", "photos-1e3"), ("my ${item} [0]", "my-item-0"),
    ],
)  # fmt: skip
def test_any_folder_gives_a_name_and_a_root_that_yaml_and_dvc_read(place: Path, folder: str, name: str) -> None:
    photos(place.parent.parent / "elsewhere" / folder)
    invoke(str(place.parent.parent / "elsewhere" / folder), *PRESET)
    dataset = params.load().dataset(name)
    assert Path(dataset.root) == place.parent.parent / "elsewhere" / folder and Path(dataset.root).is_dir()


def test_a_folder_below_home_and_a_link(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = place.parent.parent / "home"
    monkeypatch.setenv("HOME", str(home))
    photos(home / "Pictures")
    (place.parent / "linked").symlink_to(home / "Pictures")
    invoke("~/Pictures", *PRESET)
    assert params.load().dataset("pictures").root == str(home / "Pictures")
    invoke("linked", "--name", "linked", *PRESET)
    assert params.load().dataset("linked").root == "linked"


def test_links_that_leave_the_folder_are_named_and_followed_into_further_roots(place: Path) -> None:
    photos(place.parent.parent / "disk" / "old", "c.png")
    (place.parent / "photos" / "old").symlink_to(place.parent.parent / "disk" / "old")
    output = invoke("photos", *PRESET)
    assert "2 images" in output and "a link that leaves the dataset's folder (old -> " in output
    output = invoke("photos", "--name", "all", "--roots", str(place.parent.parent / "disk"), *PRESET)
    assert "3 images" in output and params.load().dataset("all").roots == (str(place.parent.parent / "disk"),)


def test_files_that_are_not_read_and_queries_are_counted(place: Path) -> None:
    (place.parent / "photos" / "notes.txt").touch()
    query = {"reference": "a.png", "instruction": "is red"}
    lines = [json.dumps(query), json.dumps(query | {"targets": ["b.jpg"]})]
    (place.parent / "photos" / "queries.jsonl").write_text("\n".join(lines))
    output = invoke("photos", *PRESET)
    assert "1 file not read: 1 .txt (notes.txt)" in output and "queries.jsonl: 2 queries, 1 with targets" in output


def empty(place: Path) -> None:
    """A folder with a text alone."""
    (place.parent / "empty").mkdir()
    (place.parent / "empty" / "notes.txt").touch()


def unreadable_queries(place: Path) -> None:
    (place.parent / "photos" / "queries.jsonl").write_text("{")


def in_cache(place: Path) -> None:
    photos(place.parent / "cache" / "mine")


def in_data(place: Path) -> None:
    photos(place.parent / "data" / "demo")


def in_models(place: Path) -> None:
    photos(place.parent / "models" / "tiny" / "mine")


def aliased_active(place: Path) -> None:
    """`active` is also a dataset's list."""
    text = TEXT.replace("active: [demo]", "active: &all [demo]").replace("    splits: [val]", "    splits: *all")
    place.write_text(text)


def no_list(place: Path) -> None:
    place.write_text(TEXT.replace("active: [demo]", "active: demo"))


def in_store(place: Path) -> None:
    place.write_text(TEXT.replace("store: cache/store", "store: shared"))
    photos(place.parent / "shared" / "mine")


def other_settings(place: Path) -> None:
    text = TEXT.replace("\n  blip2: &blip2 ", "\n  blip2-2.7b:\n    model: a/b\n  blip2: &blip2 ")
    place.write_text(text)


def other_backbone(place: Path) -> None:
    place.write_text(TEXT.replace("\n  vit-b-32:\n", "\n  vit-l-14-without-phi:\n    model: x\n  vit-b-32:\n"))


def same_run(place: Path) -> None:
    place.write_text(
        TEXT.replace("\n  demo-tiny:", "\n  photos-gpu-24gb: {dataset: demo, backbone: tiny}\n  demo-tiny:")
    )


def read_only(place: Path) -> None:
    place.chmod(stat.S_IRUSR)


def no_params(place: Path) -> None:
    place.unlink()


def invalid(place: Path) -> None:
    place.write_text("active: [")


def flow_datasets(place: Path) -> None:
    """A file of one line per section, which has no place for an entry."""
    content = json.loads(json.dumps(yaml.safe_load(TEXT)))  # no part is shared, so no anchor is written twice
    place.write_text("".join(f"{key}: {yaml.safe_dump(value, default_flow_style=True, width=9999).strip()}\n"
                             for key, value in content.items() if key not in ("store",)))  # fmt: skip


def long_path(place: Path) -> None:
    """Nothing: the path is longer than the system takes."""


@pytest.mark.parametrize(
    ("prepare", "words", "error"),
    [
        (None, ("nowhere",), "nowhere: no such folder"),
        (None, ("",), "the folder's name is empty"),
        (None, ("   ",), "the folder's name is empty"),
        (None, ("params.yaml",), "params.yaml: a file, not a folder"),
        (None, ("photos/a.png",), "photos/a.png: a file, not a folder"),
        (None, ("~nobody-has-this-name/x",), "~nobody-has-this-name/x: "),
        (long_path, ("x" * 5000,), "File name too long"),
        (None, ("photos/a.png/b",), "photos/a.png/b: "),
        (empty, ("empty",), "empty: no images in it; 1 file not read: 1 .txt (notes.txt)"),
        (unreadable_queries, ("photos",), "photos/queries.jsonl"),
        (in_cache, ("cache/mine",), "cache/mine: lies in cache"),
        (in_cache, ("cache",), "cache: lies in cache"),
        (in_data, ("data",), "data: contains data/demo, where the stage world draws the demo"),
        (in_data, ("data/demo",), "data/demo: lies in data/demo"),
        (in_models, ("models/tiny/mine",), "models/tiny/mine: lies in models/tiny"),
        (aliased_active, ("photos", *PRESET), "photos cannot be added to active in this layout; add it by hand"),
        (no_list, ("photos", *PRESET), "active: "),
        (in_store, ("shared/mine",), "shared/mine: lies in shared, where the store is"),
        (None, (".",), ".: contains this project"),
        (None, ("..",), "..: contains this project"),
        (None, ("photos", "--name", "demo"), "datasets.demo exists already, its root is data/demo; "),
        (None, ("photos", "--name", "DEMO"), "datasets.demo exists already"),
        (None, ("photos", "--name", "store"), "datasets.store: the name is reserved, the store has it"),
        (None, ("photos", "--name", "captions"), "the name is reserved, a stage has it"),
        (None, ("photos", "--name", "a.b"), "--name a.b: not a name for a dataset"),
        (None, ("photos", "--name", "../x"), "--name ../x: not a name for a dataset"),
        (None, ("photos", "--name", "2023"), "--name 2023: not a name for a dataset"),
        (None, ("photos", "--name", "true"), "--name true: not a name for a dataset"),
        (None, ("photos", "--name", "x" * 200), "not a name for a dataset"),
        (None, ("photos", "--preset", "gpu"), "--preset gpu: no such preset; there are: laptop, gpu-24gb, "),
        (None, ("photos", "--preset", "server"), "needs the name of a model that sees images: --model NAME"),
        (None, ("photos", "--preset", "server", "--edit-model", "x"), "(missing: --caption-model)"),
        (None, ("photos", "--preset", "server", "--model", "x", "--address", "localhost"), "--address localhost: not"),
        (None, ("photos", "--preset", "server", "--model", "x", "--address", "http://me:pw@x"), "--address http://"),
        (None, ("photos", *PRESET, "--model", "x"), "--model is for --preset server alone; the preset is gpu-24gb"),
        (None, ("photos", *PRESET, "--roots", "nowhere"), "nowhere: no such folder"),
        (other_settings, ("photos", *PRESET), "captioners.blip2-2.7b exists already with other settings"),
        (other_backbone, ("photos", *PRESET), "backbones.vit-l-14-without-phi exists already with other settings"),
        (same_run, ("photos", *PRESET), "runs.photos-gpu-24gb exists already; choose another name: --name NAME"),
        (read_only, ("photos",), "params.yaml: the file is read-only"),
        (no_params, ("photos",), "params.yaml: no such file; run in the project's folder"),
        (invalid, ("photos",), "params.yaml: not valid YAML"),
        (flow_datasets, ("photos", *PRESET), "params.yaml: backbones is written in one line"),
    ],
)  # fmt: skip
def test_what_is_refused_is_one_line_and_leaves_the_file(
    place: Path, prepare: Callable[[Path], None] | None, words: tuple[str, ...], error: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if prepare:
        prepare(place)
    before = place.read_bytes() if place.exists() else None
    monkeypatch.setattr("sys.argv", ["cvsi", "add", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert error in err and len(err.strip().splitlines()) == 1 and not out, (out, err)
    assert (place.read_bytes() if place.exists() else None) == before
    assert not list(place.parent.glob(".*partial"))


def test_a_folder_named_as_a_stage_needs_another_name(place: Path) -> None:
    photos(place.parent / "captions")
    with pytest.raises(CvsiError, match="the name is reserved, a stage has it; choose another name: --name NAME"):
        invoke("captions", *PRESET)


def with_block_list(text: str) -> str:
    return re.sub(r"^active: \[demo\] +(#.*)$", r"active:   \1\n  - demo  # the drawn world", text, flags=re.M)


def with_lines_in_the_list(text: str) -> str:
    return text.replace("active: [demo] ", "active: [\n  demo,   # the drawn world\n] ")


def with_empty_captioners(text: str) -> str:
    content = yaml.safe_load(text)
    return yaml.safe_dump(content | {"captioners": {}}, sort_keys=False)


def without_sections(text: str) -> str:
    content = yaml.safe_load(text)
    return yaml.safe_dump({key: content[key] for key in content if key not in MODELS}, sort_keys=False)


def with_models_last(text: str) -> str:
    content = yaml.safe_load(text)
    last = {key: content.pop(key) for key in MODELS}
    return yaml.safe_dump(content | last, sort_keys=False)


def with_models_in_one_line(text: str) -> str:
    content = yaml.safe_load(text)
    lines = [
        f"{key}: {yaml.safe_dump(content.pop(key), default_flow_style=True, width=9999)}"
        for key in ("captioners", "editors")
    ]
    return "".join(lines) + yaml.safe_dump(content, sort_keys=False)


def without_anchor(text: str) -> str:
    return text.replace("qwen: &qwen", "qwen:").replace("editor: *qwen", "editor: {model: x/y}")


def with_taken_anchor(text: str) -> str:
    return text.replace("&blip2 ", "&blip2_2_7b ").replace("*blip2\n", "*blip2_2_7b\n")


def with_windows_lines(text: str) -> str:
    return text.replace("\n", "\r\n")


def without_last_line_break(text: str) -> str:
    return text.rstrip("\n")


@pytest.mark.parametrize(
    "change",
    [with_block_list, with_lines_in_the_list, with_empty_captioners, without_sections, with_models_last,
     with_models_in_one_line, without_anchor, with_taken_anchor, with_windows_lines, without_last_line_break],
)  # fmt: skip
def test_every_layout_of_the_file_gets_the_same_settings(place: Path, change: Callable[[str], str]) -> None:
    text = change(TEXT)
    assert text != TEXT
    place.write_bytes(text.encode())
    invoke("photos", *PRESET)
    after = place.read_bytes().decode()
    content = yaml.safe_load(after)
    preset = presets.preset("gpu-24gb")
    assert content["datasets"]["photos"]["captioner"] == preset.captioner.settings
    assert content["datasets"]["photos"]["editor"] == preset.editor.settings
    assert content["active"] == ["demo", "photos"]
    kept = [line for line in text.splitlines() if "#" in line and not line.startswith(("active", "  demo"))]
    assert [line for line in after.splitlines() if line in kept] == kept
    assert ("\r\n" in text) == (after.count("\n") == after.count("\r\n"))


@pytest.mark.parametrize(
    ("gib", "name", "why"),
    [(0, "laptop", "nvidia-smi found no GPU"), (8, "laptop", "the GPU has 8 GiB, too little"),
     (24, "gpu-24gb", "the GPU has 24 GiB"), (22.5, "gpu-24gb", "the GPU has 22 GiB"),
     (48, "gpu-24gb", "the GPU has 48 GiB"),
     (80, "gpu-80gb", "the GPU has 80 GiB"), (141, "gpu-80gb", "the GPU has 141 GiB")],
)  # fmt: skip
def test_the_preset_follows_from_the_gpus_memory(
    place: Path, monkeypatch: pytest.MonkeyPatch, gib: float, name: str, why: str
) -> None:
    monkeypatch.setattr(command, "gpu_bytes", lambda: int(gib * presets.GIB))
    output = invoke("photos")
    assert f"preset {name}: {why}" in output.splitlines()[0] and "; --preset names another" in output.splitlines()[0]
    assert f"photos-{name}" in params.load().runs


@pytest.mark.parametrize("words", [(), ("--presets",), ("photos", "--presets")])
@pytest.mark.parametrize("width", [80, 160])
def test_the_presets_are_printed_with_a_source_for_each_fact(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    output = invoke(*words)
    assert max(map(len, output.splitlines())) <= width
    for name in presets.presets():
        assert f"{name}: " in output
    cited = {int(number) for number in re.findall(r"\[(\d+)\]", output)}
    listed = {int(number) for number in re.findall(r"^\[(\d+)\] \w", output, flags=re.M)}
    assert cited == listed == set(range(1, len(listed) + 1)) and len(listed) > 8
    assert place.read_text(encoding="utf-8") == TEXT


def test_what_the_docs_show_is_what_is_printed(place: Path) -> None:
    text = (ROOT / "docs" / "own_photos.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```text\n(cvsi: preset laptop: .*?)```", text, flags=re.S)
    photos(place.parent / "data" / "photographs", "README.md.png", *(f"{number}.png" for number in range(11)))
    (place.parent / "data" / "photographs" / "README.md").touch()
    assert invoke("data/photographs", "--preset", "laptop") == shown


def test_an_empty_list_of_active_datasets(place: Path) -> None:
    place.write_text(TEXT.replace("active: [demo]", "active: []"), encoding="utf-8")
    invoke("photos", *PRESET)
    assert params.load().active == ("photos",)


@pytest.mark.parametrize("folder", ["line\nbreak", "tab\there", "caf\udce9"])
def test_odd_names_of_folders_are_one_line(place: Path, folder: str, capsys: pytest.CaptureFixture[str],
                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    photos(place.parent / "more" / folder)
    monkeypatch.setattr("sys.argv", ["cvsi", "add", f"more/{folder}", *PRESET])
    try:
        main()
    except SystemExit as ended:
        assert ended.code in (0, 1)
    lines = capsys.readouterr().err.splitlines()
    if folder.startswith("caf"):
        assert len(lines) == 1 and "the path is not UTF-8 text; rename the folder" in lines[0]
    else:
        assert params.load().dataset(params.load().active[1]).root == f"more/{folder}"


def test_dvc_reads_the_file_with_such_a_dataset(place: Path) -> None:
    from dvc.repo import Repo

    invoke("photos", *PRESET)
    shutil.copy(ROOT / "dvc.yaml", place.parent)
    with Repo.init(str(place.parent), no_scm=True) as repo:
        stages = {getattr(stage, "name", "") for stage in repo.index.stages}
    assert {"index@photos", "captions@photos", "edits@photos", "scores@photos-gpu-24gb"} <= stages


def test_a_change_of_the_file_by_another_program_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def facts(*arguments: Any) -> list[str]:
        place.write_text(TEXT + "# another program\n", encoding="utf-8")
        return []

    monkeypatch.setattr(command, "_facts", facts)
    with pytest.raises(CvsiError, match="another program changed the file"):
        invoke("photos", *PRESET)
    assert place.read_text(encoding="utf-8") == TEXT + "# another program\n"


def test_a_link_to_params_stays_a_link(place: Path) -> None:
    target = place.parent.parent / "real.yaml"
    shutil.move(place, target)
    place.symlink_to(target)
    invoke("photos", *PRESET)
    assert place.is_symlink() and "photos" in yaml.safe_load(target.read_text(encoding="utf-8"))["datasets"]
    assert os.readlink(place) == str(target)
