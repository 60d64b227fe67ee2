from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hostile_server import HostileServer, flip, html, hub_file, put_repository, serve, status, unused_port

from glassgpt.weights.download import huggingface, published
from glassgpt.weights.download.errors import DownloadError, OfflineError
from glassgpt.weights.download.huggingface import download_huggingface
from glassgpt.weights.download.openai import download_openai_gpt2
from glassgpt.weights.download.published import KNOWN_MODELS
from glassgpt.weights.download.resolve import files_to_fetch, resolve_model

pytestmark = pytest.mark.usefixtures("plain_environment")

DATA = random.Random(1).randbytes(100_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
SRC = Path(__file__).parents[3] / "src"

# --- OpenAI's files ---

SMALL = {name: f"{name} of 124M".encode() for name in ("checkpoint", "hparams.json", "model.ckpt.index")}
SMALL["model.ckpt.data-00000-of-00001"] = DATA


@pytest.fixture
def small_gpt2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPT-2 of OpenAI's whose files are small."""
    rows = [f"{hashlib.sha256(d).hexdigest()} {len(d)} 124M/{name}\n" for name, d in SMALL.items()]
    monkeypatch.setattr(published, "_FACTS", "".join(rows))
    monkeypatch.setattr(published, "_OPENAI_FILES", tuple(SMALL))


def test_openais_files_from_the_second_source(server, tmp_path, small_gpt2):
    for name, data in SMALL.items():
        server.put(f"/two/124M/{name}", data)
    server.put("/one/124M/hparams.json", SMALL["hparams.json"])
    told: list[tuple[int, int | None]] = []
    bases = [server.base + "/one/", server.base + "/two"]
    folder = download_openai_gpt2("gpt2", tmp_path, base_urls=bases, progress=lambda *now: told.append(now))
    assert folder == tmp_path / "124M"
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"} == SMALL
    total = sum(map(len, SMALL.values()))
    assert told[-1] == (total, total)
    assert {all_ for _, all_ in told} == {total}
    assert resolve_model("124M", weights_dir=tmp_path) == folder
    assert resolve_model("gpt2", weights_dir=tmp_path) == folder
    seen = len(server.seen)
    download_openai_gpt2("124M", tmp_path, base_urls=bases)
    assert len(server.seen) == seen


def test_openais_file_with_a_wrong_byte_is_refused(server, tmp_path, small_gpt2):
    for name, data in SMALL.items():
        server.put(f"/124M/{name}", data)
    server.play("/124M/model.ckpt.index", flip(3))
    with pytest.raises(DownloadError, match="wrong checksum") as caught:
        download_openai_gpt2("124M", tmp_path, base_urls=[server.base])
    assert caught.value.by_hand == ("124M", "openai")
    (tmp_path / "355M" / "checkpoint").mkdir(parents=True)
    with pytest.raises(DownloadError, match="is a directory where a file should go") as caught:
        download_openai_gpt2("355M", tmp_path, base_urls=[server.base])
    assert caught.value.by_hand is None  # what is in the way here, no list of files helps
    assert not (tmp_path / "124M" / "model.ckpt.index").exists()


def test_a_size_that_openai_never_published(tmp_path):
    with pytest.raises(ValueError, match="'117M'; choose one of 124M, 355M, 774M, 1558M"):
        download_openai_gpt2("117M", tmp_path)


def test_the_published_facts_agree_with_what_is_known_otherwise():
    shapes = {"124M": (768, 12, 12), "355M": (1024, 24, 16), "774M": (1280, 36, 20), "1558M": (1600, 48, 25)}
    for name, (d, n_layer, n_head) in shapes.items():
        files = {Path(file.path).name: file for file in files_to_fetch(name, source="openai")}
        assert list(files)[-1] == "model.ckpt.data-00000-of-00001"
        parameters = (50257 + 1024) * d + n_layer * (12 * d * d + 13 * d) + 2 * d
        assert files["model.ckpt.data-00000-of-00001"].size in (None, 4 * parameters)
        hparams = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": d, "n_head": n_head, "n_layer": n_layer}
        text = (json.dumps(hparams, indent=2) + "\n").encode()
        assert files["hparams.json"].size in (None, len(text))
        assert files["hparams.json"].sha256 in (None, hashlib.sha256(text).hexdigest())
        assert files["checkpoint"].size in (None, 77)
    assert files_to_fetch("124M", source="openai")[0].url == (
        "https://openaipublic.blob.core.windows.net/gpt-2/models/124M/checkpoint"
    )


# --- Hugging Face ---

REPO = "someone/tiny-gpt2"
COMMIT = "a" * 40
TINY = {
    "config.json": b'{"model_type": "gpt2"}',
    "tokenizer.json": b"{}",
    "model.safetensors": DATA,
    "onnx/config.json": b"no",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"no",
}
WEIGHTS = f"/{REPO}/resolve/{COMMIT}/model.safetensors"


@pytest.fixture
def hub(server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostileServer:
    """`huggingface_hub`, which reads its environment once, turned to loopback and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", server.base)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.base)
    template = server.base + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses"), raising=False)
    return server


def hub_error(name: str = REPO, **options: Any) -> str:
    with pytest.raises(DownloadError) as caught:
        download_huggingface(name, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "and model.safetensors" in text  # the way out
    return text


def names_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts}


def test_a_repository_arrives_without_what_is_not_needed(hub):
    put_repository(hub, REPO, TINY)
    folder = download_huggingface(REPO)
    assert names_in(folder) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == DATA


def test_a_pickle_comes_only_where_there_is_nothing_better(hub):
    put_repository(hub, REPO, {name: data for name, data in TINY.items() if name != "model.safetensors"})
    assert names_in(download_huggingface(REPO)) == {"config.json", "tokenizer.json", "pytorch_model.bin"}


def test_shards_arrive_together(hub):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": {"wte.weight": shards[0], "wpe.weight": shards[1]}}).encode()
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": index,
        shards[0]: DATA,
        shards[1]: DATA[::-1],
    }
    put_repository(hub, REPO, files)
    assert names_in(download_huggingface(REPO)) == set(files)


@pytest.mark.parametrize("in_weights_dir", [False, True])
def test_wrong_bytes_from_the_hub_are_thrown_away(hub, tmp_path, in_weights_dir):
    put_repository(hub, REPO, TINY)
    where = {"weights_dir": tmp_path / "models"} if in_weights_dir else {}
    hub.play(WEIGHTS, hub_file(COMMIT, SHA256, flipped=True))
    text = hub_error(**where)
    wrong = hashlib.sha256(bytes([DATA[0] ^ 1]) + DATA[1:]).hexdigest()
    assert f"model.safetensors came wrong twice: sha256 {wrong}, not {SHA256}" in text
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size == len(DATA)]
    good, bad = hub_file(COMMIT, SHA256), hub_file(COMMIT, SHA256, flipped=True)
    hub.play(WEIGHTS, bad, bad, good)  # HEAD, GET; then HEAD, GET again
    folder = download_huggingface(REPO, **where)
    assert (folder / "model.safetensors").read_bytes() == DATA


def test_two_wrong_files_may_be_one_in_the_cache(hub):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": dict(enumerate(shards))}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, shards[0]: DATA, shards[1]: DATA}
    put_repository(hub, REPO, files)
    (download_huggingface(REPO) / shards[0]).resolve().write_bytes(bytes(len(DATA)))
    folder = download_huggingface(REPO)
    assert [(folder / shard).read_bytes() for shard in shards] == [DATA, DATA]


def test_a_file_that_went_bad_in_the_cache_is_fetched_again(hub):
    put_repository(hub, REPO, TINY)
    weights = (download_huggingface(REPO) / "model.safetensors").resolve()
    weights.write_bytes(bytes(len(DATA)))
    assert (download_huggingface(REPO) / "model.safetensors").read_bytes() == DATA


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(404, X_Error_Code="RepoNotFound"), "has no such repository, or it is private"),
        (status(401), "has no such repository, or it is private"),
        (status(403, X_Error_Code="GatedRepo"), "it is gated: accept its terms"),
        (status(403), "answers 403: log in"),
        (status(404, X_Error_Code="RevisionNotFound"), "it has no revision 'main'"),
        (status(410), "answers 410"),
        (html(), "a proxy or login page"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(hub, answer, words):
    hub.put(f"/api/models/{REPO}/revision/main", b"", answer)
    assert words in hub_error()


def test_a_hub_that_is_not_there(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    assert "no connection" in hub_error()
    put_repository(hub, REPO, TINY)
    monkeypatch.setattr(constants, "ENDPOINT", hub.base)
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be written to" in hub_error(weights_dir=tmp_path / "file")


def test_where_nobody_answers_the_cache_does(hub, monkeypatch, caplog):
    from huggingface_hub import constants

    put_repository(hub, REPO, {name: TINY[name] for name in ("config.json", "model.safetensors")})
    folder = download_huggingface(REPO)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    assert download_huggingface(REPO) == download_huggingface(REPO, revision=COMMIT) == folder
    assert caplog.messages == []


def test_a_hub_that_is_out_of_order_for_a_moment_is_asked_again(hub):
    put_repository(hub, REPO, TINY)
    hub.play(f"/api/models/{REPO}/revision/{COMMIT}", status(503), serve)
    assert (download_huggingface(REPO, revision=COMMIT) / "model.safetensors").read_bytes() == DATA


def test_a_repository_without_a_model(hub):
    put_repository(hub, REPO, {"README.md": b"hello", "config.json": b"{}"})
    assert "it holds no config.json with model.safetensors" in hub_error()


@pytest.mark.parametrize("switch", ["GLASSGPT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_a_repository_comes_from_the_cache_or_not_at_all(hub, monkeypatch, switch):
    put_repository(hub, REPO, TINY)
    with monkeypatch.context() as patch:
        patch.setenv(switch, "1")
        with pytest.raises(OfflineError, match=f"{switch}=1") as caught:
            download_huggingface(REPO)
        assert f"{hub.base}/{REPO}/tree/main" in str(caught.value)
    folder = download_huggingface(REPO)
    monkeypatch.setenv(switch, "1")
    hub.seen.clear()
    assert download_huggingface(REPO) == folder
    assert resolve_model(REPO) == folder
    (folder / "model.safetensors").resolve().write_bytes(bytes(len(DATA)))
    with pytest.raises(OfflineError):
        download_huggingface(REPO)
    assert hub.seen == []


@pytest.fixture
def known(hub: HostileServer, monkeypatch: pytest.MonkeyPatch) -> HostileServer:
    """The name gpt2, for a small repository of a fixed commit with published digests."""
    files = {name: TINY[name] for name in ("config.json", "tokenizer.json", "model.safetensors")}
    put_repository(hub, "openai-community/gpt2", files)
    rows = [f"{hashlib.sha256(d).hexdigest()} {len(d)} gpt2/{name}\n" for name, d in files.items()]
    monkeypatch.setattr(published, "_FACTS", "".join(rows))
    monkeypatch.setattr(huggingface, "COMMITS", {"gpt2": COMMIT})
    return hub


def test_without_a_network_the_one_error_comes_at_once_and_alone(known, tmp_path, monkeypatch, caplog):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setattr(time, "sleep", lambda s: pytest.fail(f"waits {s} s to try again"))
    (tmp_path / "models" / "gpt2").mkdir(parents=True)
    (tmp_path / "models" / "gpt2" / "config.json").write_bytes(TINY["config.json"])
    assert "no connection" in hub_error("gpt2")
    assert "no connection" in hub_error("gpt2", weights_dir=tmp_path / "models")  # stopped half-way
    assert caplog.messages == []
    for name, by_hand in (("124M", ("124M", "huggingface")), (REPO, None)):
        with pytest.raises(DownloadError) as caught:
            download_huggingface(name)
        error = caught.value
        assert (error.by_hand, str(error)) == (by_hand, f"{error.reason}; {error.way_out}")
        assert len(error.reason) < 200


@pytest.mark.parametrize("name", ["gpt2", "124M", "openai-community/gpt2"])
def test_a_known_name_needs_no_network_once_it_is_there(known, name):
    folder = download_huggingface(name)
    assert folder.name == COMMIT
    known.seen.clear()
    assert resolve_model(name) == folder
    assert known.seen == []


def test_a_known_name_is_held_against_the_published_digests(known, tmp_path):
    put_repository(known, "openai-community/gpt2", {**TINY, "model.safetensors": DATA[::-1]})
    assert SHA256 in hub_error("gpt2")  # though the repository's own sha256 fits
    assert SHA256 in hub_error("gpt2", weights_dir=tmp_path / "models")


def test_a_known_name_is_found_where_transformers_left_it(known, monkeypatch):
    put_repository(known, "gpt2", TINY)
    from huggingface_hub import snapshot_download

    theirs = Path(snapshot_download("gpt2", revision=COMMIT))
    known.seen.clear()
    assert download_huggingface("gpt2") == theirs
    assert known.seen == []


def test_a_known_name_in_a_directory_of_models(known, tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSGPT_WEIGHTS", str(tmp_path / "models"))
    folder = resolve_model("124M")
    assert folder == tmp_path / "models" / "gpt2"
    known.seen.clear()
    assert resolve_model("gpt2") == folder
    assert known.seen == []
    assert resolve_model("gpt2", revision="main") == tmp_path / "models" / "gpt2@main"


def test_the_environment_counts_when_the_process_starts(hub, tmp_path):
    put_repository(hub, REPO, TINY)
    code = f"from glassgpt.weights.download.resolve import resolve_model as r; print(r({REPO!r}), end='')"
    mine = {"PYTHONPATH": str(SRC), "HF_ENDPOINT": hub.base, "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, **mine}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout).is_relative_to(tmp_path / "home")
    assert (Path(run.stdout) / "model.safetensors").read_bytes() == DATA


# --- By name, by hand ---


def test_a_path_comes_first_but_the_books_directory_of_models_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    Path("gpt2/124M").mkdir(parents=True)
    assert resolve_model("gpt2/124M") == Path("gpt2/124M")
    with pytest.raises(OfflineError):
        resolve_model("gpt2")
    for name in ("config.json", "model.safetensors"):
        Path("gpt2", name).write_bytes(b"{}")
    assert resolve_model("gpt2") == Path("gpt2")


def test_hand_copied_files_are_found_under_any_of_the_models_names(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    folder = tmp_path / "openai-community" / "gpt2-xl"
    folder.mkdir(parents=True)
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "a.safetensors").write_bytes(b"")
    with pytest.raises(OfflineError):  # half a model is none
        resolve_model("1558M", weights_dir=tmp_path)
    (folder / "b.safetensors").write_bytes(b"")
    assert resolve_model("1558M", weights_dir=tmp_path) == folder


NOT_NAMES = ["gpt3", "", "a/b/c", "../etc", "./demo", "/no/such", "~/x", "a\n/b", "x/..y", "https://host/gpt2"]


@pytest.mark.parametrize("name", NOT_NAMES)
def test_a_name_of_nothing_is_the_users_fault(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        resolve_model(name)
    text = str(caught.value)
    assert any(words in text for words in ("gpt2-xl, 124M", "is a directory here", "is not an owner/name"))


def test_a_near_name_is_offered():
    with pytest.raises(ValueError, match="did you mean 'gpt2-medium'"):
        resolve_model("gpt2-mediun")


def test_a_wrong_path_that_looks_like_a_repository_says_so(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.put("/api/models/runs/demo/revision/main", b"", status(404, X_Error_Code="RepoNotFound"))
    with pytest.raises(DownloadError, match="no directory runs/demo here, and as a name on Hugging Face: "):
        resolve_model("runs/demo")


@pytest.mark.parametrize("name", ["runs/dmeo", "./runs/dmeo"])
def test_a_mistyped_path_never_reaches_the_network(server, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    Path("runs", "demo").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"no model at .*, though .*runs' is a directory here; did you mean .*runs/demo'"
    ):
        resolve_model(name)
    assert server.seen == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin"])
def test_a_file_of_the_users_in_a_directory_of_models_is_not_overwritten(hub, tmp_path, name):
    put_repository(hub, REPO, TINY)
    mine = tmp_path / "models" / REPO / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert f"{mine} was there before, and a download would overwrite it" in hub_error(weights_dir=tmp_path / "models")
    assert mine.read_bytes() == b"mine"
    mine.unlink()
    folder = download_huggingface(REPO, weights_dir=tmp_path / "models")
    (folder / "config.json").write_bytes(b"edited")
    os.utime(folder / "config.json", (later := time.time() + 60, later))
    assert "config.json was there before" in hub_error(weights_dir=tmp_path / "models")
    assert (folder / "config.json").read_bytes() == b"edited"


def test_what_to_fetch_by_hand_is_what_is_found_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    for i, name in enumerate([*KNOWN_MODELS, REPO, "openai-community/openai-gpt"]):
        for source in ("huggingface", "openai") if name in KNOWN_MODELS else ("huggingface",):
            root = tmp_path / f"{i}{source}"
            files = files_to_fetch(name, source=source)
            for file in files:
                assert file.url.startswith("https://")
                assert file.url.endswith("/" + Path(file.path).name)
                (root / file.path).parent.mkdir(parents=True, exist_ok=True)
                (root / file.path).write_bytes(b"x")
            assert resolve_model(name, weights_dir=root) == (root / files[0].path).parent
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror/")
    assert files_to_fetch(REPO)[0].url == f"https://mirror/{REPO}/resolve/main/config.json"
    with pytest.raises(ValueError, match="choose 'huggingface' or 'openai'"):
        files_to_fetch("gpt2", source="ollama")
