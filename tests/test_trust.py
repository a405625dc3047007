"""What is trusted: no code and no pickle of others, no path out of a data folder; and nothing private is written."""

from __future__ import annotations

import ast
import getpass
import json
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval_harness import private, provenance, runner
from eval_harness.errors import UserError
from eval_harness.images import ImageError
from eval_harness.models import check_model
from eval_harness.runner import Overrides, evaluate
from eval_harness.sources import _in_a_cache, folder_reader
from gpg_repro import notebooks
from gpg_repro.launch import plan_launch, server_command
from gpg_repro.recipe import load_recipe, recipe_names

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("eval_harness", "gpg_repro")

# --- What the packages call ------------------------------------------------------------------------------------------

FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "execfile", "input",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "dill.load",
    "dill.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load", "pandas.read_pickle", "pd.read_pickle",
    "torch.load", "torch.hub.load", "np.load", "numpy.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "os.system", "os.popen", "tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive", "sympy.sympify",
    "sympy.parse_expr", "parse_expr", "sympify", "extractall",
}  # fmt: skip
"""Runs code that stands in data, or can write outside of a folder."""
ALLOWED: dict[tuple[str, str], str] = {}
"""(file, call) -> why it is no danger there. Empty: nothing of the kind is called."""
WITHOUT_SWITCH = {
    "gpg_repro/minimal.py": "loads the tiny base that it has just made itself",
}
"""Files whose ``from_pretrained`` does not say that nothing of the checkpoint is run."""
METHODS = {"eval"}  # torch.nn.Module.eval, the one name that is a method too


def _calls(path: Path):
    """Dotted name and node of every call in a file; a method of a computed object is ``.name``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name, part = [], node.func
            while isinstance(part, ast.Attribute):
                name.insert(0, part.attr)
                part = part.value
            yield (
                ".".join([part.id if isinstance(part, ast.Name) else "", *name]) if name else getattr(part, "id", ""),
                node,
            )


def _forbidden(path: Path) -> list[str]:
    found = []
    for name, node in _calls(path):
        last = name.rsplit(".", 1)[-1]
        bad = name in FORBIDDEN or (last in FORBIDDEN and not (last in METHODS | {"compile"} and "." in name))
        shell = any(k.arg == "shell" and getattr(k.value, "value", True) for k in node.keywords)
        unsafe = any(
            (k.arg == "trust_remote_code" and getattr(k.value, "value", True))
            or (k.arg == "allow_pickle" and getattr(k.value, "value", True))
            or (k.arg == "weights_only" and not getattr(k.value, "value", False))
            for k in node.keywords
        )
        if bad or shell or unsafe:
            found.append(name or "a computed call")
    return found


def _sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_nothing_in_the_packages_runs_what_stands_in_data():
    found = {(str(path.relative_to(ROOT)), name) for path in _sources() for name in _forbidden(path)}
    assert found == set(ALLOWED)


def test_the_search_for_such_calls_finds_them(tmp_path):
    bad = [
        "eval('1')", "exec(x)", "pickle.load(f)", "torch.load(p)", "yaml.load(t)", "subprocess.run(c, shell=True)",
        "x.from_pretrained(m, trust_remote_code=True)", "np.load(p, allow_pickle=True)", "a.b.extractall('.')",
        "torch.load(p, weights_only=False)", "f(x, trust_remote_code=flag)",
    ]  # fmt: skip
    for line in bad:
        (tmp_path / "a.py").write_text(line, encoding="utf-8")
        assert _forbidden(tmp_path / "a.py"), line
    for line in ("model.eval()", "re.compile('a')", "yaml.safe_load(t)", "json.loads(t)", "f(trust_remote_code=False)"):
        (tmp_path / "a.py").write_text(line, encoding="utf-8")
        assert not _forbidden(tmp_path / "a.py"), line


def test_every_loading_of_a_checkpoint_says_that_its_code_is_not_run():
    silent = set()
    for path in _sources():
        for name, node in _calls(path):
            if name.endswith(".from_pretrained") and not name.startswith("peft."):
                starred = {k.value.id for k in node.keywords if k.arg is None and isinstance(k.value, ast.Name)}
                if not starred & {"NO_CODE", "ONLY_WEIGHTS"}:
                    silent.add(str(path.relative_to(ROOT)))
    assert silent == set(WITHOUT_SWITCH)
    vllm = (ROOT / "eval_harness" / "engines" / "vllm.py").read_text(encoding="utf-8")
    assert 'load_format="safetensors"' in vllm and "**NO_CODE" in vllm


# --- Checkpoints ------------------------------------------------------------------------------------------------------


class _Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def pickled(random_checkpoint, tmp_path):
    """A checkpoint whose weights are a pickle that would leave ``sprung``."""
    folder = tmp_path / "pickled"
    shutil.copytree(random_checkpoint, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1), "trap": _Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_refused_before_anything_opens_them(pickled, tmp_path):
    with pytest.raises(UserError, match=r"but pytorch_model\.bin\); other formats are not loaded: convert a copy"):
        check_model(str(pickled))
    with pytest.raises(UserError, match="docs/reliability.md"):
        evaluate(str(pickled), ["tiny_sums"], engine="transformers", out=tmp_path / "run", progress=False)
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "run").exists()
    with pytest.raises(Exception, match="sprung|weights_only|Unsupported"):  # the trap is none under weights_only
        torch.load(pickled / "pytorch_model.bin", weights_only=True)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.full("an engine in a process of its own")
def test_pickled_weights_are_not_opened_by_the_engine_either(pickled, tmp_path):
    from eval_harness.engines import EngineSettings
    from eval_harness.engines.transformers import TransformersBackend

    with pytest.raises(OSError, match="safetensors"):
        TransformersBackend(EngineSettings(str(pickled), chat_template="none"))
    assert not (tmp_path / "sprung").exists()


def _shown(number: int) -> str:
    """A block of Python of docs/reliability.md."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[number]


