"""`cvsi convert-phi`: a published checkpoint to safetensors, and what it refuses."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cvsi.commands import main
from cvsi.core.errors import CvsiError
from cvsi.models import phi
from tests.conftest import Workspace, environment
from tests.untrusted import CreatesFile


class Command:
    """The command line in this process: what it prints, and the single line with which it fails."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        monkeypatch.chdir(folder)

    def run(self, *arguments: str, code: int = 0) -> str:
        self.monkeypatch.setattr(sys, "argv", ["cvsi", "convert-phi", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        out, err = self.capsys.readouterr()
        assert (end.value.code or 0) == code, out + err
        return err if code else out

    def refusal(self, *arguments: str) -> str:
        before = sorted(self.folder.iterdir())
        text = self.run(*arguments, code=1)
        assert text.count("\n") == 1 and sorted(self.folder.iterdir()) == before  # nothing is left behind
        return text


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, monkeypatch, capsys)


def published(file: Path, state: dict[Any, Any], key: str = "Phi") -> None:
    torch.save({"epoch": 3, key: state}, file)


def weights(width: int = 8, token_width: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return phi.Phi(width, token_width).state_dict()


def test_a_checkpoint_comes_back_number_by_number(tmp_path: Path, command: Command) -> None:
    state = weights()
    published(tmp_path / "phi.pt", state)
    printed = command.run("phi.pt", "phi.safetensors")
    written = (tmp_path / "phi.safetensors").read_bytes()
    tensors = load_file(tmp_path / "phi.safetensors")
    assert list(json.loads(written[8 : 8 + int.from_bytes(written[:8], "little")])) == sorted(state)
    assert tensors.keys() == state.keys() and all(torch.equal(tensors[name], state[name]) for name in state)
    assert "from width 8 to token width 6" in printed
    for file in ("phi.pt", "phi.safetensors"):
        assert hashlib.sha256((tmp_path / file).read_bytes()).hexdigest() in printed
    vectors = torch.randn(3, 8)
    loaded = [phi.load(str(tmp_path / file), 8, 6)(vectors) for file in ("phi.pt", "phi.safetensors")]
    assert torch.equal(*loaded)


def test_bytes_depend_on_the_tensors_alone(tmp_path: Path, command: Command) -> None:
    state = {name: tensor.half() for name, tensor in weights().items()}
    published(tmp_path / "a.pt", state)
    turned = {name: state[name].double().mT if state[name].dim() > 1 else state[name] for name in reversed(state)}
    turned = {name: tensor.contiguous().mT if tensor.dim() > 1 else tensor for name, tensor in turned.items()}
    torch.save({"Phi": turned, "epoch": 9}, tmp_path / "b.pt")
    for name in "ab":
        command.run(f"{name}.pt", f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    command.run("a.safetensors", "c.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    assert {tensor.dtype for tensor in load_file(tmp_path / "a.safetensors").values()} == {torch.float32}


def test_a_target_is_overwritten_only_with_force(tmp_path: Path, command: Command) -> None:
    published(tmp_path / "phi.pt", weights())
    (tmp_path / "phi.safetensors").write_text("mine")
    assert "phi.safetensors: already there; give another name, or --force" in command.refusal(
        "phi.pt", "phi.safetensors"
    )
    assert (tmp_path / "phi.safetensors").read_text() == "mine"
    command.run("phi.pt", "phi.safetensors", "--force")
    assert load_file(tmp_path / "phi.safetensors").keys() == weights().keys()
    assert "needs a name that ends in .safetensors" in command.refusal("phi.pt", "other.pt")
    assert "cannot be written (No such file or directory)" in command.refusal("phi.pt", "no/phi.safetensors")


def test_widths_are_compared_with_the_backbone(toy: Workspace, command: Command) -> None:
    published(toy.path / "phi.pt", weights())
    text = command.refusal("phi.pt", "phi.safetensors", "--backbone", "vit-b-32")
    assert "phi.pt: layers.0.bias is (32,), the backbone needs (2048,); use the phi trained for this backbone" in text
    assert "no backbone 'large'; there are:" in command.refusal("phi.pt", "p.safetensors", "--backbone", "large")
    published(toy.path / "phi.pt", weights(512, 512))
    printed = command.run("phi.pt", "phi.safetensors", "--backbone", "vit-b-32")
    assert "from width 512 to token width 512" in printed


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights().items() if key != name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("layers.0.weight"), r"no phi, it lacks matrices layers\.0\.weight and layers\.6\.weight \(has layers"),
        ({}, r"\(has nothing\)"),
        (without("layers.3.bias"), r"layers\.3\.bias is missing, the backbone needs \(32,\)"),
        (weights() | {"more": torch.ones(2)}, r"more is \(2,\), the backbone needs none"),
        (weights() | {"layers.3.weight": torch.ones(32, 31)}, r"layers\.3\.weight is \(32, 31\), .* \(32, 32\)"),
        (weights() | {"layers.0.weight": torch.ones(8)}, "no phi, it lacks matrices"),
        (weights() | {"layers.0.weight": torch.ones(1).expand(1, 10**7)}, "its widths 10000000 and 6 are not from 1"),
        (weights() | {"layers.6.bias": torch.full((6,), torch.nan)}, r"layers\.6\.bias does not hold finite numbers"),
        (weights() | {"layers.6.bias": torch.ones(6, dtype=torch.int64)}, r"not hold finite numbers \(torch\.int64\)"),
        (weights() | {"layers.6.bias": torch.ones(6).to_sparse()}, "does not hold finite numbers"),
        (weights() | {"layers.6.bias": "six"}, "no state dict under the key 'Phi'"),
        (weights() | {7: torch.ones(2)}, "no state dict under the key 'Phi'"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_is_no_phi_is_refused_in_one_line(state: dict[Any, Any], message: str, tmp_path: Path) -> None:
    published(tmp_path / "phi.pt", state)
    with pytest.raises(CvsiError, match=message) as error:
        phi.convert(tmp_path / "phi.pt", tmp_path / "phi.safetensors", None, False)
    assert "phi.pt: " in str(error.value) and "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["phi.pt"]


def test_other_files_are_refused_in_one_line(tmp_path: Path, command: Command) -> None:
    published(tmp_path / "phi.pt", weights(), key="phi")
    assert "no state dict under the key 'Phi'" in command.refusal("phi.pt", "phi.safetensors")
    (tmp_path / "phi.pt").write_bytes(b"junk")
    assert "phi.pt: not a checkpoint of tensors alone" in command.refusal("phi.pt", "phi.safetensors")
    (tmp_path / "phi.bin").write_bytes(b"junk")
    assert "phi.bin: not a safetensors file" in command.refusal("phi.bin", "phi.safetensors")
    assert "none.pt: no such file" in command.refusal("none.pt", "phi.safetensors")


def test_an_untrusted_checkpoint_runs_no_code(tmp_path: Path) -> None:
    published(tmp_path / "phi.pt", weights() | {"layers.6.bias": CreatesFile(tmp_path / "ran")})
    script = [sys.executable, "-c", "from cvsi.commands.main import main; main()"]
    command = [*script, "convert-phi", "phi.pt", "phi.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("phi.pt: not a checkpoint of tensors alone (UnpicklingError); it was not opened\n")
    assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["phi.pt"]
