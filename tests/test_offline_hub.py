"""An air-gapped hub cache with the real repository ids, and a mirror that refuses: nothing here leaves the machine."""

from __future__ import annotations

import csv
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import hub_cache
import pytest

from eval_harness.checkpoints import get_checkpoint, load_checkpoints
from eval_harness.errors import UserError
from eval_harness.models import check_chat_template, check_model, is_cached
from eval_harness.released import Job, missing, missing_models

SIX = ("aime24", "math500", "amc23", "minerva", "olympiadbench", "amc_83")
GPG = "GD-ML/Qwen2.5-Math-7B-GPG"
COMMIT = "c" * 40


@pytest.fixture(scope="module")
def home(tmp_path_factory, random_checkpoint) -> Path:
    """``HF_HOME`` with every registered checkpoint and the six data sets."""
    home, scratch = tmp_path_factory.mktemp("hf-home"), tmp_path_factory.mktemp("scratch")
    sharded = hub_cache.in_shards(random_checkpoint, scratch / "sharded")
    for checkpoint in load_checkpoints().values():
        hub_cache.add_model(home, checkpoint, sharded, scratch)
    hub_cache.add_data(home, SIX, scratch)
    return home


def _see(monkeypatch, cache: Path, offline: bool = True, endpoint: str | None = None) -> None:
    """Make this process see another cache and another hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    if endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )


@pytest.fixture
def cache(home, tmp_path, monkeypatch) -> Path:
    """A copy of the cache that may be damaged, offline."""
    shutil.copytree(home / "hub", tmp_path / "hub", symlinks=True)
    _see(monkeypatch, tmp_path / "hub")
    return tmp_path / "hub"


@pytest.mark.full("twelve models, each in an engine")
def test_released_checkpoints_and_tables_3_and_4_run_from_the_cache_alone(home, tmp_path):
    """Everything at paper scale, offline: one engine start per model and setting, and the tables read the same runs."""
    env = {**os.environ, **hub_cache.environment(home, tmp_path), "OMP_NUM_THREADS": "1"}
    env.pop("EVAL_DATA_ROOT", None)
    script = Path(__file__).with_name("offline_hub.py")
    done = subprocess.run([sys.executable, script], env=env | {"PYTHONPATH": str(script.parents[1])}, cwd=tmp_path,
                          capture_output=True, text=True, timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["one"], report["all"]) == (0, 0)
    # 12 checkpoints, and the base without its template; the first was measured before
    assert report["engines"] == report["engines in all"] == 12
    five = {"aime24", "math500", "amc23", "minerva", "olympiadbench", "average"}
    assert set(report["table3"]["columns"]) == five and set(report["table4"]["columns"]) == {*five, "amc_83"}
    assert len(report["table3"]["rows"]) == 5 and len(report["table4"]["rows"]) == 9
    rows = report["table4"]["rows"]
    assert rows["oat"] == rows["oat_again"] and rows["base"] != rows["no_template"]
    assert report["table4"]["models"]["gpg_released"] == GPG
    assert not any("trained from another base" in note for note in report["table4"]["notes"])

    lines = list(csv.DictReader((tmp_path / "tables" / "paper" / "released.csv").open(encoding="utf-8")))
    assert {line["checkpoint"] for line in lines} == set(load_checkpoints())
    average = next(x for x in lines if x["checkpoint"] == "GD-ML/Open-RS1" and x["column"] == "average")
    assert (average["samples"], average["published"]) == ("4/16", "55.7")
    run = json.loads(next((tmp_path / "runs").glob("eval-GD-ML--Open-RS1-*/run.json")).read_text(encoding="utf-8"))
    assert run["model"]["revision"] == hub_cache.commit_of("GD-ML/Open-RS1")
    assert run["settings"]["max_model_len"] == 32768 and run["benchmarks"]["aime24"]["decoding"]["temperature"] == 0.6
    assert run["benchmarks"]["aime24"]["single"]["num_items"] == 4
    text = (tmp_path / "tables" / "paper" / "table04.md").read_text(encoding="utf-8")
    assert "82.5 (40)" in text and "62.7 (83)" in text


def test_all_that_is_missing_is_listed_at_once(tmp_path, monkeypatch):
    _see(monkeypatch, tmp_path)
    monkeypatch.delenv("EVAL_DATA_ROOT", raising=False)
    jobs = [Job(entry) for entry in load_checkpoints().values()]
    hub_cache.write_rows(tmp_path / "data", SIX[:5])
    lacking = missing(jobs, data_root=tmp_path / "data")
    assert len(lacking) == len(jobs) + 1 and "amc_83.jsonl does not exist" in lacking[-1]
    assert lacking[4].startswith("model for GPG-RS1: model 'GD-ML/Open-RS1' (revision main)")


def test_a_model_fit_for_nothing_is_told_before_the_start(cache, monkeypatch):
    entry = get_checkpoint("GD-ML/Open-RS1")
    assert missing_models([Job(entry)]) == []
    config = _file(cache, entry.id, "config.json")
    raw = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**raw, "max_position_embeddings": 4096}), encoding="utf-8")
    (line,) = missing_models([Job(entry)])
    assert "context is 4096 tokens, 32768 are asked for. Give --max-model-len 4096" in line
    assert missing_models([Job(entry)], max_model_len=4096) == []
    _file(cache, entry.id, "chat_template.jinja").unlink()
    (line,) = missing_models([Job(entry)], max_model_len=4096)
    assert "no chat template" in line and "--variant no-template" in line
    monkeypatch.setattr("eval_harness.released._free_for_models", lambda: 10**9)
    monkeypatch.setattr("eval_harness.released.is_cached", lambda *a: False)
    disk = missing_models([Job(get_checkpoint(name)) for name in (GPG, "PRIME-RL/Eurus-2-7B-PRIME")])[-1]
    assert "2 models of 46 GB are still to be fetched, 1 GB are free" in disk


# A cache that is there in part ----------------------------------------------------------------------------------------


def _file(cache: Path, repo: str, name: str) -> Path:
    """The blob behind a file of the repository's only snapshot, which other repositories do not share."""
    (snapshot,) = (cache / f"models--{repo.replace('/', '--')}" / "snapshots").iterdir()
    return snapshot / name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (("unlink", "model-00002-of-00002.safetensors"), "missing: model-00002-of-00002.safetensors; "),
        (("blob", "model-00001-of-00002.safetensors"), "missing: model-00001-of-00002.safetensors; "),
        (("unlink", "tokenizer.json"), "missing: tokenizer.json; "),
        (("unlink", "tokenizer_config.json"), "missing: tokenizer_config.json; "),
        (("unlink", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
          "model-00002-of-00002.safetensors"), "missing: model.safetensors; "),
        (("unlink", "config.json"), "the cache holds other revisions of it"),
        (("cut", "model-00001-of-00002.safetensors"), "damaged or half-written. Fetch it again: hf download"),
    ],
)  # fmt: skip
def test_a_partial_download_is_named_file_by_file(cache, damage, message):
    kind, *names = damage
    assert is_cached(GPG) and check_model(GPG)["revision"] == hub_cache.commit_of(GPG)
    for name in names:
        path = _file(cache, GPG, name)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:1000])
        else:
            (path.resolve() if kind == "blob" else path).unlink()
    with pytest.raises(UserError) as error:
        check_model(GPG)
    assert message in str(error.value) and f"hf download {GPG}" in str(error.value)
    assert is_cached(GPG) == (kind == "cut")


