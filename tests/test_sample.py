"""sample.py as its users meet it: the command, its errors, and the embedded model's timing."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT

import sample
from config import SampleConfig, UserError
from sample import Model, Prompts, main, resolve
from songs.manifest import Song
from support.audio import FORMATS, master
from support.hub import locate

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
        "song.flac", "song.flac.json", "song.html", "song.png"]


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
    (["--steps", "1"], "--steps 1: expected 2 or more"),
    (["--steps", "many"], "--steps many: expected whole number"),
    (["--duration", "5"], "is past the duration 5.00 s"),
    (["--duration", "nan"], "a song of nan s"),
    (["--duration", "-3"], "a song of -3.00 s"),
    (["--duration", "100"], "0.01 to 20.48 s"),
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


def test_the_longest_song(sing, tmp_path):
    """A last word up to the model's end needs no --duration."""
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


@pytest.mark.parametrize("guidance", [["single", "--guidance-weights", "0.5"], ["none"], ["dual_fix"]])
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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["song.wav", "song.wav.json"]


@pytest.fixture(scope="module")
def baby():
    """The embedded model's prompts, the model, and settings."""
    cpu, files = torch.device("cpu"), locate(SampleConfig())
    cfg = resolve(SampleConfig(), files.preset)
    return Prompts(files, cfg, cpu), Model(files, cpu), cfg


@pytest.mark.parametrize("voice", ["female", pytest.param("male", marks=pytest.mark.slow)])
def test_the_embedded_model_sings_in_time(baby, voice):
    """Each phrase of hello.json is heard within 60 ms of its first word's start; between them is silence."""
    prompts, model, cfg = baby
    latents = model.latents(prompts.make(Song("", HELLO, (voice,), (), 10.0, 0)), 0, cfg)
    wave = master(model.codec.decode(latents)[0, :, :10 * RATE], RATE, 10 * RATE)[0]
    power = wave.unfold(0, 240, 120).square().mean(1)        # 10 ms, every 5 ms
    heard = power > 1e-3 * power.quantile(0.95)              # 30 dB below the loudest
    starts, ends = [0.5, 2.6, 5.8], [2.0, 5.2, 9.5]
    for start, end in zip(starts, ends, strict=True):
        window = heard[round((start - 0.2) * 200):round((start + 0.3) * 200)].nonzero()
        assert len(window) and abs(5 * window[0].item() + 5 - 200) <= 60
        sung = heard[round(start * 200):round(end * 200)].float().mean()
        assert sung > 0.85
    for end, start in zip([0, *ends], [*starts, 10.0], strict=True):
        pause = power[round((end + 0.15) * 200):round((start - 0.1) * 200)]
        assert pause.max() < 1e-3 * power.quantile(0.95)


def test_different_guidance_is_another_song(baby, tmp_path):
    """A guidance setting that is not handed on would change nothing."""
    prompts, model, cfg = baby
    lyrics = write(tmp_path / "l.json", json.loads(HELLO.read_text())[:2])
    prompt = prompts.make(Song("", lyrics, ("male",), (), 2.2, 0))
    change = dataclasses.replace
    plain = model.latents(prompt, 0, change(cfg, steps=4, guidance="none", guidance_weights=None))
    guided = model.latents(prompt, 0, change(cfg, steps=4, guidance_weights=(1.0, 3.0)))
    assert (plain - guided).abs().max() > 0.05


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
    with pytest.raises(UserError, match="song.txt: .*7 syllables a second, the fastest"):
        sing("--duration", "3", lyrics=ROOT / "examples" / "song.txt")


def test_lint_before_singing(sing, tmp_path, capsys):
    """Overlaps are errors, with how many more there are; fast words are warnings."""
    words = [{"word": "la", "start": i / 9, "end": i / 9 + 0.1} for i in range(20)]
    sing(lyrics=write(tmp_path / "fast.json", words))
    assert 'fast.json: word 1 "la": 8 syllables' in capsys.readouterr().err
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
    row = prompt.batch["phonemes"][0].tolist()
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
