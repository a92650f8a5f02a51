"""sample.py as its users meet it: the command, its errors, and the embedded model's timing."""

import dataclasses
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import sample
from config import PRESETS, SampleConfig, UserError
from data import window_starts
from phonemes import NO_WORD
from sample import Model, Prompts, main, resolve
from songs.manifest import Song
from songs.takes import reported
from songs.tunes import noise_of
from support.audio import FORMATS, master
from support.cli import run
from support.hub import locate
from support.processes import pick_dtype

HELLO = ROOT / "examples" / "hello.json"
RATE = 24000


def command(*args, **kwargs):
    return subprocess.run([sys.executable, "sample.py", *map(str, args)], cwd=ROOT, capture_output=True,
                          text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **kwargs)


@pytest.fixture
def sing(tiny_folder, tmp_path):
    """sample.py's main on the tiny model; returns the path of the song."""
    def call(*args, out="song.wav", lyrics=HELLO):
        main(["--model", str(tiny_folder), "--out", str(tmp_path / out), "--lyrics", str(lyrics), "--page",
              "false", *args])
        return tmp_path / out
    return call


def write(path, words):
    path.write_text(json.dumps(words))
    return path


def test_the_command(tiny_folder, tmp_path):
    """The transcript that the README shows: seed, stages, memory, the absolute path at last."""
    out = tmp_path / "song.flac"
    done = command("--model", tiny_folder, "--out", out, "--seed", 7, "--duration", 9.75)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == str(out) and "seed 7" in lines[0]
    assert all(word in lines[-2] for word in ("load", "sample", "decode", "per second of song", "memory"))
    assert "sampling" in done.stderr and "decoding" in done.stderr
    wave, rate = soundfile.read(out)
    assert rate == RATE and wave.shape == (round(9.75 * RATE),)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "song.flac", "song.flac.json", "song.flac.safetensors", "song.html", "song.png"]


def test_a_mistake_is_one_line_and_exit_code_2(tiny_folder, tmp_path):
    done = command("--model", tiny_folder, "--out", tmp_path / "x.wav", "--lyrics", "missing.json")
    assert done.returncode == 2 and done.stderr == "error: missing.json: No such file or directory\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("args, fragment", [
    (["--out", "x.aiff"], "unknown ending; expected .wav, .flac, .ogg, .mp3"),
    (["--style", "robot"], "--style robot: no such style or file; expected female, male, a sound"),
    (["--out", "no/folder/song.wav"], "--out no/folder/song.wav: there is no folder no/folder"),
    (["--sed", "1"], "unknown setting --sed; did you mean --seed?"),
    (["--model", "no/model"], "--model no/model: expected baby, jam-0.5, a .safetensors file, or a folder"),
    (["--seed", str(2 ** 70)], "--seed 1180591620717411303424: expected 0 to"),
    (["--sway", "nan"], "--sway nan: expected -1 to 0"),
    (["--guidance-weights", "1e30,1e30"], "not finite"),
    (["--out", "x" * 250 + ".wav"], "a name of more than"),
    (["--device", "meta"], "expected auto, cpu, cuda or mps"),
    (["--steps", "1"], "--steps 1: expected 2 to 1000000"),
    (["--steps", "many"], "--steps many: expected whole number"),
    (["--duration", "5"], "is past the duration 5.00 s"),
    (["--duration", "nan"], "a song of nan s"),
    (["--duration", "-3"], "a song of -3.00 s"),
    (["--duration", "1e7"], "hello.json: a song of 10000000.00 s; expected 0.01 to 1000000 s"),
    (["--from", "12"], "--from 12.0 --to 10.0: expected seconds from 0 to 10.0, the song's end, with 0.01 s"),
    (["--from", "5", "--to", "3"], "--from 5.0 --to 3.0: expected"), (["--from", "-1"], "--from -1.0 --to"),
    (["--to", "10.01"], "--from 0.0 --to 10.01: expected"), (["--to", "nan"], "--to nan: expected"),
    (["--from", "3", "--to", "3.001"], "with 0.01 s or more between them"),
    (["--from", "soon"], "--from soon: expected number"),
    (["--manifest", "x.json", "--out-dir", "x", "--to", "3", "--lyrics", "examples/hello.json", "--out",
      "song.wav"], "--from and --to: a part of one song; leave them out with --manifest"),
    (["--guidance", "triple"], "--guidance triple: expected one of none, single, dual, dual_fix"),
    (["--guidance", "single"], "takes 1 finite weights"),
    (["--guidance-weights", "1"], "takes 2 finite weights"),
    (["--guidance-range", "1,0"], "the lower one first"),
    (["--device", "toaster"], "--device toaster:")])