def test_offline_says_what_the_cache_holds(cache):
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set.*the cache has nothing of it.*hf download nobody/x"):
        check_model("nobody/x")
    with pytest.raises(UserError, match=r"other revisions of it \(.*--revision " + COMMIT):
        check_model(GPG, COMMIT)
    pinned = get_checkpoint("Qwen/Qwen2.5-Math-7B")
    assert check_model(pinned.id, pinned.revision)["revision"] == pinned.revision
    with pytest.raises(UserError, match="neither an existing folder nor a hub id"):
        check_model("no/such/folder")


def test_a_local_folder_is_held_to_the_same(random_checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(random_checkpoint, copy)
    assert check_model(str(copy))["chat_template"] is True
    (copy / "chat_template.jinja").unlink()
    identity = check_model(str(copy))
    with pytest.raises(UserError, match="copy has no chat template.*--chat-template none"):
        check_chat_template(identity, None)
    check_chat_template(identity, "none")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="incomplete: missing tokenizer.json"):
        check_model(str(copy))


# A mirror on loopback -------------------------------------------------------------------------------------------------


CONFIG = b'{"model_type": "qwen2", "max_position_embeddings": 4096}'
WHOLE = {"config.json": 60, "model.safetensors": 1000, "tokenizer.json": 10, "tokenizer_config.json": 10}
REPOSITORIES = {
    "some/whole": WHOLE,
    "some/pickled": {"config.json": 60, "pytorch_model.bin": 1000, "tokenizer.json": 10},
    "some/untokenized": {"config.json": 60, "model.safetensors": 1000},
    "some/huge": {**WHOLE, "model.safetensors": 10**18},
}
REFUSALS = {
    "some/gated": (403, {"X-Error-Code": "GatedRepo"}),
    "some/typo": (404, {"X-Error-Code": "RepoNotFound"}),
    "some/vanished": (404, {"X-Error-Code": "RevisionNotFound"}),
    "some/adapter": (404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}),
    "some/token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
}


