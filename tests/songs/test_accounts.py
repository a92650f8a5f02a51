"""A song's account sings that song again, exactly; no file of others is overwritten."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from config import UserError
from sample import main
from support.files import hold, replacing

VERSES = ["Hello, the night is cold", "and clear; we sing", "of morning, of sun", "", "hold on, hold me",
          "[Chorus]", "La la lo~ve, go home", "Hello, the night is cold", "", "[Verse 2]", "far away"]


@pytest.fixture
def sing(tiny_folder, tmp_path):
    """sample.py's main on the tiny model, in a folder of its own; returns the path of the song."""
    def call(*args, out="song.wav", model=tiny_folder):
        main([*(["--model", str(model)] if model else []), "--out", str(tmp_path / out), *map(str, args)])
        return tmp_path / out
    return call


def again(sing, account, *args, out="again.wav"):
    return sing("--config", account, "--page", "false", *args, out=out, model=None)


@pytest.mark.parametrize("bpm", [83.7, *(pytest.param(bpm, marks=pytest.mark.slow)
                                         for bpm in (60, 74, 100, 121, 150.5, 167, 200))])
def test_an_account_is_enough(sing, tmp_path, bpm):
    """Words planned anew, a style file that is gone, other threads: another song of the same name."""
    lyrics, style = tmp_path / "My song.txt", tmp_path / "style.npy"
    lyrics.write_text("\n".join(line for line in VERSES if random.Random(bpm).random() < 0.9 or "La" in line))
    np.save(style, np.random.default_rng(int(bpm)).standard_normal(16).astype(np.float32))
    song = sing("--lyrics", lyrics, "--style", style, "--bpm", bpm, "--seed", 3, "--page", "false")
    (tmp_path / "moved").mkdir()
    account = shutil.move(f"{song}.json", tmp_path / "moved" / "account.json")
    lyrics.unlink()
    style.unlink()
    torch.set_num_threads(2)
    made = again(sing, account)
    assert torch.get_num_threads() == 1 and made.read_bytes() == song.read_bytes()
    about, before = (json.loads(path.read_text()) for path in (tmp_path / "again.wav.json", account))
    assert about["request"] == before["request"] and about["title"] == before["title"] == "My song"
    assert again(sing, f"{made}.json", out="third.wav").read_bytes() == song.read_bytes()


@pytest.mark.slow
def test_an_account_with_other_settings(sing, tmp_path):
    """Its words at their times, whatever else is changed; lyrics and styles that are given count more."""
    song = sing("--lyrics", ROOT / "examples" / "song.txt", "--page", "false")
    account = f"{song}.json"
    words = json.loads((tmp_path / "song.wav.json").read_text())["word"]
    for flags in (["--seed", "5"], ["--style", "male"], ["--steps", "4"]):
        made = again(sing, account, *flags, "--overwrite", "true")
        about = json.loads((tmp_path / "again.wav.json").read_text())
        assert made.read_bytes() != song.read_bytes() and about["word"] == words
        assert about["request"] != json.loads((tmp_path / "song.wav.json").read_text())["request"]
    again(sing, account, "--lyrics", ROOT / "examples" / "hello.json", "--duration", "10")
    assert json.loads((tmp_path / "again.wav.json").read_text())["word"][1]["word"] == "world"


def test_a_part(sing, tmp_path):
    lyrics = shutil.copy(ROOT / "examples" / "song.txt", tmp_path / "l.txt")
    song = sing("--lyrics", lyrics, "--from", "2.5", "--to", "5.1", "--page", "false", out="part.mp3")
    os.unlink(lyrics)
    assert again(sing, f"{song}.json", out="again.mp3").read_bytes() == song.read_bytes()
    whole = again(sing, f"{song}.json", "--from", "0", out="more.wav")
    assert len(json.loads((tmp_path / "more.wav.json").read_text())["word"]) > len(
        json.loads((tmp_path / "part.mp3.json").read_text())["word"]) and whole.exists()


def test_another_model_is_named(sing, tiny_folder, tmp_path):
    """Its checksums are compared; --force sings the words with today's files."""
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    song = sing("--page", "false", model=model)
    weights = load_file(model / "model.safetensors")
    save_file({name: 1.5 * tensor for name, tensor in weights.items()}, model / "model.safetensors")
    with pytest.raises(UserError, match="song.wav.json: was sung with other weights than this model has"):
        again(sing, f"{song}.json")
    assert not (tmp_path / "again.wav").exists()
    assert again(sing, f"{song}.json", "--force", "true").read_bytes() != song.read_bytes()


def test_a_negative_style_of_its_own(sing, tmp_path):
    """A vector in a file that is gone, or has changed."""
    np.save(tmp_path / "n.npy", np.random.default_rng(0).standard_normal(16).astype(np.float32))
    song = sing("--negative-style", tmp_path / "n.npy", "--page", "false")
    assert song.read_bytes() != sing("--page", "false", out="zeros.wav").read_bytes()
    (tmp_path / "n.npy").unlink()
    made = again(sing, f"{song}.json")
    assert made.read_bytes() == song.read_bytes()
    assert again(sing, f"{made}.json", out="third.wav").read_bytes() == song.read_bytes()
    abouts = [json.loads((tmp_path / f"{name}.wav.json").read_text())["request"]
              for name in ("song", "again", "third")]
    assert abouts[0] == abouts[1] == abouts[2]