def test_bad_settings(sing, args, fragment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        sing(*args)
    assert fragment in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_compiling_needs_a_compiler(sing, monkeypatch):
    monkeypatch.setenv("CXX", "/no/compiler")
    with pytest.raises(UserError, match="--compile true: needs a C"):
        sing("--compile", "true")


def test_unwritable_folder(sing, tmp_path, monkeypatch):
    """Refused before any work, not after the song is computed."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)      # root may write anywhere
    monkeypatch.setattr(sample, "Prompts", lambda *args: pytest.fail("worked before it looked"))
    with pytest.raises(UserError, match="no permission to write"):
        sing()


def test_another_working_directory(tiny_folder, tmp_path, monkeypatch):
    """The default lyrics are found where the code is, the song is left where its user is."""
    monkeypatch.chdir(tmp_path)
    main(["--model", str(tiny_folder)])
    assert (tmp_path / "song.wav").exists()


def test_lyrics_are_never_overwritten(sing, tmp_path):
    """song.wav's sidecar is song.wav.json, and that may be the lyrics."""
    lyrics = write(tmp_path / "song.wav.json", [{"word": "hello", "start": 0, "end": 1}])
    with pytest.raises(UserError, match="would overwrite .*song.wav.json"):
        sing(lyrics=lyrics)
    soundfile.write(tmp_path / "song.wav", np.zeros(100), RATE)
    with pytest.raises(UserError, match="would overwrite .*song.wav"):
        sing("--style", f"{tmp_path / 'song.wav'}:0.5")


def test_missing_lyrics_beside_an_older_song(sing, tmp_path):
    """The commonest slip, after the first song: a name that is not there."""
    sing()
    with pytest.raises(UserError, match="no.json: No such file"):
        sing(lyrics=tmp_path / "no.json")


def test_a_last_word_at_the_end_of_the_window(sing, tmp_path):
    """The rest after it does not cost a second window."""
    lyrics = write(tmp_path / "l.json", [{"word": "a", "start": 20, "end": 20.3}])
    assert len(soundfile.read(sing(lyrics=lyrics))[0]) == round(20.48 * RATE)


def test_a_word_the_model_cannot_read(sing, tmp_path):
    words = [{"word": "hello", "start": 0, "end": 1}, {"word": "你好", "start": 1, "end": 2}]
    with pytest.raises(UserError, match='word 2 "你好": cannot be read'):
        sing(lyrics=write(tmp_path / "l.json", words))


def test_a_word_without_room_is_a_warning(sing, tmp_path, capsys):
    """Fewer cells than phonemes: sung as far as it goes, and said."""
    words = [{"word": "strengths", "start": 0.5, "end": 0.52}, {"word": "hello", "start": 1, "end": 1.5},
             {"word": "now", "start": 2, "end": 2.000001}]
    sing(lyrics=write(tmp_path / "l.json", words))
    err = capsys.readouterr().err
    assert 'word 1 "strengths"' in err and "left out" in err and "hello" not in err
    assert 'word 3 "now": 3 phonemes (naʊ) in 0 cells' in err


def test_no_words(sing, tmp_path):
    """An instrumental needs a duration, and then is a song."""
    empty = write(tmp_path / "l.json", [])
    with pytest.raises(UserError, match="--duration"):
        sing(lyrics=empty)
    assert len(soundfile.read(sing("--duration", "0.3", lyrics=empty))[0]) == round(0.3 * RATE)


@pytest.mark.parametrize("ending", FORMATS)
def test_formats(sing, ending):
    wave, rate = soundfile.read(sing(out="song" + ending))
    assert rate == RATE and len(wave) == 10 * RATE and np.isfinite(wave).all() and np.abs(wave).max() > 0.05


def test_same_seed_same_song(sing):
    """jamify never reads its seed. Another seed is another song."""
    one, two, other = (sing("--seed", seed, out=out).read_bytes()
                       for seed, out in [("1", "a.wav"), ("1", "b.wav"), ("2", "c.wav")])
    assert one == two != other


def test_global_random_state_does_not_matter(sing):
    torch.manual_seed(1)
    one = sing(out="a.wav").read_bytes()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert one == sing(out="b.wav").read_bytes()
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("guidance", [["single", "--guidance-weights", "0.5"], *(
    pytest.param([mode], marks=pytest.mark.slow) for mode in ("none", "dual_fix"))])
def test_sidecar_remakes_the_song(sing, tmp_path, guidance):
    """The settings in the sidecar, given as --config, are the song; the sidecar itself is a lyrics file."""
    first = sing("--seed", "3", "--style", "male", "--guidance", *guidance)
    about = json.loads((tmp_path / "song.wav.json").read_text())
    assert [w["word"] for w in about["word"]][:2] == ["hello", "world"]
    assert about["word"][0]["phoneme"] == "həloʊ"
    assert len(about["request"]["sha256"]["weights"]) == 64
    assert about["versions"]["torch"] == torch.__version__
    main(["--config", str(tmp_path / "song.wav.json"), "--out", str(tmp_path / "again.wav"),
          "--lyrics", str(tmp_path / "song.wav.json")])
    assert (tmp_path / "again.wav").read_bytes() == first.read_bytes()


@pytest.mark.slow
def test_the_sidecar_says_how_the_song_was_sampled(sing, tmp_path):
    """`auto` and the preset's values, which may mean something else elsewhere or later."""
    first, account = sing(), tmp_path / "song.wav.json"
    about = json.loads(account.read_text())
    found = {name: about["settings"][name] for name in ("steps", "solver", "sway", "frames", "fast", "dtype")}
    assert found == {"steps": 3, "solver": "abm", "sway": -1.0, "frames": "song", "fast": False,
                     "dtype": pick_dtype("auto", torch.device("cpu"))}
    for dtype in ("float32", "bfloat16"):
        made = sing("--dtype", dtype, out=f"{dtype}.wav")
        main(["--config", f"{made}.json", "--out", str(tmp_path / "again.wav")])
        assert (tmp_path / "again.wav").read_bytes() == made.read_bytes()
    assert first.read_bytes() in [(tmp_path / f"{name}.wav").read_bytes() for name in ("float32", "bfloat16")]

    # A song from before there were solvers.
    old = {name: about["settings"][name] for name in about["settings"] if name not in ("solver", "frames")}
    account.write_text(json.dumps(about | {"settings": old | {"sway": None}}))
    made = sing("--solver", "euler", "--sway", "0", out="euler.wav")
    main(["--config", str(account), "--out", str(tmp_path / "again.wav")])
    assert (tmp_path / "again.wav").read_bytes() == made.read_bytes() != first.read_bytes()


def test_fast():
    """What is given counts more than --fast, which counts more than the preset."""
    cpu, jam = torch.device("cpu"), PRESETS["jam-0.5"]
    sampler = lambda **given: tuple(getattr(resolve(SampleConfig(**given), jam, cpu), name)  # noqa: E731
                                    for name in ("steps", "solver", "sway"))
    assert sampler() == (50, "euler", 0.0) and sampler(fast=True) == (13, "abm", -1.0)
    assert sampler(fast=True, steps=20, sway=-0.7) == (20, "abm", -0.7)


def test_type_of_the_network(monkeypatch):
    """bfloat16 where the hardware has it; float16 on older GPUs; what is asked for, anywhere."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    assert torch.cpu.get_capabilities()["architecture"]
    for flags, name in (({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"),
                        ({"avx512_bf16": False}, "float32"), ({}, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert pick_dtype("auto", cpu) == name
    for version, name in (((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, version=version: version)
        assert pick_dtype("auto", gpu) == name and pick_dtype("float32", gpu) == "float32"
    assert pick_dtype("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), soundfile.LibsndfileError(2)])
def test_a_failed_write_leaves_the_old_song(sing, monkeypatch, tmp_path, failure):
    sing()
    old = (tmp_path / "song.wav").read_bytes()

    def write_some(file, *args, **kwargs):
        file.write(b"RIFF")
        raise failure
    monkeypatch.setattr(soundfile, "write", write_some)
    with pytest.raises(UserError, match="song.wav: "):
        sing("--seed", "5")
    assert (tmp_path / "song.wav").read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "song.wav", "song.wav.json", "song.wav.safetensors"]


@pytest.fixture(scope="module")
def baby():
    """The embedded model's prompts, the model, and settings."""
    cpu, files = torch.device("cpu"), locate(SampleConfig())
    cfg = resolve(SampleConfig(), files.preset, torch.device("cpu"))
    return Prompts(files, cfg, cpu), Model(files, cpu), cfg


@pytest.mark.parametrize("voice", ["female", pytest.param("male", marks=pytest.mark.slow)])
def test_the_embedded_model_sings_in_time(baby, voice):
    """Each phrase of hello.json is heard when its first word begins; between them are breaths at most."""
    prompts, model, cfg = baby
    latents = model.latents(prompts.make(Song("", HELLO, (voice,), (), 10.0, 0)), 0, cfg)
    wave = master(model.codec.decode(latents)[0, :, :10 * RATE], RATE, 10 * RATE)[0][0]
    power = wave.unfold(0, 240, 120).square().mean(1)        # 10 ms, every 5 ms
    heard = power > 3e-2 * power.quantile(0.95)              # 15 dB below the loudest: a breath is less
    starts, ends = [0.5, 2.6, 5.8], [2.0, 5.2, 9.5]
    for start, end in zip(starts, ends, strict=True):
        window = heard[round((start - 0.2) * 200):round((start + 0.3) * 200)].nonzero()
        assert len(window) and -60 <= 5 * window[0].item() + 5 - 200 <= 120         # an h is weak
        sung = heard[round(start * 200):round(end * 200)].float().mean()
        assert sung > 0.85
    for end, start in zip([0, *ends], [*starts, 10.0], strict=True):
        pause = power[round((end + 0.15) * 200):round((start - 0.1) * 200)]
        assert pause.max() < 3e-2 * power.quantile(0.95)


def test_different_guidance_is_another_song(baby, tmp_path):
    """A guidance setting that is not handed on would change nothing."""
    prompts, model, cfg = baby
    lyrics = write(tmp_path / "l.json", json.loads(HELLO.read_text())[:2])
    prompt = prompts.make(Song("", lyrics, ("male",), (), 2.2, 0))
    change = dataclasses.replace
    plain = model.latents(prompt, 0, change(cfg, steps=4, guidance="none", guidance_weights=None))
    guided = model.latents(prompt, 0, change(cfg, steps=4, guidance_weights=(1.0, 3.0)))
    assert (plain - guided).abs().max() > 0.05


def test_types_and_frames_hardly_change_a_song(baby, tmp_path):
    """docs/solvers.md says by how much: bfloat16 by 1 to 3 %."""
    prompts, model, cfg = baby
    lyrics = write(tmp_path / "l.json", json.loads(HELLO.read_text())[:2])
    exact, half = (Model(prompts.files, model.device, dtype).latents(
        prompts.make(Song("", lyrics, ("tenor",), (), 2.2, 0)), 0, cfg) for dtype in ("float32", "bfloat16"))
    assert 0 < (exact - half).norm() < 0.05 * exact.norm()


@pytest.mark.slow
def test_compiled(tiny_folder, long_words):
    """The same song but for rounding; compiled once, whatever the lengths of songs."""
    cpu, files = torch.device("cpu"), locate(SampleConfig(model=str(tiny_folder)))
    cfg = resolve(SampleConfig(model=str(tiny_folder)), files.preset, cpu)
    prompts, plain, compiled = Prompts(files, cfg, cpu), Model(files, cpu), Model(files, cpu, compile=True)
    for seconds in (51.0, 10.0, 13.0):
        prompt = prompts.make(Song("", long_words if seconds == 51 else HELLO, ("female",), (), seconds, 0))
        with torch._dynamo.config.patch(error_on_recompile=seconds < 51):
            made = compiled.latents(prompt, 0, cfg)
        assert (made - plain.latents(prompt, 0, cfg)).abs().max() < 1e-3


def test_frames(tiny):
    """The whole window is computed, or the song's frames: its length in the model's eyes is the same."""
    _, cfg, prompt = tiny
    song, window = (prompt(HELLO, 10.0, frames=frames).windows[0][1] for frames in ("song", "window"))
    assert window["phonemes"].shape[1] == 4 * 960 > song["phonemes"].shape[1] >= 4 * 469
    assert torch.equal(song["duration_rel"], window["duration_rel"])
    assert torch.equal(window["phonemes"][:, :song["phonemes"].shape[1]], song["phonemes"])


# Songs longer than the window, and parts of songs

@given(st.integers(1, 5000), st.integers(1, 300))
def test_where_windows_begin(frames, length):
    """Frames that no window covers, one beyond the song's end, or neighbours that share too little."""
    starts = window_starts(frames, length)
    assert starts[0] == 0 and (starts == [0] if frames <= length else starts[-1] == frames - length)
    steps, most = [b - a for a, b in zip(starts, starts[1:])], length - length // 8
    assert all(0 < step <= most for step in steps) and max(steps, default=0) - min(steps, default=0) <= 1
    assert not steps or length + (len(steps) - 1) * most < frames        # one less would not do


def test_noise_does_not_depend_on_the_length(tiny_preset):
    """A longer song of the same seed that begins differently; other noise than one window always had."""
    sizes = dataclasses.replace(tiny_preset.model, max_frames=10, mel_dim=3)         # not a multiple of 16
    rows = [noise_of(4, frames, sizes) for frames in (7, 10, 11, 35)]
    assert [x.shape for x in rows] == [(1, 7, 3), (1, 10, 3), (1, 11, 3), (1, 35, 3)]
    assert all(torch.equal(x, rows[-1][:, :x.shape[1]]) for x in rows)
    assert torch.equal(rows[1], torch.randn(1, 10, 3, generator=torch.Generator().manual_seed(4)))
    assert len(rows[-1][0, :, 0].unique()) == 35


@pytest.fixture
def tiny(tiny_folder):
    """The tiny model's parts, and a function that makes the prompt of a part of a song."""
    cpu, files = torch.device("cpu"), locate(SampleConfig(model=str(tiny_folder)))
    cfg = resolve(SampleConfig(model=str(tiny_folder)), files.preset, torch.device("cpu"))

    def prompt(lyrics, duration, **part):
        prompts = Prompts(files, dataclasses.replace(cfg, **part), cpu)
        return prompts.make(Song("", lyrics, ("female",), (), duration, 0))
    return Model(files, cpu), cfg, prompt


def test_who_sings(sing, tmp_path, capsys):
    """A second voice sung over the first one, or lost in the files; a plan that depends on who sings."""
    duet = tmp_path / "duet.lrc"
    duet.write_text("[00:00.50]v1: hello world\n[00:01.00]v2: <00:01.00>singing <00:03.00>\n"
                    "[bg: <00:01.00>own <00:03.00>]\n[00:04.00]v1: <00:04.00>time <00:05.00>\n",
                    encoding="utf-8")
    for voice, words, rest in ((["--voice", "v2"], ["singing"], "hello"),
                               (["--voice", "backing"], ["own"], "singing"),
                               ([], ["hello", "world", "singing", "time"], "own")):
        sing(*voice, lyrics=duet)
        about = json.loads((tmp_path / "song.wav.json").read_text())
        assert [w["word"] for w in about["word"]] == words and rest in about["others"]
        assert about["request"]["voice"] == (voice or [None, None])[1]
        assert "words of other voices, not sung: line" in capsys.readouterr().err
        plan = (tmp_path / "song.plan.lrc").read_text()
        assert all(word in plan for word in ("hello", "v2: ", "own", "time"))


@pytest.fixture
def long_words(tmp_path):
    """Words each second up to 50 s, in a window of 20.48 s."""
    return write(tmp_path / "long.json", [{"word": word, "start": i + 0.25, "end": i + 1.1} for i, word in
                                          enumerate(["hello", "singing", "time", "own", "word"] * 10)
                                          if i % 4 < 3])


def test_a_song_longer_than_the_window(sing, long_words, tmp_path):
    """Refused, cut at the window's end, or made again differently."""
    song = sing("--seed", "2", lyrics=long_words)
    wave = soundfile.read(song)[0]
    assert len(wave) == round((50.1 + 0.5) * RATE) and np.isfinite(wave).all()
    about = json.loads((tmp_path / "song.wav.json").read_text())
    assert len(about["word"]) == len(json.loads(long_words.read_text())) and "part" not in about["request"]
    main(["--config", str(song) + ".json", "--out", str(tmp_path / "again.wav")])
    assert (tmp_path / "again.wav").read_bytes() == song.read_bytes()


def test_windows_are_crops_of_the_song(tiny, long_words):
    """Windows that tell the network of a whole song, or words at times of their own."""
    model, cfg, make = tiny
    prompt = make(long_words, 50.25)
    frames, starts = 2356, [0, 698, 1396]                    # of 960
    assert [first for first, _ in prompt.windows] == starts
    ids, cell_hz = dict(hello=None), 4 * RATE / 512
    for first, batch in prompt.windows:
        assert batch["start_time"].item() == pytest.approx(first / frames)
        assert batch["duration_rel"].item() == 1 and batch["phonemes"].shape == (1, 4 * 960)
        row = batch["phonemes"][0]
        for word in json.loads(long_words.read_text()):
            a, b = (int(word[key] * cell_hz) - 4 * first for key in ("start", "end"))
            inside = row[max(a, 0):max(b, 0)]
            assert (inside != NO_WORD).all()
            if a > 0 and b < len(row):
                assert row[a - 1] == row[b] == NO_WORD
                ids.setdefault(word["word"], tuple(inside[:3].tolist()))
    del ids["hello"]
    assert len(set(ids.values())) == 4
    latents = model.latents(prompt, 0, cfg)
    assert latents.shape == (1, frames, model.preset.model.mel_dim) and latents.isfinite().all()


def test_a_part_is_conditioned_as_the_crop_that_it_is(tiny, tmp_path):
    """A part that is told to be a song, that begins with other sounds, or sings on after its end."""
    words = [word | {key: word[key] + 0.001 for key in ("start", "end")}         # not where a cell begins
             for word in json.loads(HELLO.read_text())]
    lyrics = write(tmp_path / "l.json", words)
    [(_, whole)], [(_, part)] = (tiny[2](lyrics, 10.0, **span).windows for span in (
        {}, {"from_": 3.5, "to": 6.0}))                      # in the middle of two words
    first, last, frames = 164, 282, 469
    assert part["start_time"].item() == pytest.approx(first / frames)
    assert part["duration_rel"].item() == pytest.approx((last - first) / 960)
    row = part["phonemes"][0]
    assert torch.equal(row[:4 * (last - first)], whole["phonemes"][0, 4 * first:4 * last])
    assert (row[4 * (last - first):] == NO_WORD).all() and len(row) > 4 * (last - first)


def test_a_part_has_the_noise_of_its_place(tiny, long_words, monkeypatch):
    """Noise of its own: another tune than the song's. Parts of one window and of several."""
    model, cfg, make = tiny
    monkeypatch.setattr(sample, "sample_windows", lambda network, windows, noise, *rest: noise)
    whole = model.latents(make(long_words, 50.25), 7, cfg)[0]
    for begin, end in ((3.5, 6.0), (12.0, 48.0)):
        part = model.latents(make(long_words, 50.25, from_=begin, to=end), 7, cfg)[0]
        first, frames = int(begin * RATE / 512), int((end - begin) * RATE / 512)
        assert len(part) >= frames and torch.equal(part[:frames], whole[first:first + frames])


def test_a_part_begins_at_its_sample(tiny, monkeypatch):
    """A part begins with the frame that holds its begin: the song's samples before it are cut off."""
    model, cfg, make = tiny
    prompt = make(HELLO, 10.0, from_=3.5, to=6.0)
    monkeypatch.setattr(model.codec, "decode",
                        lambda latents, progress: torch.arange(latents.shape[1] * 512.0)[None, None])
    monkeypatch.setattr(sample, "master", lambda wave, rate, samples: (wave[:, :samples], []))
    wave = model.sing(prompt, 0, cfg, lambda steps, **about: steps).wave[0]
    assert len(wave) == 2.5 * RATE and wave[0] + 164 * 512 == 3.5 * RATE


def test_a_part_of_a_song(sing, tmp_path):
    """Words and times that are those of the whole song; an account that makes the whole, or another part."""
    import mutagen
    song = sing("--from", "3.5", "--to", "6", "--seed", "3", "--page", "true", out="song.mp3")
    assert soundfile.info(song).frames == 2.5 * RATE
    about = json.loads((tmp_path / "song.mp3.json").read_text())
    assert [(w["word"], round(w["start"], 6), round(w["end"], 6)) for w in about["word"]] == [
        ("singing", 0.0, 0.5), ("for", 0.5, 0.8), ("you", 0.8, 1.7), ("every", 2.3, 2.5)]
    settings = about["settings"]
    assert (settings["duration"], settings["from_"], settings["to"]) == (10.0, 3.5, 6.0)
    assert '["singing",0.0,0.5]' in (page := (tmp_path / "song.html").read_text()) and '["hello"' not in page
    sung = mutagen.File(song).tags.getall("SYLT")[0].text
    assert [(text.strip(), ms) for text, ms in sung] == [
        ("singing", 0), ("for", 500), ("you", 800), ("every", 2300)]
    main(["--config", str(song) + ".json", "--out", str(tmp_path / "again.mp3")])
    assert (tmp_path / "again.mp3").read_bytes() == song.read_bytes()
    assert len(soundfile.read(sing("--to", "2"))[0]) == 2 * RATE
    assert len(soundfile.read(sing("--from", "9.5", "--to", "none"))[0]) == RATE / 2         # without words


def test_a_part_of_words_with_inner_times(tiny, tmp_path):
    """Syllables and phones that stick out of a word that was cut."""
    (tmp_path / "l.lrc").write_text("[00:00.50]<00:00.50>hel<00:02.00>lo<00:03.00>\n[00:04.00]<00:04.00>me"
                                    "<00:05.00>")
    prompt = tiny[2](tmp_path / "l.lrc", 6.0, from_=1.5, to=2.5)
    [word] = prompt.lyrics.words
    assert (word.word, word.start, word.end) == ("hello", 0.0, 1.0)
    assert [(p.text, p.start, p.end) for p in word.syllables] == [("hel", 0.0, 0.5), ("lo", 0.5, 1.0)]
    phones = [p.text for p in word.phones]
    assert "".join(phones) in "həloʊ" and (word.phones[0].start, word.phones[-1].end) == (0, 1)
    assert len(prompt.lyrics.lines) == 1 and prompt.duration_s == 1


# Words without times

def test_plain_text_is_planned_and_sung(sing, tmp_path, capsys):
    """Demand number one: a song from words alone; and the plan, edited or not, sings the same way again."""
    song = sing(lyrics=ROOT / "examples" / "song.txt", out="text.wav")
    plan = tmp_path / "text.plan.lrc"
    assert plan.read_text().startswith("[Verse]\n[00:00.50]<00:00.50>The ")
    assert "in 17.50 s" in capsys.readouterr().out
    about = json.loads((tmp_path / "text.wav.json").read_text())
    assert about["word"][0]["word"] == "The" and about["segment"][0] == {"segment": "[Verse]"}
    again = sing(lyrics=plan, out="again.wav")
    samples = [soundfile.read(path)[0] for path in (song, again)]
    assert np.array_equal(*samples)
    assert not (tmp_path / "again.plan.lrc").exists()        # nothing was planned
    assert json.loads((tmp_path / "again.wav.json").read_text())["title"] == "text"
    odd = [soundfile.read(sing("--bpm", "97", lyrics=ROOT / "examples" / "song.txt", out="odd.wav"))[0]]
    odd.append(soundfile.read(sing(lyrics=tmp_path / "odd.plan.lrc", out="same.wav"))[0])
    assert np.array_equal(*odd)                              # beats of 97 are no hundredths of seconds
    sing("--seed", "2", lyrics=ROOT / "examples" / "song.txt", out="text.wav")
    plan.write_text(plan.read_text().replace("<00:00.80>", "<00:00.90>"))
    with pytest.raises(UserError, match="text.plan.lrc: was changed; sing it with --lyrics"):
        sing("--seed", "3", lyrics=ROOT / "examples" / "song.txt", out="text.wav")
    edited = soundfile.read(sing(lyrics=plan, out="edited.wav"))[0]
    assert not np.array_equal(edited, samples[0])
    faster = sing("--bpm", "140", lyrics=ROOT / "examples" / "song.txt")
    assert len(soundfile.read(faster)[0]) < len(samples[0])
    partly = tmp_path / "partly.plan.lrc"
    partly.write_text("[00:01.00]hello there\n")
    with pytest.raises(UserError, match="its plan would overwrite the lyrics"):
        sing(lyrics=partly, out="partly.wav")


def test_duration_fits_the_plan(sing):
    song = sing("--duration", "14", lyrics=ROOT / "examples" / "song.txt")
    assert len(soundfile.read(song)[0]) == 14 * RATE
    with pytest.raises(UserError, match="song.txt: .*8 syllables a second, the fastest"):
        sing("--duration", "3", lyrics=ROOT / "examples" / "song.txt")


def test_lint_before_singing(sing, tmp_path, capsys):
    """Overlaps are errors, with how many more there are; fast words are warnings."""
    words = [{"word": "la", "start": i / 9, "end": i / 9 + 0.1} for i in range(20)]
    sing(lyrics=write(tmp_path / "fast.json", words))
    assert 'fast.json: word 1 "la": 9 syllables' in capsys.readouterr().err
    for word in words:
        word["end"] += 0.1
    with pytest.raises(UserError, match='word 2 "la": start 0.11 s is before .*; and 18 more: python'):
        sing(lyrics=write(tmp_path / "fast.json", words))


def test_pronunciations(sing, tmp_path):
    """Inline and by a lexicon; another pronunciation is another song, made again in a manifest's folder."""
    def sung(text, *args):
        (tmp_path / "l.lrc").write_text(text)
        song = sing(*args, lyrics=tmp_path / "l.lrc")
        about = json.loads((tmp_path / "song.wav.json").read_text())
        return about["word"][0]["phoneme"], soundfile.read(song)[0]
    (tmp_path / "words.txt").write_text("read R IY1 D\n")
    plain, _ = sung("[00:00.50]<00:00.50>read <00:01.00>me <00:01.50>")
    inline, first = sung("[00:00.50]<00:00.50>read{R EH1 D} <00:01.00>me <00:01.50>")
    mine, second = sung("[00:00.50]<00:00.50>read <00:01.00>me <00:01.50>", "--lexicon",
                        str(tmp_path / "words.txt"))
    assert (inline, mine) == ("ɹɛd", "ɹid") and plain in ("ɹɛd", "ɹid")
    assert not np.array_equal(first, second)


def test_syllables_are_sung_at_their_own_times(baby, tmp_path):
    """Stamps inside of a word that are read, written and then not sung."""
    prompts = baby[0]
    (tmp_path / "l.lrc").write_text("[00:00.50]<00:00.50>hel<00:02.00>lo<00:03.00>")
    prompt = prompts.make(Song("", tmp_path / "l.lrc", ("female",), (), 3.5, 0))
    [word] = prompt.lyrics.words
    assert word.word == "hello" and [p.text for p in word.phones] == list("həloʊ")
    ids, cell_hz = prompts.table.ids, 4 * prompts.frame_hz
    row = prompt.windows[0][1]["phonemes"][0].tolist()
    assert row.index(ids["l"]) == int(2.0 * cell_hz) and row[int(2.0 * cell_hz) - 1] == ids["ə"]


def test_page_and_picture(sing, tmp_path):
    """Every song gets its page, with the song in it; --page false leaves it out."""
    sing("--page", "true", out="song.mp3")
    page = (tmp_path / "song.html").read_text()
    assert "data:audio/mpeg;base64," in page and '["hello",0.5,1.1]' in page
    assert (tmp_path / "song.png").read_bytes().startswith(b"\x89PNG")
    sing(out="bare.mp3")
    assert not (tmp_path / "bare.html").exists()


def test_tags(sing, tmp_path):
    """Seed, model and that it is machine-made, in the file that people pass on."""
    import mutagen
    tags = mutagen.File(sing("--seed", "5", out="song.flac")).tags
    assert tags["seed"] == ["5"] and tags["ai_generated"] == ["true"] and tags["title"] == ["hello"]
    assert "singing for you" in tags["lyrics"][0]


# Mistakes are one line

@pytest.fixture
def told(tiny_folder, tmp_path, capfd):
    """Exit code of sample.py, run as a command is, and what it says that is no progress."""
    def call(*args):
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(lambda: main([str(x) for x in ["--model", tiny_folder, *args]]))
        said = capfd.readouterr().err.replace("\r", "\n").splitlines()
        said = [line for line in said if line and not line.startswith(("sampling", "decoding"))]
        return caught.value.code, said
    return call


@pytest.mark.parametrize("args, code, text", [
    (["--lyrics", "x" * 256], 1, f"{'x' * 256}: File name too long"),
    (["--manifest", "x" * 256, "--out-dir", "o"], 2, f"{'x' * 256}: File name too long"),
    (["--steps", 10 ** 12], 2, "--steps 1000000000000: expected 2 to 1000000"),
    (["--steps", 10 ** 30], 2, f"--steps {10 ** 30}: expected 2 to 1000000"),
    (["--batch-infer-num", 10 ** 19], 2, f"--batch-infer-num {10 ** 19}: expected 1 to 100000"),
    (["--best-of", 10 ** 9], 2, "--best-of 1000000000: expected 1 to 100000"),
    (["--seed", 2 ** 63 - 1, "--batch-infer-num", 3], 2,
     f"--seed {2 ** 63 - 1}: expected 0 to {2 ** 63 - 3}, for 3 songs with their own"),
    (["--guidance", "single"], 2, "--guidance single takes 1 finite weights, not (1.0, 2.0); these are the "
                                  "model's: give --guidance-weights"),
    (["--guidance-weights", "1,nan"], 2, "--guidance dual takes 2 finite weights, not (1.0, nan)"),
    (["--style", "mael:0.5"], 2, "--style mael: no such style or file; did you mean male? expected ")])
def test_mistakes_of_one_line(told, tmp_path, monkeypatch, args, code, text):
    """A traceback, hours of work, or advice that has nothing to do with what was given."""
    monkeypatch.chdir(tmp_path)
    got, [line] = told(*args)
    assert got == code and line.startswith(f"error: {text}") and (line == f"error: {text}" or text[-1] == " ")


@pytest.mark.parametrize("settings, text", [
    ({"lyrics": "a\0b"}, "lyrics a\\x00b: holds a NUL"),
    ({"style": ["x\ud800"]}, "style ['x\\ud800']: holds"),
    ({"out": "\ud83d.wav"}, "out \\ud83d.wav: holds a NUL, or half of a surrogate pair")])
def test_texts_that_no_file_can_have(told, tmp_path, settings, text):
    got, [line] = told("--config", write(tmp_path / "set.json", settings))
    assert got == 2 and f"set.json: {text}" in line


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n9 GiB"),
                                   RuntimeError("CUDA error: out of memory\nCompile with"), MemoryError()])