class _Mirror(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for the repositories above."""

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        parts = self.path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        if repo in REFUSALS:
            return self._send(*REFUSALS[repo])
        if repo not in REPOSITORIES:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        if api:
            files = [{"rfilename": name, "size": size} for name, size in REPOSITORIES[repo].items()]
            body = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": files, "tags": [], "private": False}
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        return self._send(200, {"ETag": '"e"', "X-Repo-Commit": COMMIT}, CONFIG)

    def _send(self, status: int, headers: dict[str, str], body: bytes = b""):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    _see(monkeypatch, tmp_path / "hub", offline=False, endpoint=url)
    yield url
    server.shutdown()


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("some/gated", "is gated: {url} hands it only to accounts that accepted its terms. Accept them at {url}/some/"),
        ("some/typo", "{url} has no such repository, or hides it from you. Check owner and name"),
        ("some/vanished", "has the repository, but not this revision; it was removed, or never was. Give another"),
        ("some/adapter", "the repository holds no config.json"),
        ("some/token", "{url} answered 401. Its token is not accepted: renew HF_TOKEN."),
        ("some/pickled", "holds no *.safetensors weights (but pytorch_model.bin); other formats are not loaded"),
        ("some/untokenized", "at cccccccc holds no tokenizer"),
        ("some/huge", "1000000000.0 GB of weights are still to be fetched"),
    ],
    ids=lambda value: value.removeprefix("some/") if value.startswith("some/") else "",
)
def test_a_mirror_that_refuses_is_understood(mirror, repo, message):
    with pytest.raises(UserError) as error:
        check_model(repo, "main")
    assert message.format(url=mirror) in str(error.value)


def test_a_mirror_that_has_it_is_enough(mirror):
    """Nothing but the small files is fetched before the engine asks for the rest."""
    identity = check_model("some/whole")
    assert (identity["revision"], identity["context"], identity["chat_template"]) == (COMMIT, 4096, None)
    assert not is_cached("some/whole")


def test_a_mirror_that_is_gone_is_asked_once(tmp_path):
    """Without a network and without HF_HUB_OFFLINE: one question, then the cache alone."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Mirror) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"  # closed again: nobody listens
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": url}
    env.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "eval_harness", "released", "--check", "--only", GPG]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr.count(f"{url} does not answer") == 1
    assert f"{url} cannot be reached, and the cache has nothing of it" in done.stderr
    assert "Retrying" not in done.stderr and "nothing was started" in done.stderr
