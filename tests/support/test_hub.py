"""support/hub.py: files are found, fetched and checked; every failure is one line; what --doctor prints.

A server on this machine stands in for the hub and for plain urls; the hub's own library talks to it.
"""

import dataclasses
import errno
import hashlib
import http.server
import shutil
import sys
import threading
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from conftest import BABY, ROOT
from huggingface_hub import constants, errors

from config import CODEC, CONFIG, PHONEMIZER, PRESETS, STYLES, WEIGHTS, SampleConfig, UserError
from support import hub
from support.checkpoint import preset_to_json

COMMIT = "c" * 40                        # what "main" is
FAILURES = {"gated": (401, "GatedRepo"), "repository": (401, "RepoNotFound"), "down": (503, ""),
            "revision": (404, "RevisionNotFound"), "file": (404, "EntryNotFound")}
JAM_NEEDS = ("jam-0.5", "phonemizer", "diffrhythm", "vocal")


def content(name: str) -> bytes:
    return f"content of {name}".encode() * 100


class Server(http.server.ThreadingHTTPServer):
    """Serves every asset; `failure`, `broken` and `short` spoil it; `calls` are the requests so far."""
    failure, broken, short = "", False, False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls, self.url = [], f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.calls.append((self.command, self.path))
        status, code = FAILURES.get(server.failure, (200, ""))
        places = {f"/raw/public/{a.file}" if a.repo.startswith("http") else
                  f"/{a.repo}/resolve/{a.revision}/{a.file}": name for name, a in hub.ASSETS.items()}
        if self.path not in places:
            return self.send_error(404)
        name = places[self.path]
        body = b"" if status != 200 else b"broken" if server.broken else content(name)
        revision = hub.ASSETS[name].revision
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT if revision == "main" else revision)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:len(body) // 2] if server.short else body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub on this machine, an empty cache, and ASSETS with the sums of what the server serves."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)    # so that its requests are seen
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", None)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        server.url + "/{repo_id}/resolve/{revision}/{filename}")
    for name, asset in hub.ASSETS.items():
        known = {"bytes": asset.bytes and len(content(name)),
                 "sha256": asset.sha256 and hashlib.sha256(content(name)).hexdigest()}
        if asset.repo.startswith("http"):
            known["repo"] = f"{server.url}/raw/public"
        monkeypatch.setitem(hub.ASSETS, name, dataclasses.replace(asset, **known))
    yield server
    server.shutdown()
    server.server_close()


def mistake(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1100
    return text


# The table

def test_pins():
    """A revision cut short is no pin, a sum with a typo refuses the right file; flags that do not exist."""
    settings = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(SampleConfig)} | {""}
    for asset in hub.ASSETS.values():
        assert asset.flag in settings and asset.licence
        for digits, length in ((asset.revision, 40), (asset.sha256, 64)):
            assert digits in ("main", None) or len(bytes.fromhex(digits)) * 2 == length
    assert [n for n, a in hub.ASSETS.items() if a.gated] == ["stable-audio"]
    assert hub.ASSETS["phonemizer"].check_always and "non-commercial" in hub.ASSETS["jam-0.5"].licence


# Fetching

@pytest.mark.parametrize("name", hub.ASSETS)
def test_fetched_once_then_from_here(name, server, capsys, tmp_path):
    """A wrong address; a download that is silent on its licence; a second one; any request when cached."""
    assert hub.cached(name) is None and server.calls == []
    path = hub.fetch(name)
    assert path.read_bytes() == content(name) and path.is_relative_to(tmp_path)
    asset = hub.ASSETS[name]
    first = capsys.readouterr().err.splitlines()[0]
    size = f"{len(content(name)) / 1e3:.1f} kB"
    for text in (asset.source, asset.what, asset.licence, size):
        assert text in first
    calls = len(server.calls)
    server.failure = "down"
    assert calls and hub.fetch(name) == hub.fetch(name, offline=True) == hub.cached(name) == path
    assert len(server.calls) == calls and capsys.readouterr().err == ""