def test_the_conversion_that_is_shown_makes_a_checkpoint_that_is_loaded(random_checkpoint, tmp_path):
    folder, converted = tmp_path / "pickled", tmp_path / "converted"
    shutil.copytree(random_checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="other formats are not loaded"):
        check_model(str(folder))
    exec(_shown(0), {"PICKLED": str(folder), "CONVERTED": str(converted)})
    assert check_model(str(converted))["chat_template"]
    again = load_file(converted / "model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in again) and again


def test_the_conversion_of_an_adapter_that_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matrices = {"base_model.model.q.lora_A.weight": torch.ones(2, 3).T}  # not contiguous, as some are
    torch.save(matrices, "adapter_model.bin")
    exec(_shown(1), {})
    assert torch.equal(load_file("adapter_model.safetensors")["base_model.model.q.lora_A.weight"], torch.ones(3, 2))
    torch.save(matrices | {"trap": _Trap(tmp_path / "sprung")}, "adapter_model.bin")
    with pytest.raises(Exception, match="Unsupported|weights_only"):
        exec(_shown(1), {})
    assert not (tmp_path / "sprung").exists()


def test_pickled_weights_beside_safetensors_stay_closed(random_checkpoint, tmp_path):
    from eval_harness.engines import EngineSettings
    from eval_harness.engines.transformers import TransformersBackend

    folder = tmp_path / "both"
    shutil.copytree(random_checkpoint, folder)
    torch.save({"trap": _Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    check_model(str(folder))
    TransformersBackend(EngineSettings(str(folder), chat_template="none"))
    assert not (tmp_path / "sprung").exists()


def _with_code(random_checkpoint: Path, folder: Path, trap: Path, **config) -> Path:
    shutil.copytree(random_checkpoint, folder)
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    path.write_text(json.dumps(changed | config))
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(trap)!r}).touch()\n")
    return folder


def test_a_checkpoint_with_code_of_its_own_is_refused(random_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    folder = _with_code(random_checkpoint, tmp_path / "own", tmp_path / "sprung", model_type="my_own_net")
    with pytest.raises(UserError, match=r"my_own_net.*never run here \(trust_remote_code is off\).*--engine openai"):
        check_model(str(folder))
    from eval_harness.engines import EngineSettings
    from eval_harness.engines.transformers import TransformersBackend

    with pytest.raises(ValueError, match="custom code"):
        TransformersBackend(EngineSettings(str(folder), chat_template="none"))
    assert not (tmp_path / "sprung").exists()


def test_code_beside_a_known_model_is_left_alone(random_checkpoint, tmp_path, monkeypatch):
    from eval_harness.engines import EngineSettings
    from eval_harness.engines.transformers import TransformersBackend

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    folder = _with_code(random_checkpoint, tmp_path / "known", tmp_path / "sprung")
    assert check_model(str(folder))["name"] == "known"
    TransformersBackend(EngineSettings(str(folder), chat_template="none"))
    assert not (tmp_path / "sprung").exists()


def test_an_index_that_names_weights_elsewhere_is_refused(random_checkpoint, tmp_path):
    folder = tmp_path / "sharded"
    shutil.copytree(random_checkpoint, folder)
    index = {"weight_map": {"lm_head.weight": "../random-qwen2/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside of its folder"):
        check_model(str(folder))


def test_a_data_set_with_a_loading_script_is_refused(tmp_path):
    from eval_harness.sources import load_from_hub

    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\n")
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        load_from_hub(str(folder), None, split="train")
    assert not (tmp_path / "sprung").exists()


# --- Paths ------------------------------------------------------------------------------------------------------------


def test_links_in_a_data_set_lead_nowhere_else(tmp_path):
    (tmp_path / "private.png").write_bytes(b"private")
    folder = tmp_path / "images"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.png").write_bytes(b"a")
    (folder / "b.png").symlink_to("train/a.png")
    (folder / "out.png").symlink_to(tmp_path / "private.png")
    (folder / "train" / "out.png").symlink_to("../../private.png")
    (folder / "train" / "up").symlink_to("../..")
    (folder / "ring.png").symlink_to("ring.png")
    read = folder_reader(folder)
    assert read(0, "train/a.png") == read(0, "b.png") == b"a"
    for name in ("out.png", "train/out.png", "train/up/private.png"):
        with pytest.raises(ImageError, match="link that leads out"):
            read(0, name)
    with pytest.raises(ImageError):
        read(0, "ring.png")


def test_a_data_set_cannot_name_a_file_of_this_machine(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    inside = tmp_path / "cache" / "datasets--a--b" / "a.png"
    assert _in_a_cache(str(inside), "row 0") == inside
    for path in (tmp_path / "private.png", tmp_path / "cache" / ".." / "private.png", Path("/etc/hostname")):
        with pytest.raises(ImageError, match="row 0: the data set names a file that is not its own"):
            _in_a_cache(str(path), "row 0")


# --- Servers ----------------------------------------------------------------------------------------------------------


def test_servers_listen_on_this_machine_alone():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "jupyterlab --ip=127.0.0.1" in makefile
    hosts = {load_recipe(name, scale="tiny").setup.training.vllm_server_host for name in recipe_names()}
    assert hosts == {"127.0.0.1"}
    launch = plan_launch("table3_gpg_rs1", ["scale=paper"], strategy="ddp", vllm="server")
    words = server_command(launch)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    open_to_all = [
        str(path.relative_to(ROOT))
        for pattern in ("eval_harness/**/*.py", "gpg_repro/**/*.py", "docs/*.md", "README.md", "Makefile", "Dockerfile",
                        "configs/**/*", "tests/*.py", "bench/*.py", ".devcontainer/*")
        for path in ROOT.glob(pattern)
        if path.is_file() and "0.0.0.0" in path.read_text(encoding="utf-8") and path != Path(__file__)
    ]  # fmt: skip
    assert open_to_all == ["gpg_repro/launch.py"]  # it knows the address, to refuse it on several nodes


# --- Nothing private is written ---------------------------------------------------------------------------------------

SECRETS = {
    "HF_TOKEN": "hf_Zx81kQpLw22mNvB7",
    "OPENAI_API_KEY": "sk-Zx81kQpLw22mNvB7",
    "WANDB_API_KEY": "0123abcd4567efab8901",
    "MY_SERVICE_PASSWORD": "correct horse battery",
}
HOST = "node17.cluster.example"


@pytest.fixture
def poisoned(tmp_path, monkeypatch):
    """An environment full of secrets, a home folder that tells a name, a host with one; the results folder in it."""
    home = tmp_path / "home" / "janedoe"
    home.mkdir(parents=True)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "janedoe")
    monkeypatch.setenv("LOGNAME", "janedoe")
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    private._names.cache_clear()
    yield home
    private._names.cache_clear()


def _told(folder: Path) -> list[str]:
    """What of the secrets stands in a folder, in names or bytes of its files."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder)).encode()
        content = path.read_bytes() if path.is_file() else b""
        for secret in (*SECRETS.values(), "janedoe", HOST, str(ROOT)):
            if secret.encode() in content or secret.encode() in name:
                found.append(f"{path.name}: {secret}")
    return found


def test_what_is_hidden(poisoned, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.setenv("MAX_TOKEN", "1234567")
    text = f"{poisoned}/runs/x of {HOST} with {SECRETS['WANDB_API_KEY']} false true 1234567 at http://me:pw@h/"
    assert private.hide(text) == "~/runs/x of HOST with *** false true 1234567 at http://***@h/"
    assert private.hide(f"{poisoned}er/x and /tmp/cache_janedoe/y") == f"{poisoned}er/x and /tmp/cache_USER/y"
    assert private.hide(f"\x1b[32m{poisoned}/a.py\x1b[0m") == "\x1b[32m~/a.py\x1b[0m"
    assert private.hidden({"a": [f"{poisoned}/x", 1, None]}) == {"a": ["~/x", 1, None]}
    assert provenance.shown(f"cannot read {poisoned}/x.json or {poisoned}") == "cannot read x.json or ~"
    assert provenance.shown(str(poisoned)) == "~"


@pytest.mark.full("an engine in a process of its own")
def test_an_evaluation_by_the_transformers_engine_tells_nothing(random_checkpoint, poisoned, monkeypatch):
    """The whole engine process, with a log that shows everything."""
    model = poisoned / "models" / "net"
    shutil.copytree(random_checkpoint, model)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "eval_harness", "run", "--model", str(model)])
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")  # the log gets every path there is
    out = evaluate(
        str(model), ["tiny_sums"], engine="transformers", out=poisoned / "run", limit=2,
        overrides=Overrides(max_new_tokens=4), progress=False,
    )  # fmt: skip
    log = (out / "engine.log").read_text(encoding="utf-8")
    assert "~/models/net" in log  # the log really had something to hide
    assert _told(out) == []


def test_errors_in_records_tell_nothing(random_checkpoint, poisoned, monkeypatch):
    """Scripted: an engine whose message for one item holds everything that must not be told."""
    from engine_here import EngineHere

    from eval_harness.engines import Result

    class Leaky(EngineHere):
        def generate(self, requests):
            for request in requests:
                yield Result(request.key, error=f"{poisoned}/x: {' '.join(SECRETS.values())} http://me@{HOST}:1/v1?k=1")

    monkeypatch.setattr(runner, "EngineProcess", Leaky)
    out = evaluate(
        str(random_checkpoint), ["tiny_sums"], engine="transformers", out=poisoned / "run", limit=2, progress=False
    )
    (reason,) = {json.loads(line)["reason"] for line in (out / "samples" / "tiny_sums.jsonl").read_text().splitlines()}
    assert reason.startswith("x: *** *** *** ***") and _told(out) == []


def test_an_evaluation_by_a_server_tells_nothing(poisoned, monkeypatch):
    from scripted_server import Scripted, refuse

    server, answers = Scripted(), []

    def answer(body):
        """Now and then as busy servers answer, with more in the message than is asked."""
        answers.append(body)
        told = f"busy; {poisoned}/x on {HOST}, {SECRETS['OPENAI_API_KEY']}"
        return refuse(503, told) if len(answers) == 1 else plain(body)

    plain, server.answer = server.answer, answer
    monkeypatch.setattr("eval_harness.engines.openai.BACKOFF_SECONDS", 0.01)
    try:
        out = evaluate(
            "served", ["tiny_sums"], engine="openai", base_url=server.url, api_key_env="MY_SERVICE_PASSWORD",
            out=poisoned / "run", limit=2, overrides=Overrides(max_new_tokens=4), progress=False,
        )  # fmt: skip
    finally:
        server.close()
    assert server.keys[-1] == f"Bearer {SECRETS['MY_SERVICE_PASSWORD']}"
    assert "busy; ~/x on HOST, ***" in (out / "engine.log").read_text(encoding="utf-8")
    assert _told(out) == []


def test_a_training_tells_nothing(poisoned):
    from gpg_repro.train import base_model, train

    made = base_model(load_recipe("table3_gpg_rs1", scale="smoke"), progress=False)
    base = poisoned / "models" / "base"
    shutil.copytree(made, base)
    recipe = load_recipe("table3_gpg_rs1", [f"base={base}", "max_steps=2", "keep_checkpoints=true"], scale="smoke")
    run = train(recipe, root=poisoned / "runs", progress=False)
    assert any(run.rglob("events.out.tfevents.*")), "TensorBoard's file is among what is looked at"
    assert _told(run) == []
    recorded = json.loads((run / "run.json").read_text())["recipe"]["setup"]["base"]
    assert recorded == "~/models/base"
    again = recipe.model_copy(update={"setup": recipe.setup.model_copy(update={"base": recorded})})
    assert base_model(again) == str(base)  # what is recorded is found again


NOTEBOOK = """
import os
print(os.environ["HF_TOKEN"], os.path.expanduser("~"))
from IPython.display import HTML, display
display(HTML(f"<b>{os.environ['OPENAI_API_KEY']}</b>"))
{name: value for name, value in os.environ.items() if name in ("HOME", "WANDB_API_KEY")}
"""


@pytest.mark.full("an executed notebook")
def test_an_executed_notebook_tells_nothing_not_even_in_its_last_error(poisoned):
    import nbformat

    path = poisoned / "a.ipynb"
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    parameters = nbformat.v4.new_code_cell("SCALE = 'tiny'\nDATA = ''", metadata={"tags": ["parameters"]})
    end = nbformat.v4.new_code_cell("raise OSError(os.environ['MY_SERVICE_PASSWORD'] + ' in ' + DATA)")
    notebook.cells = [parameters, nbformat.v4.new_code_cell(NOTEBOOK), end]
    nbformat.write(notebook, path)
    out = poisoned / "out" / "a.ipynb"
    with pytest.raises(Exception, match="OSError"):
        notebooks.run(path, {"DATA": f"{poisoned}/data"}, out)
    text = out.read_text(encoding="utf-8")
    assert text.count("***") >= 4 and "*** in ~/data" in text
    assert [told for told in _told(out.parent) if not told.endswith(str(ROOT))] == []


def test_this_suite_is_not_fooled_by_who_runs_it():
    assert getpass.getuser() != "janedoe" and socket.gethostname() != HOST