def test_an_account_that_was_edited(sing, tmp_path):
    """It is another song's: a manifest must not take that for its own. Nor may it overwrite."""
    song = sing("--page", "false")
    about = json.loads((tmp_path / "song.wav.json").read_text())
    about["word"][1]["word"] = "sun"
    about["word"][1]["phoneme"] = "sʌn"
    about["settings"] |= {"overwrite": True, "best_of": 3, "scorer": "os:system"}
    (tmp_path / "e.json").write_text(json.dumps(about))
    made = again(sing, tmp_path / "e.json")
    request = json.loads((tmp_path / "again.wav.json").read_text())["request"]
    assert made.read_bytes() != song.read_bytes() and request != about["request"]
    (tmp_path / "foreign.wav").write_text("precious")
    with pytest.raises(UserError, match="would overwrite"):
        again(sing, tmp_path / "e.json", out="foreign.wav")


@pytest.mark.parametrize("change", [{"settings": []}, {"request": {}}, {"request": []}, {"repeats": "abc"},
                                    {"repeats": [[1, 2]]}, {"repeats": [[1.5, 0, 3]]}, {"style": None}])
def test_odd_accounts(sing, tmp_path, change):
    """One line, not a traceback."""
    about = json.loads((sing("--page", "false").parent / "song.wav.json").read_text())
    (tmp_path / "odd.json").write_text(json.dumps(about | change))
    if change == {"request": {}} or change == {"request": []}:
        return again(sing, tmp_path / "odd.json")            # nothing to compare with, and all to sing
    with pytest.raises(UserError):
        again(sing, tmp_path / "odd.json")


def test_equal_songs_are_equal_files(sing):
    """Also an OGG, whose encoder draws a number for the stream."""
    a, b = (sing("--page", "false", "--seed", 7, out=f"{name}.ogg").read_bytes() for name in "ab")
    assert a == b


# What may be overwritten

@pytest.mark.parametrize("name", ["song.wav", "song.html", "song.png", "song.wav.json"])
def test_foreign_files_stay(sing, tmp_path, name):
    """A file that no account there names; --overwrite replaces it."""
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"would overwrite .*{name}, which is not of this song; --over"):
        sing()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"
    sing("--overwrite", "true")
    sing()                                                   # it is ours now
    assert b"precious" not in (tmp_path / name).read_bytes()


@pytest.mark.slow
def test_songs_of_one_name(sing, tmp_path):
    """b.flac does not take the page of b.mp3, nor a page that appeared beside a song without one."""
    sing(out="b.mp3")
    page = (tmp_path / "b.html").read_bytes()
    with pytest.raises(UserError, match="would overwrite .*b.html, which is not of this song"):
        sing(out="b.flac")
    assert (tmp_path / "b.html").read_bytes() == page
    sing("--page", "false", out="b.flac")
    sing("--page", "false", out="c.wav")
    (tmp_path / "c.html").write_text("mine")
    sing("--page", "false", "--seed", "2", out="c.wav")
    with pytest.raises(UserError, match="c.html"):
        sing(out="c.wav")
    sing("--page", "false", "--seed", "3", out="b.mp3")      # its page would show another song
    assert not (tmp_path / "b.html").exists() and not (tmp_path / "b.png").exists()
    sing(out="b.mp3")


def test_inputs_are_not_overwritten(sing, tmp_path):
    song = sing("--page", "false")
    with pytest.raises(UserError, match="would overwrite .*song.wav.json; --overwrite true allows it"):
        sing("--config", f"{song}.json", model=None)
    before = song.read_bytes()
    sing("--config", f"{song}.json", "--overwrite", "true", model=None)
    assert song.read_bytes() == before


def test_a_song_that_was_cut_short_is_still_ours(sing, tmp_path, monkeypatch):
    """Killed between two renames: what is there may be replaced, and is not taken for finished."""
    sing()
    account = tmp_path / "song.wav.json"
    code = ("import sys, os, sample\nfrom pathlib import Path\nreal, done = Path.replace, []\n"
            "def replace(self, target):\n"
            "    done.append(target)\n"
            "    os.kill(os.getpid(), 9) if len(done) == int(sys.argv[1]) else real(self, target)\n"
            "Path.replace = replace\nsample.main(sys.argv[2:])\n")
    model = json.loads(account.read_text())["settings"]["model"]
    for renames in (5, 7):                                   # tags, the picture and an account came before
        ended = subprocess.run([sys.executable, "-c", code, str(renames), "--model", model, "--out",
                                str(tmp_path / "song.wav"), "--seed", "8"], cwd=ROOT, capture_output=True)
        assert ended.returncode == -signal.SIGKILL
        assert json.loads(account.read_text())["unfinished"]
    sing("--seed", "8")
    assert "unfinished" not in json.loads(account.read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "song.html", "song.png", "song.wav", "song.wav.json", "song.wav.safetensors"]     # no temporary files


# Temporary files and locks

def test_temporary_files_of_the_dead(tmp_path):
    """They are removed; those of the living stay, and no link is followed."""
    left, victim = tmp_path / ".song.wav.abcd1234.tmp", tmp_path / "victim"
    victim.write_text("precious")
    left.symlink_to(victim)
    (tmp_path / ".song.wav.abcd1235.tmp").write_text("left")
    os.umask(0o027)
    with replacing(tmp_path / "song.wav") as first:
        with replacing(tmp_path / "song.wav") as second:
            assert first != second and first.exists()
            second.write_text("second")
        first.write_text("first")
    os.umask(0o022)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["song.wav", "victim"]
    assert (tmp_path / "song.wav").read_text() == "first" and victim.read_text() == "precious"
    assert (tmp_path / "song.wav").stat().st_mode & 0o777 == 0o640


HOLDER = """import sys, time
from pathlib import Path
from support.files import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)"""


def test_one_run_in_a_folder(tmp_path):
    """The second says who holds it; the lock ends with the process that has it, killed or not."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"another run is at work here: process {first.pid} on .*, since"):
            hold(tmp_path, patience_s=0.2)
        first.kill()
    hold(tmp_path)
    hold(tmp_path)                                           # a run may ask twice