def test_memory_that_ends(told, tmp_path, monkeypatch, error):
    """One song ends in one line; of a manifest, each that does not fit, and the others are sung."""
    sampled, left = sample.sample_windows, [error, error]

    def sample_some(*args):
        if left:
            raise left.pop()
        return sampled(*args)
    monkeypatch.setattr(sample, "sample_windows", sample_some)
    code, [line] = told("--out", tmp_path / "song.wav")
    assert code == 1 and line.startswith("error: no memory is left: ")
    assert not (tmp_path / "song.wav").exists()
    songs = [{"id": name, "lrc_path": str(HELLO), "duration": 10} for name in ("large", "small")]
    code, [line] = told("--manifest", write(tmp_path / "m.json", songs), "--out-dir", tmp_path / "o")
    assert code == 1 and line.startswith('error: song "large": ') and type(error).__name__ in line
    assert (tmp_path / "o" / "generated" / "small.mp3").exists()


@pytest.mark.parametrize("size, file", [(20_000, "cfm_latents/a.pt"), (60_000, "generated_orig/a.wav")])
def test_a_disk_that_fills(told, tmp_path, size, file):
    """Tracebacks from inside of libsndfile, torch's "unexpected pos", or half of a song's files."""
    manifest = write(tmp_path / "m.json", [{"id": "a", "lrc_path": str(HELLO), "duration": 10}])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        code, [line] = told("--manifest", manifest, "--out-dir", tmp_path / "o", "--format", "wav")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1 and line.startswith(f'error: song "a": {tmp_path}/o/{file}') and "File too large" in line
    assert not list(tmp_path.glob("o/*/*"))


def test_a_reader_that_has_gone_is_no_fault_of_a_song():
    """`sample.py --manifest ... | head` notes a finished song as failed, and sings on for nobody."""
    with pytest.raises(BrokenPipeError), reported("a"):
        raise BrokenPipeError
