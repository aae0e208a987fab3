"""`cvsi check --download` against a hub on this machine: resumed, verified, one line per fault, all in the cache."""

import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from typer.testing import CliRunner

from cvsi.commands import download as command
from cvsi.commands.main import app, main
from cvsi.core import console
from cvsi.core.yaml_edit import Document
from cvsi.models import hub as hub_module
from tests.conftest import Workspace, environment, project_params
from tests.hub_server import Faults, HubServer, commit_of, serving
from tests.imports import ROOT

TOWER, TOWER_FILE = "timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors"
CAPTIONER, EDITOR = "toys/blip2", "toys/llama"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
OTHER = "f" * 40


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def sharded() -> dict[str, bytes]:
    """A repository with sharded weights, and with much that is not needed."""
    index = {"metadata": {}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}}
    return {
        ".gitattributes": b"x", "README.md": b"a card", "modeling.py": b"import os", "config.json": b'{"a": 1}',
        "model.safetensors.index.json": json.dumps(index).encode(), "merges.txt": b"a b", "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ a }}", SHARDS[0]: noise(60_000, 1), SHARDS[1]: noise(50_000, 2),
        "pytorch_model.bin": noise(1000, 3), "tf_model.h5": b"h", "flax_model.msgpack": b"m", "onnx/model.onnx": b"o",
        "consolidated.safetensors": noise(1000, 4),
    }  # fmt: skip


