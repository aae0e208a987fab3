"""Training phi on captions: its loss, what a file of captions may hold, and killed runs that end in the same bytes."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone, Compute, PhiTraining
from cvsi.models import phi
from cvsi.models.clip_encoder import Encoder
from cvsi.store.rows import Store
from cvsi.training import captions, checkpoint, train
from demo.phi_captions import draw, draw_caption
from tests.conftest import Workspace, environment, project_params
from tests.imports import ROOT
from tests.untrusted import CreatesFile

KEYWORDS = str(ROOT / "demo" / "keywords.txt")
SMALL: dict[str, Any] = {
    "backbone": "tiny", "captions": "captions.parquet", "spans": {"words": KEYWORDS}, "batch": 16,
    "learning_rate": 2e-3, "warmup": 2, "clip": 1.0, "held_out": 48, "validate_every": 4, "checkpoint_every": 2,
    "seed": 3, "precision": "fp32",
}  # fmt: skip


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A working directory with 400 of the demo's captions and a phi `small` of 12 steps."""
    monkeypatch.chdir(tmp_path)
    content = project_params() | {"phis": {"small": SMALL | {"steps": 12}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    draw(tmp_path / "captions.parquet", 9, 400)
    return Workspace(tmp_path)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    model = f"local-dir:{ROOT / 'demo/weights/clip'}"
    return Encoder(Backbone(model=model, phi="none", precision="fp32"), Compute(device="cpu"))


def settings(**changes: Any) -> PhiTraining:
    return PhiTraining(**(SMALL | {"steps": 12} | changes))


def models(work: Workspace) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (work.path / "models" / "small").iterdir()}


def test_the_loss_is_the_mean_squared_distance_of_lincir(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "compute", Compute(device="cpu", text_batch=3))
    table = pl.DataFrame(
        {
            "caption": [
                "a red circle and a blue star",
                "a photo of a green ring that is red",
                "two rings on white",
                "x y",
            ],
            "masked": ["a  $  and a  $ ", "a photo of  $  that is red", " $  on  $ ", " $  y"],
            "subject": [None, "a green ring", None, None],
        },
        schema_overrides={"subject": pl.String},
    )
    together = pl.concat([table] * 9)
    training = train.Training(settings(batch=4, held_out=4), encoder, together, checkpoint.Progress(), {})
    training.phi.eval()
    noise = torch.randn(4, encoder.width)
    with torch.no_grad():
        loss = float(torch.stack(list(training.losses(training.tokens(table), noise))).sum())

        def text(words: list[int], replacement: torch.Tensor | None = None) -> torch.Tensor:
            """One text by open_clip's parts, without padding; `replacement` in place of the token `$`."""
            model, ids = encoder.model, torch.tensor([49406, *words, 49407])
            states = model.token_embedding(ids)
            if replacement is not None:
                states[ids == encoder.tokenizer.encode("$")[0]] = replacement
            states = states + model.positional_embedding[: len(ids)]
            states = model.transformer(states[None], attn_mask=model.attn_mask[: len(ids), : len(ids)])
            return model.ln_final(states)[0, -1] @ model.text_projection  # type: ignore[no-any-return]

        total = 0.0
        for row, (caption, masked, subject) in enumerate(table.iter_rows()):
            read = text(encoder.tokenizer.encode(subject or caption)) + noise[row]
            word = training.phi.layers(read)
            changed = text(encoder.tokenizer.encode(" ".join(masked.split())), word)
            total += float(((changed - text(encoder.tokenizer.encode(caption))) ** 2).mean()) / table.height
    assert loss == pytest.approx(total, rel=1e-5)
    assert loss > 0.01


def test_noise_is_a_normal_vector_times_a_uniform_number_of_its_row() -> None:
    noise = train._noise(2000, 300, torch.Generator().manual_seed(1))
    spread = noise.std(dim=1)
    assert 0 < float(spread.min()) < 0.01 and 0.95 < float(spread.max()) < 1.2
    assert float(spread.mean()) == pytest.approx(0.5, abs=0.02)
    assert float((noise / spread[:, None]).pow(4).mean()) == pytest.approx(3, abs=0.1)


def test_some_steps_lower_the_loss_and_phi_loads_as_any(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    train.train("small", params.load())
    assert "12 steps to train, in fp32 on cpu" in capsys.readouterr().out
    losses = pl.read_csv(work.path / "models/small/losses.csv")
    assert losses["step"].to_list() == [4, 8, 12]
    assert losses["validation"][2] < 0.7 * losses["validation"][0]
    recipe = json.loads((work.path / "models/small/provenance.json").read_text())
    assert recipe["batch"] == 16 and len(recipe["captions"]) == 64
    assert phi.load("models/small/phi.safetensors", 128, 128)(torch.zeros(1, 128)).shape == (1, 128)
    kept = models(work)
    train.train("small", params.load())
    assert "trained before: 12 steps in the store" in capsys.readouterr().out
    assert models(work) == kept


def test_a_killed_and_resumed_run_ends_in_the_same_bytes(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    work.params(store="killed", phis__small__steps=16, phis__small__validate_every=7)
    process = work.start("train_phi", "small")
    deadline = time.monotonic() + 100
    while not list((work.path / "killed/phi").glob("*/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    (file,) = (work.path / "killed/phi").glob("*/checkpoint.pt")
    progress, parts = checkpoint.load(file)
    assert 0 < progress.step < 16 and not progress.finished and set(parts) == {"phi", "optimiser", "scaler"}
    file.with_name(".checkpoint.pt-0123.partial").write_bytes(b"half")  # as of a kill while it is written
    train.train("small", params.load())
    assert f"after {progress.step} in the checkpoint" in capsys.readouterr().out
    assert [file.name for file in file.parent.iterdir()] == ["checkpoint.pt"]
    resumed = models(work)
    work.params(store="elsewhere")
    train.train("small", params.load())
    assert "16 steps to train, in" in capsys.readouterr().out
    assert models(work) == resumed


def test_every_checkpoint_leads_to_the_same_phi(encoder: Encoder, work: Workspace) -> None:
    chosen = settings(checkpoint_every=1, steps=7, validate_every=3, schedule="cosine")
    table = captions.read(chosen, Store(Path("store")), Compute())
    whole = checkpoint.Progress()
    train.Training(chosen, encoder, table, whole, {}).run(Path("whole.pt"))
    assert [row[0] for row in whole.losses] == [3, 6, 7]
    for stop in (1, 4):
        progress = checkpoint.Progress()
        training = train.Training(chosen, encoder, table, progress, {})
        for step in range(stop):
            progress.add(training.step(step, training.batch(step)))
            if progress.step % 3 == 0:
                training._judge()
        checkpoint.save(Path("part.pt"), progress, {name: part.state_dict() for name, part in training.parts.items()})
        resumed, parts = checkpoint.load(Path("part.pt"))
        train.Training(chosen, encoder, table, resumed, parts).run(Path("part.pt"))
        assert resumed.losses == whole.losses
        assert all(torch.equal(resumed.best[name], value) for name, value in whole.best.items())


def test_patience_ends_the_training_and_the_best_phi_is_kept(
    encoder: Encoder, work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = settings(learning_rate=30, clip=None, warmup=0, patience=2, steps=60, validate_every=1)
    progress = checkpoint.Progress()
    training = train.Training(chosen, encoder, captions.read(chosen, Store(Path("store")), Compute()), progress, {})
    training.run(Path("part.pt"))
    assert "no better phi in 2 validations" in capsys.readouterr().out
    losses = progress.table()
    assert losses.height < 60 and losses["validation"].arg_min() == losses.height - 3
    assert progress.best_step == losses["step"][losses.height - 3]
    training.phi.load_state_dict(progress.best)
    assert training.validate() == progress.best_loss


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_too(encoder: Encoder, work: Workspace, precision: str) -> None:
    chosen = settings(precision=precision, steps=4, validate_every=2)
    progress = checkpoint.Progress()
    training = train.Training(chosen, encoder, captions.read(chosen, Store(Path("store")), Compute()), progress, {})
    training.run(Path("mixed.pt"))
    assert progress.losses[1][2] < progress.losses[0][2]
    assert {value.dtype for value in progress.best.values()} == {torch.float32}


def test_an_epoch_takes_every_example_once_and_no_two_are_alike() -> None:
    chosen = settings(batch=5)
    epochs = [[tuple(captions.batch(step, 23, chosen)) for step in range(at, at + 4)] for at in (0, 4)]
    for epoch in epochs:
        taken = [row for batch in epoch for row in batch]
        assert len(set(taken)) == 20 and max(taken) < 23
    assert epochs[0] != epochs[1]
    table = pl.DataFrame({"caption": [str(number) for number in range(100)]})
    learn, held_out = captions.split(table, chosen)
    assert (learn.height, held_out.height) == (52, 48)
    assert set(learn["caption"]) | set(held_out["caption"]) == set(table["caption"])


def read(path: Path, **changes: Any) -> pl.DataFrame:
    chosen = settings(captions=str(path), batch=1, held_out=1, **changes)
    return captions.read(chosen, Store(path.parent / "store"), Compute())


def test_lines_of_text_and_rows_of_parquet_become_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "captions.txt"
    lines.write_text("a red ring on white\n\nof it\r\n two stars for $5\n", encoding="utf-8")
    table = read(lines)
    assert [" ".join(text.split()) for text in table["masked"]] == ["a $ on $", "$ for 5"]
    assert table["caption"].to_list() == ["a red ring on white", " two stars for  5"]
    printed = capsys.readouterr().out
    assert "1 caption not trained on, nothing but blanks: row 2" in printed
    assert "1 caption not trained on, without a keyword span: row 3" in printed
    assert "in 1 caption a $ is read as a blank" in printed
    rows = tmp_path / "captions.parquet"
    subject = ["a ring", None, "Ring (x).*", ""]
    caption = ["a photo of a ring that is red", "a red ring", "see Ring (x).* here", "two stars"]
    pl.DataFrame({"caption": caption, "subject": subject, "more": 1}).write_parquet(rows)
    masked = [" ".join(text.split()) for text in read(rows)["masked"]]
    assert masked == ["a photo of $ that is red", "a $", "see $ here", "$"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"caption": ["a ring", "a star"], "subject": [None, "a cross"]}, "row 2: the subject 'a cross' is not in its"),
        ({"caption": ["a ring", "a star"], "subject": [None, " "]}, "row 2: the subject ' ' is not in its caption"),
        ({"text": ["a ring"]}, "no column 'caption'; there are: text"),
        ({"caption": [1, 2]}, "column 'caption' is int64, not string"),
        ({"caption": ["", " "]}, "no captions in it"),
        ({"caption": ["a ring"]}, "1 caption to learn from, but a batch of 1 and 1 held out need 2"),
        ({"caption": ["a ring", "ring " * 3000]}, "row 2 has more than 10,000 characters"),
    ],
)
def test_a_bad_parquet_file_is_one_line(tmp_path: Path, columns: dict[str, Any], expected: str) -> None:
    file = tmp_path / "captions.parquet"
    pl.DataFrame(columns).write_parquet(file)
    with pytest.raises(CvsiError) as error:
        read(file)
    assert expected in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_an_empty_file_or_one_that_is_not_text_is_one_line(work: Workspace) -> None:
    (work.path / "empty.txt").write_bytes(b"")
    (work.path / "latin.txt").write_bytes(b"a caf\xe9\n")
    with pytest.raises(CvsiError, match=r"empty\.txt: no captions in it"):
        read(work.path / "empty.txt")
    with pytest.raises(CvsiError, match="not UTF-8 text"):
        read(work.path / "latin.txt")
    with pytest.raises(CvsiError, match="no such file"):
        read(work.path / "none.txt")


def test_a_missing_pipeline_and_an_unknown_name_are_one_line(work: Workspace) -> None:
    work.params(phis__small__spans="en_no_sm")
    with pytest.raises(CvsiError, match="python -m spacy download en_no_sm"):
        train.train("small", params.load())
    with pytest.raises(CvsiError, match="no phi 'large'; there are: small"):
        train.train("large", params.load())
    assert not (work.path / "models").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"phis__small__backbone": "huge"}, "phis.small names backbone 'huge', which is not among the backbones"),
        ({"phis__small__warmup": 12}, "phis.small: warmup is 12, but steps are 12; warmup must be less"),
        ({"phis__small__spans": {"list": "x"}}, "phis.small.spans"),
        ({"phis__small__noise": 1}, "phis.small.noise: unknown key"),
    ],
)
def test_a_bad_setting_is_one_line(work: Workspace, change: dict[str, Any], expected: str) -> None:
    work.params(**change)
    with pytest.raises(CvsiError) as error:
        params.load()
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_or_untrusted_checkpoint_runs_no_code(tmp_path: Path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "checkpoint.pt"
    torch.save({"progress": CreatesFile(mark), "parts": {}}, file)
    with pytest.raises(CvsiError, match="damaged checkpoint"):
        checkpoint.load(file)
    assert not mark.exists()
    file.write_bytes(b"junk")
    with pytest.raises(CvsiError, match="delete it, training then starts anew"):
        checkpoint.load(file)


def test_the_demos_captions_contain_their_subject() -> None:
    random = Random(4)
    drawn = [draw_caption(random) for _ in range(2000)]
    assert all(subject is None or subject in caption for caption, subject in drawn)
    plain = sum(subject is None for _, subject in drawn)
    alone = sum(subject is not None and caption == f"a photo of {subject}" for caption, subject in drawn)
    assert 220 < plain < 380 and 220 < alone < 380


def test_a_bare_repro_and_pull_leave_phi_alone_and_its_own_target_trains_it(work: Workspace) -> None:
    for name in ("stages", "cvsi", "training"):
        shutil.copytree(ROOT / name, work.path / name, ignore=shutil.ignore_patterns("__pycache__", "dvc.lock"))
    (work.path / "demo").symlink_to(ROOT / "demo")
    shutil.copy(ROOT / ".gitignore", work.path)
    other = {"cmd": "cp params.yaml other.txt", "deps": ["params.yaml"], "outs": ["other.txt"]}
    (work.path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"other": other}}), encoding="utf-8")
    work.params(phis={"small": SMALL | {"steps": 4}, "never": SMALL | {"steps": 4, "captions": "none.txt"}})

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=work.path, env=environment(work.path), text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("git", "init", "-q")
    run("dvc", "init", "-q")
    settings = "[core]\n    analytics = false\n    remote = there\n['remote \"there\"']\n    url = ../remote\n"
    (work.path / ".dvc/config").write_text(settings, encoding="utf-8")
    bare = run("dvc", "repro")
    assert "Running stage 'other'" in bare and "train_phi" not in bare and not (work.path / "models").exists()
    run("dvc", "pull", "--run-cache")
    assert "phi of step 4" in run("dvc", "repro", "training/dvc.yaml:train_phi@small")
    assert set(models(work)) == {"losses.csv", "losses.svg", "phi.safetensors", "provenance.json"}
    assert "models" not in run("git", "status", "--short")