def test_url_prints_its_sum(server, capsys):
    """What a plain url gives may change any day: its sum must be on record."""
    path = hub.fetch("vocal")
    assert f"{path}: sha256 {hub.ASSETS['vocal'].sha256}" in capsys.readouterr().err
    assert path.parent.name == "jam-pytorch" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["jam-0.5", "phonemizer", "vocal", "silence"])
@pytest.mark.parametrize("how", ["flag", "environment"])
def test_offline(name, how, server, monkeypatch):
    """--offline, or HF_HUB_OFFLINE which is not heeded for plain urls."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "environment")
    text = mistake(hub.fetch, name, how == "flag")
    assert server.calls == [] and "--offline" in text and hub.ASSETS[name].source in text
    assert (hub.ASSETS[name].flag or "silience_latent.pt") in text
    assert ("to train.py as phonemizer.pt in the folder of --assets" in text) == (name == "phonemizer")


@pytest.mark.parametrize("failure, fragment", [
    ("gated", "the licence at https://huggingface.co/declare-lab/jam-0.5 and log in with `hf auth login`"),
    ("repository", "no such repository"), ("revision", "no revision main"), ("file", "no such file"),
    ("down", "503")])
def test_refusals_of_the_hub(failure, fragment, server):
    """The library's messages have several lines, and none says what to do."""
    server.failure = failure
    text = mistake(hub.fetch, "jam-0.5")
    assert fragment in text and "declare-lab/jam-0.5@main/jam-0_5.safetensors" in text and "--model" in text


def test_gated_repository_is_hidden_from_strangers(server):
    """Without a token the hub may say that a gated repository does not exist."""
    server.failure = "repository"
    text = mistake(hub.fetch, "stable-audio")
    assert "https://huggingface.co/stabilityai/stable-audio-open-1.0" in text and "hf auth login" in text


@pytest.mark.parametrize("name, error", [("mulan", "ConnectError"), ("vocal", "ConnectError")])
def test_no_network_fails_at_once(name, error, server, monkeypatch):
    """The library would try six times, with 23 s of pauses, and raise what is no OSError."""
    def sleep(seconds):
        raise AssertionError("retried")
    monkeypatch.setattr("time.sleep", sleep)
    server.shutdown()
    server.server_close()
    text = mistake(hub.fetch, name)
    assert error in text and hub.ASSETS[name].source in text and hub.ASSETS[name].flag in text


@pytest.mark.parametrize("error, fragment", [
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    (httpx.ReadTimeout("The read\noperation timed out"), "ReadTimeout: The read operation timed out"),
    (RuntimeError("Data processing error"), "Data processing error"),
    (errors.FileMetadataError("no ETag"), "no ETag"), (ValueError("Unknown scheme for proxy URL"), "proxy"),
    (ImportError("Using SOCKS proxy, but 'socksio' is not installed"), "socksio")])
def test_failures_in_the_middle(error, fragment, server, monkeypatch):
    """A full disk, a line that breaks, errors of the libraries beneath: each a traceback of its own."""
    def fail(*args, **kwargs):
        raise error
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    text = mistake(hub.fetch, "mulan")
    assert fragment in text and "MuQ-MuLan-large@2e01c796/pytorch_model.bin" in text
    assert "--style-encoder" in text


def test_cause_that_the_library_wraps():
    """"An error happened ..., check your connection" hides what it was."""
    wrapped = errors.LocalEntryNotFoundError("An error happened")
    wrapped.__cause__ = httpx.ConnectError("Name or service not known")
    assert hub.explain(hub.ASSETS["mulan"], wrapped) == "ConnectError: Name or service not known"


