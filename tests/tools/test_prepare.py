"""tools: recordings and lyrics become shards, whole or not at all, that training takes."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import BABY, ROOT
from safetensors.torch import save_file

import data
import style
from config import CODEC, PHONEMIZER, PRESETS, STYLES, CodecConfig, DataSettings, UserError
from lyrics.align import AlignSettings
from model import DiT, flow_loss
from phonemes import SymbolTable, load_phonemizer
from style import named_styles
from support.audio import read_wave
from support.files import LOCK
from tools import prepare, shards
from sung import SungCodec
from vae import Oobleck, OobleckCodec, layouts, make_codec

BABY_CODEC = PRESETS["baby"].codec
CHANNELS = PRESETS["baby"].model.mel_dim
WORDS = [("hello", 0.2, 1.0), ("world", 1.1, 1.9), ("again", 2.2, 2.9)]
LRC = "[00:00.20]<00:00.20>hello<00:01.00> <00:01.10>world<00:01.90>\n[00:02.20]<00:02.20>again<00:02.90>\n"
TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

0
3
<exists>
1
"IntervalTier"
"words"
0
3
6
0
0.2
""
0.2
1.0
"hello"
1.0
1.1
""
1.1
1.9
"world"
1.9
2.2
""
2.2
2.9
"again"
"""


def tone(seconds: float = 3.0, rate_hz: int = 24000, channels: int = 1, hz: float = 150.0) -> np.ndarray:
    """A voiced sound that rests where WORDS do: (N, channels), one channel a little louder than the next."""
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    wave = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 9)) / 10
    wave *= np.any([(t >= a) & (t < b) for _, a, b in WORDS], 0) | (t > 3)
    return np.stack([wave * 0.8 ** c for c in range(channels)], 1)


def add_song(folder: Path, name: str, lyrics: object = WORDS, ending: str = ".json", sound: str = ".wav",
             rate_hz: int = 24000, wave: np.ndarray | None = None) -> Path:
    """Write a recording and its lyrics. Returns the recording's path."""
    path = folder / f"{name}{sound}"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(rate_hz=rate_hz) if wave is None else wave, rate_hz)
    if isinstance(lyrics, list):
        lyrics = json.dumps([{"word": word, "start": start, "end": end} for word, start, end in lyrics])
    if lyrics is not None:
        (folder / f"{name}{ending}").write_text(lyrics)
    return path


def run(main, *args: object) -> int:
    """The exit code of a command's main."""
    try:
        main([str(arg) for arg in args])
    except SystemExit as end:
        return end.code
    return 0


def make(songs: Path, out: Path, *more: object) -> int:
    return run(prepare.main, "--songs", songs, "--out", out, "--offline", "--device", "cpu",
               "--style", "female", *more)


def mistake(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


def files(out: Path, *without: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())
            if path.name not in (LOCK, *without)}


def parts(shard: Path) -> dict[str, object]:
    """The members of a tar by name, read."""
    with tarfile.open(shard) as tar:
        found = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    return {name: json.loads(value) if name.endswith("json") else
            torch.load(io.BytesIO(value), weights_only=True) for name, value in found.items()}


def reasons(out: Path) -> dict[str, str]:
    return json.loads((out / "report.json").read_text())["reasons"]


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Half a second for each run: the phonemizer and the codec."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("reader", "make_codec"):
            patch.setattr(prepare, name, functools.cache(getattr(prepare, name)))
        yield


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """Four good recordings in three formats of lyrics, three that are not."""
    folder = tmp_path_factory.mktemp("songs")
    add_song(folder, "a", rate_hz=44100, wave=tone(3, 44100, 2))
    add_song(folder, "b c/take 1.final", LRC, ".lrc", ".flac")
    add_song(folder, "grid", TEXTGRID, ".TextGrid", rate_hz=48000)
    add_song(folder, "last", wave=tone(4.5), sound=".flac")
    add_song(folder, "bare", None)
    add_song(folder, "plain", "hello my love\n", ".txt")
    (folder / "broken.wav").write_bytes(b"RIFF\xff\xff\0\0WAVE")
    (folder / "broken.json").write_text("[]")
    add_song(folder, ".hidden")
    return folder