NEEDED = {
    CAPTIONER: {"config.json", "tokenizer.json", "model.safetensors"},
    EDITOR: {
        "config.json", "model.safetensors.index.json", "merges.txt", "tokenizer.json", "chat_template.jinja", *SHARDS
    },
    TOWER: {TOWER_FILE},
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with the three repositories, and short pauses."""
    with serving() as server:
        server.add(
            CAPTIONER,
            {
                "config.json": b'{"model_type": "blip-2"}',
                "tokenizer.json": b"[]",
                "model.safetensors": noise(300_000, 5),
            },
        )
        server.add(EDITOR, sharded(), "v1", commit_of(EDITOR)[:8])
        server.add(TOWER, {TOWER_FILE: noise(200_000, 6), "model.safetensors": b"timm's", "config.json": b"{}"})
        monkeypatch.setattr(hub_module, "FIRST_PAUSE", 0.001)
        yield server


@pytest.fixture
def place(toy: Workspace, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The toy dataset with models of the hub, and an empty cache of the hub."""
    content = project_params()
    content["captioners"]["toy"] = content["captioners"]["tiny"] | {"model": CAPTIONER}
    content["editors"]["toy"] = content["editors"]["tiny"] | {"model": EDITOR, "revision": commit_of(EDITOR)}
    content["backbones"]["toy"] = {
        "model": "ViT-B-32-quickgelu", "pretrained": "openai", "revision": commit_of(TOWER), "preprocess": "target-pad"
    }  # fmt: skip
    content["datasets"]["toy"] = content["datasets"]["demo"] | {
        "format": "folder", "root": "photos", "captioner": content["captioners"]["toy"],
        "editor": content["editors"]["toy"], "fusion": {"query": {"edited": 1.0}, "gallery": {"image": 1.0}},
    }  # fmt: skip
    content |= {"active": ["toy"], "runs": {"toy-toy": {"dataset": "toy", "backbone": "toy"}}}
    (toy.path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    at(monkeypatch, hub.address, toy.path / "hub")
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return toy


def at(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """Set the hub's address and cache, which huggingface_hub reads from the environment when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def check(code: int, *options: str) -> str:
    """Run `cvsi check` in this process; what it printed to both streams."""
    result = CliRunner().invoke(app, ["check", *options])
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


def download(code: int = 0) -> str:
    return check(code, "--download")


def failed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the download as a command that ends with one line; that line."""
    monkeypatch.setattr(sys, "argv", ["cvsi", "check", "--download"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in lines[0], lines
    return lines[0]


def snapshot(place: Workspace, repository: str) -> Path:
    folder = place.path / "hub" / f"models--{repository.replace('/', '--')}"
    return folder / "snapshots" / commit_of(repository)


def files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def assert_complete(place: Workspace, hub: HubServer) -> None:
    """Every needed file is there with its bytes, no other one is, and the check finds the models."""
    for repository, names in NEEDED.items():
        expected = {name: hub.repositories[repository].files[name] for name in names}
        assert files(snapshot(place, repository)) == expected
    assert not list(place.path.rglob("*.incomplete"))
    assert "Nothing is missing." in check(0)


def test_only_what_is_needed_is_downloaded_and_the_check_finds_it(place: Workspace, hub: HubServer) -> None:
    missing = check(1)
    assert all(name in missing for name in (CAPTIONER, EDITOR, "backbone ViT-B-32-quickgelu openai"))
    text = download()
    assert_complete(place, hub)
    size = sum(len(hub.repositories[name].files[file]) for name, needed in NEEDED.items() for file in needed)
    index = len(hub.repositories[EDITOR].files["model.safetensors.index.json"])  # downloaded to choose the rest
    assert f"to download: {(size - index) / 1000:.1f} kB of {size / 1000:.1f} kB from {hub.address} into" in text
    assert f"captioner {CAPTIONER}: no revision asked, {commit_of(CAPTIONER)} got\n" in text
    assert f"  3 files, 300.0 kB, verified, in {snapshot(place, CAPTIONER)}\n" in text
    assert f"editor {EDITOR}: revision {commit_of(EDITOR)} asked and got\n" in text
    assert f"in {snapshot(place, TOWER)}" in text
    assert text.count("to pin it") == 1, "only the captioner has no revision"
    assert hub.sent == size and "Nothing is missing." in text


def test_a_second_call_downloads_nothing_and_verifies_all(place: Workspace, hub: HubServer) -> None:
    download()
    sent = hub.sent
    assert "to download: 0 bytes of" in download() and hub.sent == sent


@pytest.mark.parametrize(
    "faults",
    [
        Faults(break_after=7000),
        Faults(break_after=7000, ignore_range=True, breaks=4),
        Faults(break_after=150_000, other_part=True, breaks=1),
        Faults(busy=[(503, {}), (429, {"Retry-After": "0.01"}), (500, {}), (502, {}), (408, {})]),
        Faults(busy_listing=[(503, {}), (429, {"Retry-After": "0.01"}), (504, {})]),
        Faults(break_after=0, breaks=3),
        Faults(break_after=100_000, without_length=True),
        Faults(break_listing=4),
    ],
    ids=[
        "breaks off",
        "ignores ranges",
        "another part",
        "busy",
        "busy with the list",
        "breaks off before a byte",
        "ends without a length",
        "the list breaks off",
    ],
)
def test_passing_failures_are_tried_again_and_continue(place: Workspace, hub: HubServer, faults: Faults) -> None:
    hub.faults = faults
    text = download()
    assert_complete(place, hub)
    assert "next try in" in text


def test_what_arrived_is_not_asked_for_again(place: Workspace, hub: HubServer) -> None:
    hub.faults = Faults(break_after=100_000)
    download()
    assert hub.sent == sum(len(hub.repositories[name].files[file]) for name, all in NEEDED.items() for file in all)
    ranges = [headers.get("range") for headers in hub.asked("blip2/resolve") if headers.get("range")]
    assert ranges == ["bytes=100000-", "bytes=200000-"]


def test_a_server_that_never_gets_further_ends_in_one_line_and_the_next_call_continues(
    place: Workspace, hub: HubServer
) -> None:
    hub.faults = Faults(break_after=120_000, ignore_range=True)
    text = download(1)
    assert text.count("7 times in a row; run it again to continue") == 2  # the captioner's file and the tower's
    partial = snapshot(place, CAPTIONER).parents[1] / "blobs"
    [file] = partial.glob("*.incomplete")
    assert file.stat().st_size == 120_000
    sent, hub.faults = hub.sent, Faults()
    download()
    assert hub.sent - sent == 180_000 + 80_000
    assert_complete(place, hub)


def test_too_long_a_pause_is_not_waited_for(place: Workspace, hub: HubServer) -> None:
    hub.faults = Faults(busy=[(429, {"Retry-After": "86400"})])
    assert "the server answers 429, retry after 86400 s; run it again then" in download(1)


@pytest.mark.parametrize(
    ("repository", "name", "kind"),
    [
        (CAPTIONER, "model.safetensors", "SHA-256"), (EDITOR, SHARDS[1], "SHA-256"), (TOWER, TOWER_FILE, "SHA-256"),
        (CAPTIONER, "config.json", "git SHA-1"), (EDITOR, "model.safetensors.index.json", "git SHA-1"),
    ],
)  # fmt: skip
def test_wrong_bytes_of_the_right_size_are_deleted(
    place: Workspace, hub: HubServer, repository: str, name: str, kind: str
) -> None:
    hub.faults = Faults(wrong={name})
    text = download(1)
    content = hub.repositories[repository].files[name]
    sent = bytes([content[0] ^ 1]) + content[1:]
    if kind == "SHA-256":
        expected, got = hashlib.sha256(content).hexdigest(), hashlib.sha256(sent).hexdigest()
    else:
        expected, got = (hashlib.sha1(f"blob {len(part)}\0".encode() + part).hexdigest() for part in (content, sent))
    assert f"{repository}: {name}: wrong {kind}, expected {expected}, got {got}; deleted from the cache" in text
    assert not (snapshot(place, repository) / name).exists()
    assert not [file for file in (place.path / "hub").rglob("*") if file.is_file() and file.read_bytes() == sent]
    assert "missing" in text.lower()
    hub.faults = Faults()
    download()
    assert_complete(place, hub)


def test_wrong_bytes_after_a_break_are_found(place: Workspace, hub: HubServer) -> None:
    hub.faults = Faults(break_after=120_000, wrong={"model.safetensors"})
    assert "wrong SHA-256" in download(1)
    assert not list((place.path / "hub").rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(shorter={"model.safetensors"}), "the server sends 299,997 bytes, but lists 300,000"),
        (Faults(longer={"model.safetensors"}), "the server sends 300,004 bytes, but lists 300,000"),
        (Faults(shorter={"model.safetensors"}, without_length=True), "the server sends 299,997 bytes, but lists"),
        (
            Faults(shorter={"model.safetensors"}, without_length=True, ignore_range=True),
            "the server ended early, 7 times in a row",
        ),
        (Faults(longer={"model.safetensors"}, without_length=True), "more than the 300,000 bytes it lists; deleted"),
        (Faults(commit_of_file=OTHER), f"but the server sends '{OTHER}'"),
        (Faults(commit=OTHER), f"revision {commit_of(TOWER)} asked, but the server answers with {OTHER}"),
        (Faults(commit="../../../x"), "the server names no commit ('../../../x')"),
        (Faults(refused={CAPTIONER: 401}), "refused (401): it is gated, private or does not exist, and HF_TOKEN"),
        (Faults(refused={CAPTIONER: 403}), "access refused (403)"),
        (Faults(refused={CAPTIONER: 404}), "no such repository or revision (404)"),
        (Faults(refused={CAPTIONER: 418}), "unexpected answer 418"),
        (Faults(refused_files={"model.safetensors": 403}), "access refused (403)"),
        (Faults(refused_files={"model.safetensors": 404}), "(404)"),
        (Faults(listing=b"<html>a login page</html>"), "does not answer as a model hub; check HF_ENDPOINT"),
        (Faults(listing=b'{"sha": 5, "siblings": {}}'), "does not answer as a model hub"),
        (Faults(listing=b"[" * 100_000), "does not answer as a model hub"),
        (Faults(listing=b" " * (33 << 20)), "its list of files is over 32 MiB"),
        (Faults(listing=json.dumps({"sha": OTHER, "siblings": []}).encode()), "no weights as safetensors"),
        (Faults(encoding="gzip"), "times in a row"),
    ],
)  # fmt: skip
def test_what_a_hub_refuses_or_gets_wrong_is_one_line_each(
    place: Workspace, hub: HubServer, faults: Faults, words: str
) -> None:
    hub.faults = faults
    lines = [line for line in download(1).splitlines() if words in line and line.startswith("cvsi: ")]
    assert lines and all(len(line) < 600 for line in lines)
    outside = {path.name for path in place.path.iterdir()}
    assert outside <= {"hub", "photos", "params.yaml", "cache"}


@pytest.mark.parametrize(
    "name",
    [
        "../../../../evil.json", "/tmp/evil.json", "a/../../evil.json", "a//evil.json", "./evil.json",
        "a\\..\\evil.json", "evil\n.json", "a\0.json", "..json/../../evil.json", f"{'a' * 300}.json", "\x1b[31m.json",
    ],
)  # fmt: skip
def test_names_that_lead_out_of_the_cache_are_refused(place: Workspace, hub: HubServer, name: str) -> None:
    hub.faults = Faults(extra=[{"rfilename": name, "size": 2, "blobId": "a" * 40}])
    text = download(1)
    assert text.count("has a name that cannot be kept in the cache") == 2
    assert not list(place.path.rglob("evil*")) and "\x1b" not in text
    assert not snapshot(place, CAPTIONER).exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"size": None, "blobId": "a" * 40}, {"size": 3}, {"size": 3, "blobId": "../../x"},
        {"size": 3, "blobId": "A" * 40},
        {"size": 3, "blobId": "a" * 40, "lfs": {"sha256": "a" * 40, "size": 3}},
        {"size": 3, "blobId": "a" * 40, "lfs": {"sha256": f"../{'a' * 61}", "size": 3}},
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_verified_is_not_downloaded(place: Workspace, hub: HubServer, entry: Any) -> None:
    hub.faults = Faults(extra=[{"rfilename": "extra.json"} | entry])
    assert "'extra.json' is listed without a size or a digest, so it cannot be verified" in download(1)
    assert not snapshot(place, CAPTIONER).exists()


@pytest.mark.parametrize("size", [-1, 1 << 51, 1.5, "7", True])
def test_a_size_that_cannot_be_is_refused(place: Workspace, hub: HubServer, size: Any) -> None:
    hub.faults = Faults(extra=[{"rfilename": "extra.json", "size": size, "blobId": "a" * 40}])
    assert "does not answer as a model hub" in download(1)


@pytest.mark.parametrize(
    "index",
    [b"no json", b"[]", b'{"weight_map": []}', b'{"weight_map": {"a": 5}}', b'{"weight_map": {}}',
     b'{"weight_map": {"a": "code.py"}}', b'{"weight_map": {"a": "../../evil.safetensors"}}',
     b'{"weight_map": {"a": "absent.safetensors"}}', b'{"weight_map": {"a": {}}}', b"[" * 100_000],
    ids=range(10),
)  # fmt: skip
def test_a_wrong_index_is_one_line(place: Workspace, hub: HubServer, index: bytes) -> None:
    hub.repositories[EDITOR].files["model.safetensors.index.json"] = index
    text = download(1)
    assert text.count(f"cvsi: {EDITOR}: ") == 1 and "Traceback" not in text
    assert (snapshot(place, CAPTIONER) / "model.safetensors").is_file(), "the others are downloaded all the same"


@pytest.mark.parametrize("names", [("pytorch_model.bin",), ("a.bin", "b.bin"), ("model.h5", "flax_model.msgpack"), ()])
def test_pickles_are_not_downloaded(place: Workspace, hub: HubServer, names: tuple[str, ...]) -> None:
    hub.add(CAPTIONER, {"config.json": b"{}"} | dict.fromkeys(names, b"pickle"))
    hub.add(TOWER, {"open_clip_pytorch_model.bin": b"pickle"})
    text = download(1)
    assert f"{CAPTIONER}: no weights as safetensors" in text and all(name in text for name in names)
    assert f"{TOWER}: no {TOWER_FILE}, only open_clip_pytorch_model.bin, which can hold code; not downloaded" in text
    assert not hub.asked("pickle") and not hub.asked(".bin")


def test_a_single_file_may_have_any_name_and_several_need_an_index(place: Workspace, hub: HubServer) -> None:
    hub.add(EDITOR, {"config.json": b"{}", "weights.safetensors": noise(900, 8), "vae/other.safetensors": b"o"})
    assert "Nothing is missing." in download()
    assert set(files(snapshot(place, EDITOR))) == {"config.json", "weights.safetensors"}
    hub.repositories[EDITOR].files["more.safetensors"] = noise(900, 9)
    assert "2 files of safetensors (more.safetensors, weights.safetensors) without model.safetensors.index" in download(
        1
    )


def test_a_redirect_to_another_host_gets_no_token(
    place: Workspace, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving() as other:
        other.repositories = hub.repositories
        hub.faults = Faults(redirect=other.address)
        text = download()
    assert_complete(place, hub)
    assert {headers["authorization"] for _, headers in hub.requests} == {"Bearer hf_secret"}
    assert other.requests and not any("authorization" in headers for _, headers in other.requests)
    assert "hf_secret" not in text
    assert not any(b"hf_secret" in content for content in files(place.path).values())


def test_a_token_of_a_file_is_not_sent(place: Workspace, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.path / "token").write_text("hf_stored")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(place.path / "token"))
    download()
    assert not any("authorization" in headers for _, headers in hub.requests)


@pytest.mark.parametrize("token", ["hf_s\u00e9cret", "hf_s ecret", "hf_s\necret"])
def test_a_token_that_cannot_be_sent_is_one_line_without_it(
    place: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    line = failed(capsys, monkeypatch)
    assert "HF_TOKEN: not an access token" in line and "ecret" not in line


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:1", "http://name.invalid", "ftp://127.0.0.1", "nonsense", "http://[::1", "http://", ""],
)
def test_without_a_network_it_ends_at_once_in_one_line(
    place: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    at(monkeypatch, address, place.path / "hub")
    began = time.monotonic()
    line = failed(capsys, monkeypatch)
    assert f"{address or '(HF_ENDPOINT is empty)'}: the hub cannot be reached" in line and time.monotonic() - began < 8


def test_a_password_in_the_address_is_not_printed(
    place: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, "http://me:secret@127.0.0.1:1", place.path / "hub")
    line = failed(capsys, monkeypatch)
    assert "http://127.0.0.1:1: the hub cannot be reached" in line and "secret" not in line


def test_progress_has_rate_and_remaining_time(
    place: Workspace, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(command, "MEGABYTE", 1000)
    lines = [line for line in download().splitlines() if re.search(r"of 6\d\d MB \([\d,.]+ a second, .* left\)", line)]
    assert len(lines) > 3


def test_offline_is_one_line_unless_all_is_there(
    place: Workspace, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert f"HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and {CAPTIONER}, {EDITOR}, {TOWER} must be" in failed(
        capsys, monkeypatch
    )
    assert not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    download()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert "3 models found in the hub's cache, not compared" in download() and len(hub.requests) == asked


def test_too_little_space_is_one_line_before_anything_large(
    place: Workspace, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults = Faults(extra=[{"rfilename": "huge.json", "size": 1 << 48, "blobId": "a" * 40}])
    line = failed(capsys, monkeypatch)
    assert "are free; free space, or set HF_HUB_CACHE" in line and "GB are to be downloaded" in line
    assert not hub.asked(".safetensors?") and not hub.asked("resolve/" + commit_of(CAPTIONER))


def test_a_cache_that_cannot_be_written_is_one_line(
    place: Workspace, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.path / "hub").write_bytes(b"a file in its place")
    assert "the hub's cache cannot be read or written" in failed(capsys, monkeypatch)


def test_a_full_disk_is_one_line_and_what_arrived_stays(
    place: Workspace, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        line = failed(capsys, monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "the hub's cache cannot be read or written (File too large); free space" in line
    download()
    assert_complete(place, hub)


def test_a_read_only_cache_with_everything_is_verified(place: Workspace, hub: HubServer) -> None:
    download()
    before = {path: path.lstat().st_mtime_ns for path in (place.path / "hub").rglob("*")}
    download()
    assert {path: path.lstat().st_mtime_ns for path in (place.path / "hub").rglob("*")} == before


@pytest.mark.parametrize("fault", ["same size", "cut", "empty", "gone", "no link", "marked as absent"])
def test_a_damaged_cache_is_mended(place: Workspace, hub: HubServer, fault: str) -> None:
    download()
    pointer = snapshot(place, CAPTIONER) / "model.safetensors"
    blob, content = pointer.resolve(), pointer.read_bytes()
    if fault == "same size":
        blob.write_bytes(content[:-1] + b"?")
    elif fault in ("cut", "empty"):
        blob.write_bytes(content[:1000] if fault == "cut" else b"")
    elif fault == "gone":
        blob.unlink()
    elif fault == "no link":
        pointer.unlink()
    else:
        mark = pointer.parents[2] / ".no_exist" / commit_of(CAPTIONER) / "model.safetensors"
        mark.parent.mkdir(parents=True)
        mark.touch()
        pointer.unlink()
    text = download()
    assert ("in the cache is damaged" in text) == (fault == "same size")
    assert_complete(place, hub)


def test_a_partial_file_that_is_too_long_or_wrong_does_no_harm(place: Workspace, hub: HubServer) -> None:
    content = hub.repositories[CAPTIONER].files["model.safetensors"]
    partial = snapshot(place, CAPTIONER).parents[1] / "blobs" / f"{hashlib.sha256(content).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(400_000))
    download()
    assert_complete(place, hub)
    (snapshot(place, CAPTIONER) / "model.safetensors").resolve().unlink()
    partial.write_bytes(bytes(1000))
    assert "wrong SHA-256" in download(1) and not partial.exists()
    download()
    assert_complete(place, hub)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_a_killed_download_continues(place: Workspace, hub: HubServer, number: int, code: int) -> None:
    hub.faults = Faults(second=0.15)
    env = environment(place.path) | {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(place.path / "hub")}
    command = [sys.executable, "-c", "from cvsi.commands.main import main; main()", "check", "--download"]
    process = subprocess.Popen(command, cwd=place.path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    blobs = snapshot(place, CAPTIONER).parents[1] / "blobs"
    deadline = time.monotonic() + 60
    partial = blobs / f"{hashlib.sha256(hub.repositories[CAPTIONER].files['model.safetensors']).hexdigest()}.incomplete"
    while not (partial.is_file() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    printed = process.communicate()[0].decode()
    assert process.returncode == code and "Traceback" not in printed
    assert ("stopped; the next cvsi check --download continues" in printed) == (number == signal.SIGINT)
    kept = partial.stat().st_size
    assert 0 < kept < 300_000
    sent, hub.faults = hub.sent, Faults()
    assert f"captioner {CAPTIONER}" in check(1)
    download()
    assert f"bytes={kept}-" in [headers.get("range") for headers in hub.asked("blip2/resolve")]
    assert hub.sent > sent
    assert_complete(place, hub)


def test_two_downloads_at_once_fetch_each_file_once(place: Workspace, hub: HubServer) -> None:
    hub.faults = Faults(second=0.05)
    env = environment(place.path) | {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(place.path / "hub")}
    command = [sys.executable, "-c", "from cvsi.commands.main import main; main()", "check", "--download"]
    runs = [subprocess.Popen(command, cwd=place.path, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0], [run.communicate() for run in runs]
    size = sum(len(hub.repositories[name].files[file]) for name, needed in NEEDED.items() for file in needed)
    assert hub.sent == size
    assert_complete(place, hub)


def test_the_line_that_pins_a_revision_works(place: Workspace, hub: HubServer) -> None:
    [line] = [line for line in download().splitlines() if "to pin it: cvsi set " in line]
    result = CliRunner().invoke(app, line.partition("to pin it: cvsi ")[2].split(), catch_exceptions=False)
    assert result.exit_code == 0
    assert f"captioners.toy.revision: not set -> {commit_of(CAPTIONER)}; shared by the dataset toy" in result.output
    assert "pin it" not in download()
    assert_complete(place, hub)


@pytest.mark.parametrize("asked", ["v1", commit_of(EDITOR)[:8], None])
def test_a_revision_that_is_no_commit_is_resolved_and_can_be_pinned(
    place: Workspace, hub: HubServer, asked: str | None
) -> None:
    place.params(datasets__toy__editor__revision=asked, editors__toy__revision=asked)
    text = download()
    assert f"editor {EDITOR}: {f'revision {asked}' if asked else 'no revision'} asked, {commit_of(EDITOR)} got" in text
    assert_complete(place, hub)


@pytest.mark.parametrize(
    ("revision", "words"),
    [("v9", "revision v9: no such revision (404); correct `revision`"), (OTHER, "no such revision (404)"),
     ("../../x", "'../../x' is not a revision"), ("/x", "'/x' is not a revision"), ("a\nb", "is not a revision")],
)  # fmt: skip
def test_a_revision_that_does_not_exist_is_one_line(
    place: Workspace, hub: HubServer, revision: str, words: str
) -> None:
    place.params(datasets__toy__editor__revision=revision)
    assert words in download(1)


@pytest.mark.parametrize("name", ["toys/a--b", "toys/..", "toys/-a", "to ys/a"])
def test_a_name_that_is_none_is_one_line(place: Workspace, name: str) -> None:
    place.params(datasets__toy__captioner__model=name)
    assert f"{name}: not a name of a repository" in download(1)


def test_a_repository_that_two_blocks_name_is_downloaded_once(place: Workspace, hub: HubServer) -> None:
    place.params(datasets__toy__editor__model=CAPTIONER, datasets__toy__editor__revision=None)
    text = download()
    assert len(hub.asked("api/models/toys/blip2")) == 1 and not hub.asked(EDITOR)
    assert all(
        f"to pin it: cvsi set {key}.toy.revision {commit_of(CAPTIONER)}" in text for key in ("captioners", "editors")
    )


def test_a_tag_that_the_catalogue_does_not_know_is_looked_up_in_open_clip(place: Workspace, hub: HubServer) -> None:
    repository = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    hub.add(repository, {TOWER_FILE: noise(1000, 7), "open_clip_pytorch_model.bin": b"pickle", "config.json": b"{}"})
    place.params(backbones__toy={"model": "ViT-B-16", "pretrained": "laion2b_s34b_b88k", "preprocess": "plain"})
    assert "backbone ViT-B-16 laion2b_s34b_b88k" in check(1)
    assert f"to pin it: cvsi set backbones.toy.revision {commit_of(repository)}" in download()
    assert "Nothing is missing." in check(0) and not hub.asked(TOWER) and not hub.asked("pickle")
    assert set(files(snapshot(place, repository))) == {TOWER_FILE}


def test_a_tag_that_does_not_exist_is_one_line_and_the_others_are_downloaded(place: Workspace, hub: HubServer) -> None:
    place.params(backbones__toy={"model": "ViT-B-16", "pretrained": "absent", "preprocess": "plain"})
    text = download(1)
    assert "cvsi: params.yaml: pretrained 'absent' is no file and no tag of ViT-B-16" in text
    assert (snapshot(place, CAPTIONER) / "model.safetensors").is_file() and "missing: 1 thing" in text


def test_what_no_hub_has_is_said(place: Workspace, hub: HubServer) -> None:
    place.params(backbones__toy__phi="models/phi_best_base_openai.pt")
    text = download(1)
    assert "phi models/phi_best_base_openai.pt is not downloaded, no address of it is known: the README of" in text
    assert "missing: 1 thing" in text


def test_local_models_need_no_hub(toy: Workspace, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, hub.address, toy.path / "hub")
    text = download()
    assert "nothing to download: no model of these datasets and runs comes from a hub" in text
    assert not hub.requests and not (toy.path / "hub").exists()


def test_the_editor_is_downloaded_without_queries_too(place: Workspace, hub: HubServer) -> None:
    """A search with an image and a text needs it."""
    (place.path / "photos" / "queries.jsonl").unlink()
    download()
    assert hub.asked(EDITOR) and hub.asked(CAPTIONER)


def test_the_line_that_pins_names_the_block_behind_anchors_and_merges() -> None:
    document = Document((ROOT / "params.yaml").read_text(encoding="utf-8"), "params.yaml")
    for name in ("circo", "cirr-val", "cirr-test1", "fashioniq-shirt"):
        assert document.home(f"datasets.{name}.captioner.model") == "captioners.blip2.model"
        assert document.home(f"datasets.{name}.editor.model") == "editors.qwen.model"
    assert document.home("backbones.vit-b-32.model") == "backbones.vit-b-32.model"


LOAD = """
import sys
from PIL import Image
from cvsi.core.params import Backbone, Compute
from cvsi.models.blip2 import Blip2Settings
from cvsi.models.blip2_model import Blip2
from cvsi.models.clip_checkpoint import locate
from cvsi.models.clip_weights import load_into
model = Blip2(Blip2Settings(model="toys/blip2", precision="fp32", n=2), Compute(device="cpu"))
print(model.captions([model.prepare(Image.new("RGB", (64, 64), "red"))], ["a" * 64]))
file, _ = locate(Backbone(model="ViT-B-32-quickgelu", pretrained="openai", revision=sys.argv[1]))
import open_clip
load_into(open_clip.create_model(sys.argv[2], load_weights=False), __import__("pathlib").Path(file))
print("loaded", file)
"""


def test_real_models_load_from_the_cache_without_a_network(place: Workspace, hub: HubServer) -> None:
    weights = ROOT / "demo" / "weights"
    hub.add_folder(CAPTIONER, weights / "blip2")
    hub.add_folder(EDITOR, weights / "llama")
    hub.add_folder(TOWER, weights / "clip")
    hub.faults = Faults(break_after=900_000)
    download()
    env = environment(place.path) | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(place.path / "hub")}
    command = [sys.executable, "-c", LOAD, commit_of(TOWER), f"local-dir:{weights / 'clip'}"]
    done = subprocess.run(command, cwd=place.path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[['" in done.stdout and f"loaded {snapshot(place, TOWER) / TOWER_FILE}" in done.stdout


EDIT = """
from cvsi.core.params import Compute
from cvsi.models.llm_vllm import VllmEditor, VllmEditorSettings
import sys
if __name__ == "__main__":
    settings = VllmEditorSettings(engine="vllm", model="toys/llama", revision=sys.argv[1], precision="fp32")
    print("answered", len(VllmEditor(settings, Compute(device="cpu")).answers(["a red disc"])))
"""


@pytest.mark.slow  # vLLM starts in half a minute
def test_the_editor_loads_from_the_cache_without_a_network(place: Workspace, hub: HubServer) -> None:
    hub.add_folder(EDITOR, ROOT / "demo" / "weights" / "llama")
    download()
    env = environment(place.path) | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(place.path / "hub")}
    (place.path / "edit.py").write_text(EDIT, encoding="utf-8")
    command = [sys.executable, "edit.py", commit_of(EDITOR)]
    done = subprocess.run(command, cwd=place.path, env=env, capture_output=True, text=True)
    assert "answered 1" in done.stdout, done.stderr[-3000:]