def test_missing_library(server, monkeypatch):
    """A traceback where one pip line would help; what is no download must go on without it."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    assert hub.cached("mulan") is None and "pip install" in mistake(hub.fetch, "mulan")


# Checks

@pytest.mark.parametrize("name", ["phonemizer", "mulan", "vocal", "silence"])
def test_broken_download_is_not_kept(name, server):
    """A tampered or damaged file, used by the next run because it lies in the cache."""
    server.broken = True
    text = mistake(hub.fetch, name)
    got = hashlib.sha256(b"broken").hexdigest()
    assert f"sha256 {got}, 6 bytes; expected {hub.ASSETS[name].sha256}" in text
    assert hub.ASSETS[name].source in text and hub.cached(name) is None
    server.broken = False
    assert hub.fetch(name).read_bytes() == content(name)


@pytest.mark.parametrize("name", ["phonemizer", "vocal"])
def test_cached_copy_is_checked(name, server):
    """A pickle that was exchanged in the cache; following the advice must bring the right one."""
    path = hub.fetch(name)
    path.resolve().write_bytes(content(name)[::-1])
    text = mistake(hub.fetch, name)
    assert hashlib.sha256(content(name)[::-1]).hexdigest() in text and hub.ASSETS[name].sha256 in text
    file = Path(text.split("delete ")[1].split(" and it")[0])
    file.unlink()
    assert hub.fetch(name).read_bytes() == content(name)


def test_size_is_checked_without_reading(server, monkeypatch):
    """A cut copy of the largest file; reading 2.7 GB at each start for a sum."""
    path = hub.fetch("mulan")
    with monkeypatch.context() as patch:
        patch.setattr(hub, "sha256", lambda path: pytest.fail("read"))
        assert hub.fetch("mulan") == path
    path.resolve().write_bytes(b"cut")
    assert "3 bytes" in mistake(hub.fetch, "mulan")


@pytest.mark.parametrize("name", ["vocal", "phonemizer"])
def test_interrupted_download_leaves_nothing(name, server, monkeypatch):
    """A connection that ends early: half a file under the whole one's name."""
    server.short = True
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert hub.ASSETS[name].source in mistake(hub.fetch, name)
    assert hub.cached(name) is None
    folder = hub.own_cache()
    assert not folder.exists() or list(folder.iterdir()) == []


def test_cache_that_cannot_be_written(server, monkeypatch, tmp_path):
    """A file where the cache folder should be."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    text = mistake(hub.fetch, "vocal")
    assert "vocal.npy" in text and "--negative-style" in text


# The files of a model

@pytest.fixture
def folder(tmp_path):
    """A checkpoint of JAM's layout."""
    path = tmp_path / "run"
    path.mkdir()
    (path / CONFIG).write_text(preset_to_json(dataclasses.replace(PRESETS["jam-0.5"], steps=7), step=3))
    for name in (WEIGHTS, PHONEMIZER, STYLES, "other.safetensors", "vae.pt"):
        (path / name).write_text("")
    return path


def locate(model, **more) -> hub.ModelFiles:
    return hub.locate(SampleConfig(model=str(model), **more))


def test_baby_from_anywhere(server, monkeypatch, tmp_path):
    """The baby needs no network; beside the recipe folder baby/, from any working directory."""
    for place in (tmp_path, ROOT):
        monkeypatch.chdir(place)
        got = locate("baby", offline=True)
        assert got.weights.samefile(BABY / WEIGHTS) and got.phonemizer.samefile(BABY / PHONEMIZER)
        assert got.styles.samefile(BABY / STYLES) and got.codec.samefile(BABY / CODEC)
        assert got.preset == PRESETS["baby"]
    assert server.calls == []


def test_jam(server):
    """The whole model by its name: three files, and the decoder that --vae names."""
    got = locate("jam-0.5")
    assert (got.preset, got.styles) == (PRESETS["jam-0.5"], None)
    for path, name in ((got.weights, "jam-0.5"), (got.phonemizer, "phonemizer"), (got.codec, "diffrhythm")):
        assert path.read_bytes() == content(name)
    assert locate("jam-0.5", vae="stable-audio").codec.read_bytes() == content("stable-audio")
    assert locate("jam-0.5", offline=True) == got
    assert "--offline" in mistake(hub.encoder_folders, SampleConfig(model="jam-0.5", offline=True))


