"""Files that would run code when they are read: nothing runs, and one line names the file."""

import ast
import io
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cvsi.core import params, parquet
from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone, Compute
from cvsi.models import phi
from cvsi.models.clip_encoder import Encoder
from cvsi.pipeline.captions import caption_job
from cvsi.pipeline.edits import edit_job
from tests.conftest import Workspace
from tests.imports import ROOT
from tests.untrusted import CreatesFile

LITTLE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
PRODUCT = [file for folder in ("cvsi", "stages") for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that hostile code would create; that it would is tried first."""
    file = tmp_path / "ran"
    pickle.loads(pickle.dumps(CreatesFile(file)))
    assert file.exists()
    file.unlink()
    return file


def plain_pickle(payload: object) -> bytes:
    return pickle.dumps({"Phi": payload})


def torch_archive(payload: object) -> bytes:
    data = io.BytesIO()
    torch.save({"Phi": payload, "state_dict": payload}, data)
    return data.getvalue()


def torch_old(payload: object) -> bytes:
    data = io.BytesIO()
    torch.save({"Phi": payload}, data, _use_new_zipfile_serialization=False)
    return data.getvalue()


def object_array(payload: object) -> bytes:
    data = io.BytesIO()
    np.save(data, np.array([payload], dtype=object), allow_pickle=True)
    return data.getvalue()


HOSTILE = [plain_pickle, torch_archive, torch_old, object_array]


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["phi.pt", "phi.safetensors", "phi.npy", "phi.bin"])
def test_a_hostile_phi(make: Callable[[object], bytes], name: str, mark: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(make(CreatesFile(mark)))
    with pytest.raises(CvsiError, match=name) as error:
        phi.load(str(tmp_path / name), 8, 6)
    assert not mark.exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["clip.pt", "clip.bin", "clip.npy", "clip.safetensors"])
def test_a_hostile_clip(
    make: Callable[[object], bytes], name: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(make(CreatesFile(mark)))
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Little", LITTLE)
    encoder = Encoder(Backbone(model="Little", pretrained=str(tmp_path / name), phi="none"), Compute(device="cpu"))
    with pytest.raises(CvsiError, match=name) as error:
        _ = encoder.model
    assert not mark.exists() and "\n" not in str(error.value)


def hostile_model(source: str, folder: Path, mark: Path) -> Path:
    """A copy of the demo's model whose weights are a hostile pickle."""
    shutil.copytree(ROOT / "demo/weights" / source, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(torch_archive(CreatesFile(mark)))
    return folder


def with_code(source: str, folder: Path, mark: Path) -> Path:
    """A copy of the demo's model that asks for its own code to be run, in every file that can."""
    shutil.copytree(ROOT / "demo/weights" / source, folder)
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Evil: pass\n"
    for name in ("evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")
    kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoImageProcessor", "AutoProcessor", "AutoTokenizer")
    code_keys = {
        "auto_map": {kind: ["evil.Evil", "evil.Evil"] if kind == "AutoTokenizer" else "evil.Evil" for kind in kinds}
    }
    for file in folder.glob("*.json"):
        if file.name not in ("tokenizer.json", "generation_config.json"):
            odd = {"model_type": "evil", "architectures": ["Evil"]} if file.name == "config.json" else {}
            odd |= {"tokenizer_class": "Evil", "image_processor_type": "Evil", "processor_class": "Evil"}
            file.write_text(json.dumps(json.loads(file.read_text()) | code_keys | odd), encoding="utf-8")
    return folder


@pytest.mark.parametrize("make", [hostile_model, with_code])
def test_a_hostile_captioner(make: Callable[[str, Path, Path], Path], mark: Path, toy: Workspace) -> None:
    folder = make("blip2", toy.path / "model", mark)
    toy.params(datasets__toy__captioner__model=str(folder))
    with pytest.raises(CvsiError, match=r"captioner model .* does not load") as error:
        caption_job("toy", params.load()).load(0)
    assert not mark.exists() and str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.xdist_group("vllm")  # the process that has imported vLLM
@pytest.mark.parametrize("make", [hostile_model, with_code])
def test_a_hostile_editor(make: Callable[[str, Path, Path], Path], mark: Path, toy: Workspace) -> None:
    make("llama", toy.path / "model", mark)
    toy.params(datasets__toy__editor__model="model")
    with pytest.raises(CvsiError, match="editor model 'model' does not load") as error:
        edit_job("toy", params.load()).load(0)
    assert not mark.exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["arrow.py_extension_type", "pandas.period", "tests.unknown"])
def test_a_table_with_types_that_were_pickled(name: str, mark: Path, tmp_path: Path) -> None:
    facts = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(CreatesFile(mark))}
    field = pa.field("image_id", pa.string(), metadata=facts)
    pandas = {"pandas": pickle.dumps(CreatesFile(mark)), "pickle": pickle.dumps(CreatesFile(mark))}
    table = pa.table([["a"]], schema=pa.schema([field], metadata=pandas))
    pq.write_table(table, tmp_path / "a.parquet")
    assert parquet.read_file(tmp_path / "a.parquet")["image_id"].to_pylist() == ["a"]
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "active: !!python/object/apply:pathlib.Path.touch [ran]", "a: !!python/name:os.system", "x: &x [*x]",
        "store: !!python/object/new:os.system [touch ran]", "[" * 100_000, "a: !unknown b", "? [a]\n: b",
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_parameters_that_would_run_something(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(CvsiError, match=r"params\.yaml: "):
        params.load()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "params.yaml"]


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    (tmp_path / "params.yaml").write_text("\n".join([*levels, "active: *a59"]), encoding="utf-8")
    code = "import sys, pathlib; from cvsi.core import params; params.load(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "params.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 1 and "CvsiError" in done.stderr


def calls(tree: ast.Module) -> list[tuple[str, set[str]]]:
    """Every call in a file: the dotted name, and its keywords with their values as `name=value`."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(n.func), {f"{k.arg}={ast.unparse(k.value)}" for k in n.keywords}) for n in nodes]


def test_the_product_has_no_call_that_could_run_data() -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "yaml.unsafe_load", "yaml.full_load", "np.load", "os.system"}
    for file in PRODUCT:
        text = file.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text and "allow_pickle" not in text, file
        tree = ast.parse(text)
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not imported & {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}, file
        for name, keywords in calls(tree):
            assert name not in forbidden, (file, name)
            if name == "torch.load" or name == "open_clip.create_model":
                assert "weights_only=True" in keywords, (file, name)
            assert name != "yaml.load", file
            if name.endswith(".from_pretrained") or name == "LLM":
                safe = "trust_remote_code=False" in keywords or (
                    '{"trust_remote_code": False}' in text and "None=source" in keywords
                )
                assert safe, (file, name)
            if name.startswith("subprocess."):
                assert "shell=True" not in keywords, file


@pytest.mark.parametrize(("part", "job"), [("captioner", caption_job), ("editor", edit_job)])
def test_no_parameter_lets_a_models_own_code_run(part: str, job: Callable[..., object], toy: Workspace) -> None:
    toy.params(**{f"datasets__toy__{part}__trust_remote_code": True})
    with pytest.raises(CvsiError, match=rf"params\.yaml: datasets\.toy\.{part}\.trust_remote_code: unknown key"):
        job("toy", params.load())