@pytest.fixture(scope="module")
def made(songs, tmp_path_factory):
    """Shards of them, two songs each."""
    out = tmp_path_factory.mktemp("made") / "shards"
    assert make(songs, out, "--songs-per-shard", 3) == 0
    return out


KEYS = ["a", "b_c_take_1_final", "grid", "last"]


# Songs

def test_shards(made, songs):
    """Parts that data.py cannot read, words or times that got lost, another style than was asked for."""
    assert sorted(path.name for path in made.iterdir()) == sorted(
        [f"songs-{i:06d}.{ending}" for i in range(3) for ending in ("jsonl", "tar")][:-1]
        + [LOCK, "ids.jsonl", "report.json", "silence.pt", PHONEMIZER, STYLES, CODEC])
    found = {name: value for i in range(2) for name, value in parts(made / f"songs-{i:06d}.tar").items()}
    assert sorted(found) == sorted(f"{key}.{ending}" for key in KEYS
                                   for ending in ("json", "latent.pt", "style.pt"))
    known, female = load_phonemizer(BABY / PHONEMIZER), named_styles(BABY / STYLES)["female"].float()
    for key in KEYS:
        words = found[f"{key}.json"]["word"]
        assert [(w["word"], pytest.approx(w["start"]), pytest.approx(w["end"])) for w in words] == WORDS
        assert [w["phoneme"] for w in words] == [known(word) for word, *_ in WORDS]
        posterior = found[f"{key}.latent.pt"]
        seconds = 4.5 if key == "last" else 3.0
        assert posterior.shape == (2 * CHANNELS, -(-round(seconds * 24000) // 512))
        assert posterior.dtype == torch.float32
        assert not posterior[CHANNELS:].any() and posterior[:CHANNELS].std() > 0.2
        assert torch.equal(found[f"{key}.style.pt"], female)


def test_lists_and_assets(made, songs):
    """Rejected songs among the ids, other durations, reasons that name no file, assets of another model."""
    ids = [json.loads(line) for line in (made / "ids.jsonl").read_text().splitlines()]
    assert ids == [{"id": key, "duration": 4.5 if key == "last" else 3.0} for key in KEYS]
    report = json.loads((made / "report.json").read_text())
    why = report["reasons"]
    assert (report["made"], report["rejected"], report["seconds"]) == (4, 3, 13.5)
    assert report["settings"]["songs_per_shard"] == 3
    assert set(why) == {"bare.wav", "plain.wav", "broken.wav"}
    assert "bare.wav: has no lyrics beside it" in why["bare.wav"] and "broken.wav: " in why["broken.wav"]
    assert "plain.wav: HDEMUCS" in why["plain.wav"] and "--offline" in why["plain.wav"]
    lines = [json.loads(line) for i in range(3) for line in
             (made / f"songs-{i:06d}.jsonl").read_text().splitlines()]
    assert len(lines) == 7 and all(set(line) == {"id", "duration", "status", "reason", "inputs", "settings"}
                                   for line in lines)
    assert all(set(line["inputs"]) <= {str(p.relative_to(songs)) for p in songs.rglob("*")} for line in lines)
    for name in (PHONEMIZER, STYLES, CODEC):
        assert (made / name).read_bytes() == (BABY / name).read_bytes()
    silence = torch.load(made / "silence.pt", weights_only=True)
    assert torch.equal(silence, SungCodec(BABY_CODEC).silence)


def test_level(tmp_path):
    """Latents that depend on how loud a recording is, or on its pauses, or on its channels."""
    wave = tone()
    add_song(tmp_path / "songs", "loud", wave=wave)
    soundfile.write(add_song(tmp_path / "songs", "quiet"), wave / 50, 24000, subtype="FLOAT")
    add_song(tmp_path / "songs", "wide", wave=tone(channels=2))
    assert make(tmp_path / "songs", tmp_path / "out") == 0
    found, codec = parts(tmp_path / "out" / "songs-000000.tar"), make_codec(BABY_CODEC, BABY / CODEC)
    given = torch.from_numpy(wave.T).float()
    sung = torch.cat([given[:, round(a * 24000):round(b * 24000)] for _, a, b in WORDS], 1)
    want = codec.encode((given * 0.055 / sung.square().mean().sqrt())[None])[0].T
    for key, tolerance in (("loud", 0.01), ("quiet", 1e-5), ("wide", 0.01)):                 # of 16 bits
        assert (found[f"{key}.latent.pt"][:CHANNELS] - want).abs().mean() < tolerance


def test_resampling(tmp_path):
    """Overtones folded down into the singing, or a dull one, where a recording has another rate."""
    wave = torch.from_numpy(np.sin(2 * np.pi * np.outer([10000, 15000], np.arange(88200) / 44100))).float()
    codec = PRESETS["baby"].codec
    kept, folded = (prepare.fitted(w[None], 44100, codec, Path("x"))[0, 4000:-4000] for w in wave)
    assert len(prepare.fitted(wave[:1], 44100, codec, Path("x"))[0]) == 48000
    assert abs(kept.square().mean().sqrt() - 0.5 ** 0.5) < 0.01 and folded.abs().max() < 1e-4


def test_rejected(tmp_path):
    """A song that cannot be trained on gets in, or one that can is lost, or the reason is not told."""
    folder, out = tmp_path / "songs", tmp_path / "out"
    cases = {
        "nan": (dict(wave=np.full((72000, 1), np.nan)), "not finite"),
        "silent": (dict(wave=np.zeros((72000, 1))), "is silent"),
        "pauses": (dict(lyrics=[("hello", 1.92, 2.18)]), "is silent where its words are"),
        "long": (dict(wave=tone(6.0)), "is 6.00 s long; expected 1 to 5 s"),
        "short": (dict(wave=tone(0.9)), "is 0.90 s long"),
        "late": (dict(lyrics=[("hello", 0.2, 3.6)]), "its words end at 3.60 s, the recording at 3.00 s"),
        "overlap": (dict(lyrics=[("hello", 0.2, 1.0), ("world", 0.5, 1.5)]), 'word 2 "world": start 0.50 s'),
        "foreign": (dict(lyrics=[("你好", 0.2, 1.0)]), 'word 1 "'),
        "wordless": (dict(lyrics="[]"), "has no words"),
        "twice": (dict(lyrics=WORDS), "has several lyrics or styles: twice.json, twice.lrc"),
        "styled": (dict(), "styled.style.npy: expected 128 finite numbers: found 3"),
    }
    for name, (song, _) in cases.items():
        add_song(folder, name, **song)
    wave, rate_hz = np.full((72000, 1), np.nan, np.float32), 24000
    soundfile.write(folder / "nan.wav", wave, rate_hz, subtype="FLOAT")
    (folder / "twice.lrc").write_text(LRC)
    np.save(folder / "styled.style.npy", np.ones(3))
    add_song(folder, "barely", [("hello", 0.2, 3.4)])                 # good: within half a second
    add_song(folder, "x y")
    add_song(folder, "x/y")
    add_song(folder, "x y", sound=".flac")
    assert make(folder, out, "--longest", 5) == 0
    found = reasons(out)
    for name, (_, reason) in cases.items():
        assert reason in found.pop(f"{name}.wav"), name
    assert found.keys() == {"x y.wav", "x y.flac"}
    assert all("its name in shards, x_y, is taken by" in reason and "x/y.wav" in reason
               for reason in found.values())
    assert {name.partition(".")[0] for name in parts(out / "songs-000000.tar")} == {"barely", "x_y"}


def test_aligned(tmp_path, monkeypatch):
    """Lines without word times that are not aligned, or are with other settings; timed words that are."""
    asked = []

    def align(path, lyrics, settings):
        asked.append((path.name, settings))
        times = iter(WORDS)
        return lyrics.changed(lambda word: dataclasses.replace(word, **dict(zip(
            ("start", "end"), next(times)[1:]))))
    monkeypatch.setattr(prepare, "align", align)
    add_song(tmp_path / "songs", "timed")
    add_song(tmp_path / "songs", "lines", "[00:00.20]hello world\n[00:02.20]again\n", ".lrc")
    assert make(tmp_path / "songs", tmp_path / "out", "--separate", "false", "--model", "wav2vec2") == 0
    assert asked == [("lines.wav", AlignSettings("wav2vec2", False, device="cpu", offline=True))]
    found = parts(tmp_path / "out" / "songs-000000.tar")
    assert found["lines.json"] == found["timed.json"]


def test_failing_devices(songs, tmp_path, monkeypatch, capsys):
    """One song too long for the memory ends the run; or an interrupt does not."""
    encode, kinds = SungCodec.encode, iter([MemoryError(), RuntimeError("out of\nmemory"), None, None])

    def failing(codec, wave):
        if error := next(kinds):
            raise error
        return encode(codec, wave)
    monkeypatch.setattr(SungCodec, "encode", failing)
    assert make(songs, tmp_path / "out") == 0
    err = capsys.readouterr().err
    assert "a.wav: MemoryError: \n" in err and "take 1.final.flac: RuntimeError: out of memory\n" in err
    kinds = iter([KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        make(songs, tmp_path / "other")
    assert not list((tmp_path / "other").glob("*.tar"))


def test_too_many_rejected(songs, tmp_path, capsys):
    """A run that lost most songs passes for a good one."""
    assert make(songs, tmp_path / "out", "--max-rejected", 0.5) == 0
    assert make(songs, tmp_path / "out", "--max-rejected", 0.4) == 1
    out, err = capsys.readouterr()
    assert out.count("3.0 s of song in") == 3 and err.count("rejected: ") == 3
    assert "4 songs of 14 s in 1 shards; 3 rejected" in out and "finished before" in out
    add_song(tmp_path / "bad", "bare", None)
    assert "all 1 songs were rejected" in mistake(make, tmp_path / "bad", tmp_path / "none")
    assert not list((tmp_path / "none").glob("*.tar")) and reasons(tmp_path / "none")
    (tmp_path / "nothing").mkdir()
    assert "no recordings" in mistake(make, tmp_path / "nothing", tmp_path / "none")


def test_settings(songs, tmp_path):
    """A mistake that is found only after hours, or not at all."""
    for flag, value in (("--preset", "x"), ("--dtype", "float64"), ("--songs-per-shard", "0"),
                        ("--max-rejected", "1.5"), ("--longest", "0.5"), ("--style-windows", "0"),
                        ("--num-style-secs", "0"), ("--style", "nobody"), ("--vae", "x"), ("--lexicon", "x"),
                        ("--phonemizer", "x"), ("--styles", "x"), ("--model", "x")):
        assert value in mistake(make, songs, tmp_path / "out", flag, value)
    text = mistake(run, prepare.main, "--songs", songs, "--out", tmp_path / "out")
    assert text.startswith("--preset baby takes no sound and no text as style; expected")
    names = " or ".join([*sorted(named_styles(BABY / STYLES)), "FILE"])
    assert text.endswith(f"; give --style {names}, or a NAME.style.npy beside every recording")
    assert "expected inspect, validate" in mistake(shards.main, ["make"])
    assert not (tmp_path / "out").exists()


# Shards

def test_finished_shards(songs, tmp_path, monkeypatch, capsys):
    """What is finished is made again, or what has changed is not; songs that are gone stay in shards."""
    folder, out = tmp_path / "songs", tmp_path / "out"
    shutil.copytree(songs, folder)
    make(folder, out, "--songs-per-shard", 3)
    before = files(out)

    def again(*more):
        capsys.readouterr()
        make(folder, out, *more)
        return capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_shard", lambda *args: pytest.fail("made a finished shard"))
        assert again("--songs-per-shard", 3).count("finished before") == 3 and files(out) == before
    (folder / "grid.TextGrid").write_text(TEXTGRID.replace("again", "never"))
    assert again("--songs-per-shard", 3).count("finished before") == 2
    changed = [name for name, content in files(out).items() if content != before[name]]
    assert changed == ["songs-000001.jsonl", "songs-000001.tar"]
    assert "finished before" not in again("--songs-per-shard", 3, "--dtype", "float16")
    assert parts(out / "songs-000000.tar")["a.latent.pt"].dtype == torch.float16
    assert again("--songs-per-shard", 100).count("s of song in") == 4
    assert [path.name for path in sorted(out.glob("songs-*"))] == ["songs-000000.jsonl", "songs-000000.tar"]
    (out / "songs-000000.jsonl").write_text("{}\n")
    assert again().count("s of song in") == 4
    (out / "songs-000000.tar").unlink()
    assert again().count("s of song in") == 4
    (out / "songs-000007.tar").touch()
    assert "songs-000007.tar was not made by this command" in mistake(make, folder, out)
    assert (out / "songs-000007.tar").exists()


def test_a_folder_is_one_runs(songs, tmp_path, held):
    """Two runs that delete each other's shards; what a killed one leaves."""
    out = tmp_path / "out"
    make(songs, out, "--songs-per-shard", 3)
    before = files(out)
    with held(out) as told:
        assert told in mistake(make, songs, out, "--songs-per-shard", 100) and files(out) == before
    (out / ".songs-000009.tar.abcd_123.tmp").touch()
    make(songs, out, "--songs-per-shard", 3)
    assert files(out).keys() == before.keys()


def test_a_shard_of_rejected_songs(tmp_path, capsys):
    """An empty tar, which no reader takes; or its songs are tried again and again."""
    folder, out = tmp_path / "songs", tmp_path / "out"
    for name in ("a", "b"):
        add_song(folder, name, None)
    add_song(folder, "c")
    for _ in range(2):
        make(folder, out, "--songs-per-shard", 2)
        assert sorted(path.name for path in out.glob("songs-*")) == [
            "songs-000000.jsonl", "songs-000001.jsonl", "songs-000001.tar"]
    assert capsys.readouterr().out.count("finished before") == 2
    assert [path.name for path in out.glob(".*")] == [LOCK]


def in_child(call) -> int:
    """Run call in a process of its own. Returns its signal, or 0."""
    child = os.fork()
    if not child:
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), \
                contextlib.redirect_stderr(quiet):
            try:
                call()
            finally:
                os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("stride", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere(tmp_path, stride):
    """A kill leaves a broken tar, or one with the account of another; resumed, the songs differ."""
    folder, undisturbed = tmp_path / "songs", tmp_path / "undisturbed"
    for name, lyrics in (("a", WORDS), ("b", None), ("c", WORDS)):
        add_song(folder, name, lyrics)
    flags = ["--songs-per-shard", 2]
    make(folder, undisturbed, *flags)
    want = files(undisturbed, "report.json")                          # which has the name of the folder

    def killed(number: int, out: Path, dtype: str) -> None:
        """Make shards, but die before the given one of all calls that change files."""
        left = iter(range(number + 1))

        def patched(original):
            def call(*args, **more):
                if next(left, None) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **more)
            return call
        for owner, name in ((Path, "replace"), (Path, "unlink"), (tarfile.TarFile, "addfile")):
            setattr(owner, name, patched(getattr(owner, name)))
        make(folder, out, *flags, "--dtype", dtype)

    digests = {}
    for dtype in ("float32", "float16"):                              # for the first time, or anew
        for number in range(0, 1000, stride):
            out = tmp_path / f"{dtype}-{number}"
            if dtype == "float16":
                shutil.copytree(undisturbed, out)
            ended = in_child(functools.partial(killed, number, out, dtype))
            for tar in out.glob("songs-*.tar"):
                lines = [json.loads(line) for line in tar.with_suffix(".jsonl").read_text().splitlines()]
                found = parts(tar)
                assert {name.partition(".")[0] for name in found} == {
                    line["id"] for line in lines if line["status"] == "made"}
                (used,) = {value.dtype for name, value in found.items() if name.endswith("latent.pt")}
                assert digests.setdefault(used, lines[0]["settings"]) == lines[0]["settings"]
            make(folder, out, *flags)
            assert files(out, "report.json") == want
            shutil.rmtree(out)
            if not ended:
                break
        assert number > 20
    assert len(set(digests.values())) == 2


# Other codecs and styles

@pytest.fixture
def tiny_jam(tmp_path, monkeypatch):
    """A preset "jam" with a small stereo autoencoder, random; its flags, its codec."""
    codec = CodecConfig("oobleck", sample_rate_hz=16000, hop=512, wave_channels=2, latent_dim=8, width=4,
                        strides=(2, 4, 8, 8), multiples=(1, 2, 2, 4))
    jam = PRESETS["jam-0.5"]
    sizes = dataclasses.replace(jam.model, mel_dim=8, cond_dim=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Oobleck(codec)
    _, diffusers = next(layouts(model))
    weights = {name: model.state_dict()[own] for name, own in diffusers.items()}
    save_file(weights, tmp_path / "vae.safetensors")
    monkeypatch.setitem(PRESETS, "jam", dataclasses.replace(jam, codec=codec, model=sizes))
    return (["--preset", "jam", "--vae", tmp_path / "vae.safetensors", "--phonemizer", BABY / PHONEMIZER,
             "--offline"], OobleckCodec(codec, model.eval()))


def test_oobleck(tiny_jam, tmp_path):
    """Means without deviations, a level that was changed, a mono file on one side, a silence with an edge."""
    flags, codec = tiny_jam
    add_song(tmp_path / "songs", "mono", rate_hz=16000)
    add_song(tmp_path / "songs", "stereo", wave=tone(3, 16000, 2), rate_hz=16000)
    add_song(tmp_path / "songs", "silent", wave=np.zeros((48000, 2)), rate_hz=16000)
    add_song(tmp_path / "songs", "surround", wave=tone(3, 16000, 6), rate_hz=16000)
    np.save(tmp_path / "style.npy", np.arange(4.0))
    assert run(prepare.main, "--songs", tmp_path / "songs", "--out", tmp_path / "out", *flags,
               "--style", tmp_path / "style.npy") == 0
    found = parts(tmp_path / "out" / "songs-000000.tar")
    for name in ("mono", "stereo"):
        wave = read_wave(tmp_path / "songs" / f"{name}.wav")[0].expand(2, -1)
        assert torch.allclose(found[f"{name}.latent.pt"], codec.posterior(wave[None])[0], atol=1e-5)
        assert torch.equal(found[f"{name}.style.pt"], torch.arange(4.0))
    assert found["mono.latent.pt"][8:].min() > 0
    why = reasons(tmp_path / "out")
    assert "surround.wav: has 6 channels; expected 1 or 2" in why["surround.wav"]
    assert why["silent.wav"].endswith("silent.wav: is silent") and len(why) == 2
    silence = torch.load(tmp_path / "out" / "silence.pt", weights_only=True)
    assert torch.allclose(silence, codec.encode(torch.zeros(1, 2, 512 * 100))[0, 50], atol=1e-5)
    assert not (tmp_path / "out" / STYLES).exists()


def test_styles_of_recordings(tiny_jam, tmp_path, monkeypatch):
    """Windows that are no part of the song, or all the same; a song's own style that is passed over."""
    heard, folder = [], tmp_path / "songs"

    class Encoder:
        width = 4

        def __init__(self, *args):
            pass

        def audio(self, wave):
            heard.append(wave)
            return torch.full((4,), float(len(heard)))
    monkeypatch.setattr(style, "StyleEncoder", Encoder)
    for module in (prepare, style):
        monkeypatch.setattr(module, "encoder_folders", lambda cfg: (tmp_path,) * 3)
    (tmp_path / "pytorch_model.bin").touch()
    add_song(folder, "a")
    add_song(folder, "own")
    torch.save(torch.ones(4), folder / "own.style.pt")
    add_song(folder, "short", [("hello", 0.2, 0.9)], wave=tone(1.0))
    out = tmp_path / "out"
    flags = ["--songs", folder, "--out", out, *tiny_jam[0]]
    assert run(prepare.main, *flags, "--num-style-secs", 1, "--style-windows", 2) == 0
    found = parts(out / "songs-000000.tar")
    assert found["a.style.pt"].tolist() == [[1.0] * 4, [2.0] * 4]
    wave = torch.from_numpy(tone()[:, 0]).float()
    for part, start in zip(heard, (0.5, 1.5)):
        assert (part - wave[round(start * 24000):round((start + 1) * 24000)]).abs().max() < 1e-3
    assert torch.equal(found["own.style.pt"], torch.ones(4)) and found["short.style.pt"].shape == (1, 4)
    (tmp_path / "pytorch_model.bin").write_text("another")
    before = len(heard)
    assert run(prepare.main, *flags, "--num-style-secs", 1, "--style-windows", 2) == 0
    assert len(heard) == before + 3


# What is in shards

def test_inspect(made, tmp_path, capsys, monkeypatch):
    """Another song's numbers, totals of the listed songs only, pictures of nothing."""
    assert run(shards.main, "inspect", made / "songs-000000.tar", "--draw", tmp_path / "pictures") == 0
    rows = capsys.readouterr().out.splitlines()
    posterior = parts(made / "songs-000000.tar")["a.latent.pt"]
    assert rows[0].startswith(f"a: 141 frames, 3.01 s; latents ({2 * CHANNELS}, 141) float32, "
                              f"mean {posterior[:CHANNELS].mean():.3f}")
    assert rows[0].endswith("style (128,), norm 1.000; 3 words: 0.20-1.00 hello həloʊ; 1.10-1.90 world wɝld; "
                            "2.20-2.90 again əɡɛn")
    assert rows[-1].endswith("songs-000000.tar: 2 songs, 6.0 s, 6 words; 0 broken") and len(rows) == 3
    from PIL import Image
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == ["a.png", "b_c_take_1_final.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (1200, 20 + 18 + 192 + 32)
        pixels = np.asarray(picture.convert("RGB"))
    inside = pixels[38:230, 40:1160].sum((0, 2), dtype=int)  # 1120 columns for 141 frames
    assert inside[160:320].mean() > 1.05 * inside[-32:].mean()         # the voice, the pause behind it
    start = 40 + int(1.1 * 1120 / (141 * 512 / 24000))       # of "world"
    assert (pixels[:38] < 128).any() and (pixels[38:230, start] == 255).all()
    with open(made / "songs-000001.tar", "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        assert run(shards.main, "inspect", "-", "--songs", 1) == 0
    out = capsys.readouterr().out
    assert out.count("latents") == 1 and "-: 2 songs, 7.5 s" in out
    (tmp_path / "broken.tar").write_bytes((made / "songs-000000.tar").read_bytes()[:200_000])
    assert run(shards.main, "inspect", tmp_path / "broken.tar") == 1 and "broken: " in capsys.readouterr().err


def test_validate(made, tmp_path, capsys):
    """A shard that training would break on, or learn nonsense from, passes; a good one does not."""
    assert run(shards.main, "validate", made) == 0
    assert capsys.readouterr().out.endswith(": 4 songs, 0 problems, 0 notes\n")
    posterior = torch.zeros(2 * CHANNELS, 141)

    def word(start, end, phoneme="ɹɛd"):
        return {"start": start, "end": end, "phoneme": phoneme}
    cases = {
        "rows": ({"latent.pt": posterior[:200]}, f"latent (200, 141); expected ({2 * CHANNELS}, frames)"),
        "nan": ({"latent.pt": posterior / 0}, "latent: has "),
        "negative": ({"latent.pt": posterior - 1}, "latent: a standard deviation below 0"),
        "wide": ({"style.pt": torch.ones(5)}, "style (5,); expected (128,)"),
        "none": ({"style.pt": None}, "no none.style.pt"),
        "text": ({"json": {"word": [{"start": 0}]}}, "word 1: expected start, end and phoneme"),
        "late": ({"json": {"word": [word(0, 1), word(2, 3.6)]}}, "word 2: ends at 3.60 s, the song at 3.01"),
        "back": ({"json": {"word": [word(1, 0.5)]}}, "word 1: from 1.00 to 0.50 s"),
        "far": ({"json": {"word": [word(1, 1e308)]}}, "word 1: ends at 1e+308 s, the song at 3.01"),
        "odd": ({"json": {"word": [word(1, 2, "ɹɛ¿d")]}}, "word 1: phonemes 'ɹɛ¿d'; unknown: ¿"),
        "mute": ({"json": {"word": [word(1, 2, "")]}}, "word 1: phonemes ''; unknown: there are none"),
        "good": ({"json": {"word": [word(0, 2), word(1, 3.4, "ˈɹɛːd")]}}, ""),
    }
    (tmp_path / "shards").mkdir()
    for name in ("one.tar", "two.tar"):
        with tarfile.open(tmp_path / "shards" / name, "w") as tar:
            for key, (change, _) in cases.items() if name == "one.tar" else [("good", ({}, ""))]:
                song = {"latent.pt": posterior, "style.pt": torch.ones(128), "json": {"word": []}} | change
                for ending, value in song.items():
                    if value is not None:
                        prepare.add(tar, f"{key}.{ending}", value)
    assert run(shards.main, "validate", tmp_path / "shards") == 1
    rows = capsys.readouterr().out.splitlines()
    one = tmp_path / "shards" / "one.tar"
    for row, (key, (_, reason)) in zip(rows, cases.items()):
        assert row.startswith(f"{'problem' if reason else 'note'}: {one}: song {key}: {reason or 'word 2'}")
    assert rows[-2].endswith(f"two.tar: song good: its name is that of {one}: song good")
    assert rows[-1].endswith(": 6 songs, 12 problems, 1 notes") and len(rows) == len(cases) + 2
    (tmp_path / "ids.jsonl").write_text('{"id": "good", "duration": 1}\n{"id": "gone", "duration": 1}')
    assert run(shards.main, "validate", tmp_path / "shards", "--ids", tmp_path / "ids.jsonl") == 1
    assert f"problem: {tmp_path / 'ids.jsonl'}: in no shard: 1 (gone)" in capsys.readouterr().out
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        prepare.add(tar, "good.npy", posterior)
    for command in ("inspect", "validate"):                  # no song is no good shard
        text = mistake(run, shards.main, command, tmp_path / "other.tar")
        assert text.startswith(f"{tmp_path / 'other.tar'}: no song; a song is KEY.latent.pt")
    assert run(shards.main, "inspect", one, "--songs", 0, "--draw", tmp_path / "drawn") == 1
    assert "far: 141 frames" in capsys.readouterr().out and (tmp_path / "drawn" / "far.png").exists()
    assert "no such shard" in mistake(run, shards.main, "validate", tmp_path / "nothing.tar")
    for command in ("inspect", "validate"):
        assert "--preset x" in mistake(run, shards.main, command, made / "songs-000000.tar", "--preset", "x")


# Training

def test_training_step(made):
    """Shards whose words lie outside of the songs, or silence and assets that train.py cannot use."""
    torch.manual_seed(0)
    baby = PRESETS["baby"]
    sizes = dataclasses.replace(baby.model, dim=32, depth=2, heads=2, text_dim=16, conv_layers=1)
    preset = dataclasses.replace(baby, model=sizes)
    table = SymbolTable(load_phonemizer(made / PHONEMIZER).symbols)
    settings = DataSettings(shards=(str(made),), ids=made / "ids.jsonl")
    shards = data.Shards(settings, preset, table, strict=True)
    items = [shards[i, i] for i in range(len(shards))]
    batch = data.collate(items, torch.load(made / "silence.pt", weights_only=True), preset)
    assert len(items) == 4 and batch["latents"].shape == (4, 224, CHANNELS)
    model = DiT(preset.model)
    condition = model.condition(batch["phonemes"], batch["style"], batch["start_time"], batch["duration_abs"],
                                batch["duration_rel"])
    loss = flow_loss(model, batch["latents"], torch.randn(batch["latents"].shape), torch.rand(4), condition)
    loss.mean().backward()
    assert loss.isfinite().all() and model.proj_out.weight.grad.isfinite().all()


def command(*args: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_two_processes(songs, made, tmp_path):
    """Shards that depend on how many processes make them, or of which some are missing."""
    done = command("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                   "-m", "tools.prepare", "--songs", songs, "--out", tmp_path / "both", "--offline",
                   "--device", "cpu", "--style", "female", "--songs-per-shard", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("s of song in") == 4 and done.stderr.count("rejected: ") == 3
    assert done.stdout.count("4 songs of 14 s in 3 shards") == 1
    assert files(tmp_path / "both", "report.json") == files(made, "report.json")


@pytest.mark.slow
def test_train_and_sing(made, tmp_path):
    """What prepare makes does not go through training into a song."""
    done = command("train.py", "--preset", "baby", "--data.shards", made, "--data.workers", 0, "--steps", 1,
                   "--batch", 2, "--assets", made, "--out", tmp_path / "run", "--listen", "false")
    assert done.returncode == 0, done.stderr
    (tmp_path / "words.json").write_text(json.dumps([{"word": "hello", "start": 0.2, "end": 0.8}]))
    done = command("sample.py", "--model", tmp_path / "run" / "last", "--lyrics", tmp_path / "words.json",
                   "--steps", 2, "--out", tmp_path / "song.wav", "--page", "false")
    assert done.returncode == 0, done.stderr
    assert soundfile.info(tmp_path / "song.wav").duration == pytest.approx(1.3, abs=0.01)