def test_local_files(server, folder, tmp_path):
    """All passed by hand must need no network: a folder, a file with a config beside it, a file alone."""
    vae, phonemizer = folder / "vae.pt", folder / "vae.pt"
    got = locate(folder, vae=str(vae))
    assert got == hub.ModelFiles(dataclasses.replace(PRESETS["jam-0.5"], steps=7), folder / WEIGHTS,
                                 folder / PHONEMIZER, vae, folder / STYLES)
    got = locate(folder / "other.safetensors", vae=str(vae), phonemizer=phonemizer)
    assert (got.weights, got.preset.steps) == (folder / "other.safetensors", 7)
    assert got.phonemizer == phonemizer
    alone = tmp_path / "alone.safetensors"
    alone.write_text("")
    got = locate(alone, vae=str(vae), phonemizer=phonemizer)
    assert got == hub.ModelFiles(PRESETS["jam-0.5"], alone, phonemizer, vae, None)
    assert server.calls == []


@pytest.mark.parametrize("settings, fragments", [
    ({"model": "jam"}, ["--model jam: expected baby, jam-0.5, a .safetensors file, or a folder with"]),
    ({"model": "."}, ["--model .: there is no model.safetensors"]), ({"model": ""}, ["there is no"]),
    ({"model": "run/vae.pt"}, ["--model run/vae.pt: expected baby"]),
    ({"model": "no.safetensors"}, ["expected baby"]), ({"model": "x" * 999}, ["File name too long"]),
    ({"model": "bare"}, ["--model bare: there is no config.json"]),
    ({"model": "run", "vae": "oobleck"}, ["--vae oobleck: expected diffrhythm, stable-audio, or a file"]),
    ({"model": "run", "vae": "."}, ["--vae .: expected"]),
    ({"model": "baby", "vae": "diffrhythm"}, ["--vae diffrhythm: --model baby has its own decoder"]),
    ({"model": "older"}, ["older/config.json: an earlier embedded model"]),
    ({"model": "mute"}, ["--model mute: there is no codec.safetensors beside its weights"]),
    ({"model": "mute/model.safetensors"}, ["--model mute/model.safetensors: there is no codec.safetensors"]),
    ({"model": "run", "phonemizer": Path("no.pt")}, ["--phonemizer no.pt: there is no such file"])])
def test_mistakes_of_the_user(settings, fragments, server, folder, monkeypatch):
    """A download of 2 GB for a typo, or an error that does not list what is accepted."""
    monkeypatch.chdir(folder.parent)
    (folder.parent / "bare").mkdir()
    (folder.parent / "bare" / WEIGHTS).write_text("")
    for name, kind in (("older", "mel"), ("mute", "sung")):
        (folder.parent / name).mkdir()
        (folder.parent / name / WEIGHTS).write_text("")
        config = preset_to_json(PRESETS["baby"]).replace('"kind": "sung"', f'"kind": "{kind}"')
        (folder.parent / name / CONFIG).write_text(config)
    text = mistake(hub.locate, SampleConfig(**settings))
    assert all(fragment in text for fragment in fragments), text
    assert server.calls == [] and not hub.doctor(SampleConfig(**settings))


def test_encoder_folders(server, tmp_path):
    """Files that muq looks for in another folder than they lie in."""
    fetched = hub.encoder_folders(SampleConfig())
    needed = [(0, "mulan"), (0, "mulan-config"), (1, "muq-config"), (2, "xlmr-config"), (2, "xlmr-tokenizer")]
    for i, name in needed:
        assert (fetched[i] / hub.ASSETS[name].file).read_bytes() == content(name)
    given = tmp_path / "given"
    names = ("MuQ-MuLan-large", "MuQ-large-msd-iter", "xlm-roberta-base")
    for source, name in zip(fetched, names):
        shutil.copytree(source, given / name)
    server.calls.clear()
    cfg = SampleConfig(style_encoder=given)
    assert hub.encoder_folders(cfg) == tuple(given / name for name in names)
    (given / names[2] / "tokenizer.json").unlink()
    assert "xlm-roberta-base/tokenizer.json" in mistake(hub.encoder_folders, cfg) and server.calls == []


# The doctor

def examine(capsys, **settings) -> tuple[bool, str, str]:
    """The doctor's verdict, its tables, and its last part, on the model."""
    capsys.readouterr()
    verdict = hub.doctor(SampleConfig(**settings))
    tables, model = capsys.readouterr().out.split("\n--model ")
    return verdict, tables, model


def test_doctor_with_nothing_here(server, capsys):
    """A verdict that needs the network, or does not say how to get what is missing."""
    verdict, tables, model = examine(capsys, model="baby")
    assert verdict and model == "baby\n  nothing is missing\n"
    verdict, tables, model = examine(capsys, model="jam-0.5", vae="stable-audio")
    assert not verdict and tables.count("missing") == len(hub.ASSETS) and "present" not in tables
    for name, asset in hub.ASSETS.items():
        assert f"  {name} " in tables and asset.source in tables and asset.licence in tables
        due = name in ("jam-0.5", "phonemizer", "stable-audio", "vocal")
        assert (f"\n  {name}: " in model) == due and (not due or f"local copy with {asset.flag}" in model)
    assert "huggingface.co/stabilityai/stable-audio-open-1.0 and log in" in model
    assert "only for --style with a sound file and for --style-text" in model
    assert f"torch           {torch.__version__.split('+')[0]}" in tables and "cpu: 1 threads" in tables
    assert server.calls == []


def test_doctor_with_all_that_jam_needs(server, capsys):
    """Five files of the style encoder asked for where no sound is heard, or not where one is."""
    paths = [hub.fetch(name) for name in JAM_NEEDS]
    calls = len(server.calls)
    verdict, tables, model = examine(capsys, model="jam-0.5")
    assert verdict and model.startswith("jam-0.5\n  nothing is missing\n")
    assert tables.count("present") == 4 and all(str(path) in tables for path in paths)
    assert tables.count("sha256 ok") == 2 and tables.count("sha256 not known, computed") == 2
    assert hashlib.sha256(content("jam-0.5")).hexdigest() in tables
    for settings in ({"style_text": ("slow",)}, {"style": ("a.mp3:0.7",)}, {"style": ("b.npy", "a.wav")}):
        verdict, _, model = examine(capsys, model="jam-0.5", **settings)
        assert not verdict and all(f"\n  {name}: missing" in model for name in hub.ENCODER)
    for style in (("b.npy:0.5", "c.pt"), ("d.safetensors:-1e-3",)):
        assert examine(capsys, model="jam-0.5", style=style)[0]
    assert len(server.calls) == calls


def test_doctor_finds_a_broken_file(server, capsys):
    """ok for a file that is there but is not the one."""
    path = [hub.fetch(name) for name in JAM_NEEDS][JAM_NEEDS.index("phonemizer")]
    path.resolve().write_bytes(b"other")
    verdict, tables, model = examine(capsys, model="jam-0.5")
    assert not verdict and "sha256 differs" in tables and f"delete {path.resolve()}" in model


def test_doctor_counts_what_the_user_passes(server, folder, capsys):
    """Missing is only what no flag gives."""
    verdict, _, model = examine(capsys, model=str(folder), vae=str(folder / "vae.pt"), negative_style="zeros")
    assert verdict and "nothing is missing" in model
    verdict, _, model = examine(capsys, model=str(folder), style_encoder=folder, style_text=("slow",))
    assert not verdict and f"--style-encoder {folder}: there is no" in model


def test_doctor_without_a_library(server, capsys, monkeypatch):
    """The doctor is asked where something is not installed."""
    real = hub.importlib.metadata.version

    def version(name):
        if name == "muq":
            raise hub.importlib.metadata.PackageNotFoundError
        return real(name)
    monkeypatch.setattr(hub.importlib.metadata, "version", version)
    assert "muq             not installed" in examine(capsys)[1]
