"""Songs to judge the embedded model by: words that it has not seen, timed by a rule that it does not know.

    python -m baby.judge --out runs/judge
    python sample.py --manifest runs/judge/manifest.json --out-dir runs/judge/model
    python evaluate.py runs/judge/model --against runs/judge/truth --scorer baby.judge:sphinx

`main` writes a manifest of baby/held_out.txt, three lines a song, voices alternating, and the truth: WORLD
singing the same words at the same times, through the same Griffin-Lim. Read it, then `ground_truth`. The
scorers `sphinx`, for times, and `sphinx_phones`, for sounds, are the second opinion of a recogniser that
knows neither this recipe nor singing: it gets more than half of the sounds wrong.
"""

import functools
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchaudio.functional as AF
from torch import Tensor

from baby import songs
from baby.prompts import timed, write_prompt
from config import Settings
from lyrics.pronounce import ARPABET, reader
from phonemes import VOWELS
from support.audio import mono, read_wave, write_wave
from support.cli import parse, run
from support.files import make_folder, read_text, write_json, write_text
from vae import MelCodec

LINES = 3                                        # of a song
PAUSE_S = 0.3                                    # a longer one ends a phrase
AROUND_S = 0.25                                  # pocketsphinx hears this much before and after a phrase
WITHIN_S = 0.12
HEARING_HZ = 16000                               # pocketsphinx's sample rate


@dataclass(frozen=True)
class JudgeSettings(Settings):
    out: Path = Path("runs/judge")              # folder
    phonemizer: Path = Path("weights/baby/phonemizer.pt")   # a DeepPhonemizer checkpoint


def phrases(words: list[dict]) -> list[list[dict]]:
    """Split words at pauses of more than PAUSE_S."""
    found = []
    for word in words:
        if not found or word["start"] - found[-1][-1]["end"] > PAUSE_S:
            found.append([])
        found[-1].append(word)
    return found


def ground_truth(words: list[dict], voice: str, seconds: float, rng: np.random.Generator) -> Tensor:
    """WORLD's singing (N,) of the same words at the same times, on random notes."""
    arpabet = {ipa: name + "1" * (ipa[0] in VOWELS and name != "AH0") for name, ipa in ARPABET.items()}
    phone, plan = "|".join([*sorted(arpabet, key=len, reverse=True), "."]), []
    for phrase in phrases(words):
        plan.append([])
        for word in phrase:
            phones = [arpabet[ipa] for ipa in re.findall(phone, word["phoneme"])]
            notes = [int(rng.choice(songs.SCALE[voice])) for name in phones if name[-1].isdigit()]
            plan[-1].append(songs.Sung(word["word"], phones, word["start"], word["end"], notes))
    return torch.from_numpy(songs.synthesize(plan, voice, seconds)).float()


@functools.cache
def decoder(task: str):
    """pocketsphinx with its own acoustic model, to hear words or phones."""
    from pocketsphinx import Decoder, get_model_path
    settings = {"words": {"beam": 1e-80, "wbeam": 1e-60, "pbeam": 1e-80},     # wide: sung vowels are long
                "phones": {"lw": 2.0, "beam": 1e-20, "pbeam": 1e-20,
                           "allphone": f"{get_model_path()}/en-us/en-us-phone.lm.bin"}}
    return Decoder(loglevel="FATAL", samprate=HEARING_HZ, **settings[task])


def hear(task: str, wave: Tensor) -> list:
    """The segments that pocketsphinx hears in wave (N,) at HEARING_HZ, with noise: it divides by silence."""
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(0))
    wave = 0.3 * wave / wave.abs().max().clamp_min(1e-6) + 1e-3 * noise
    decoder(task).start_utt()
    decoder(task).process_raw((wave * 32767).short().numpy().tobytes(), full_utt=True)
    decoder(task).end_utt()
    return list(decoder(task).seg()) if decoder(task).hyp() else []


def unstressed(word: str) -> list[str]:
    """CMUdict's phones of a word without their stress."""
    return [phone.rstrip("012") for phone in songs.pronunciations()[word.lower()][0]]


def sphinx(path: Path, record: dict) -> float:
    """A scorer for evaluate.py: the share of words that begin within 120 ms, as pocketsphinx aligns them."""
    wave, right = mono(*read_wave(path), HEARING_HZ), 0
    for phrase in phrases(record["word"]):
        words = [word["word"].lower() for word in phrase]
        for word in words:
            if decoder("words").lookup_word(word) is None:
                decoder("words").add_word(word, " ".join(unstressed(word)), True)
        decoder("words").set_align_text(" ".join(words))
        start = max(0.0, phrase[0]["start"] - AROUND_S)
        piece = wave[round(start * HEARING_HZ):round((phrase[-1]["end"] + AROUND_S) * HEARING_HZ)]
        found = [start + s.start_frame / 100 for s in hear("words", piece) if s.word[0] not in "<[(+"]
        if len(found) == len(words):
            right += sum(abs(at - word["start"]) <= WITHIN_S for at, word in zip(found, phrase))
    return right / max(1, len(record["word"]))


def sphinx_phones(path: Path, record: dict) -> float:
    """A scorer for evaluate.py: 1 less the error rate of phones; repeated ones count once."""
    said = [s.word for s in hear("phones", mono(*read_wave(path), HEARING_HZ))
            if s.word.isalpha() and s.word != "SIL"]
    asked = [phone for word in record["word"] for phone in unstressed(word["word"])]
    asked, said = ([phone for phone, _ in itertools.groupby(phones)] for phones in (asked, said))
    return 1 - AF.edit_distance(asked, said) / max(1, len(asked))


def main(cfg: JudgeSettings) -> None:
    pronounce, codec, manifest = reader(cfg.phonemizer), MelCodec(songs.PRESET.codec), []
    lines = read_text(Path(__file__).with_name("held_out.txt")).splitlines()
    make_folder(cfg.out / "truth")
    for k in range(0, len(lines), LINES):
        rng, voice = np.random.default_rng(k), songs.VOICES[k // LINES % 2]
        name, words = f"{k // LINES:02d}-{voice}", timed(lines[k:k + LINES], rng, pronounce)
        manifest.append(write_prompt(cfg.out, name, words, voice) | {"seed": k})
        seconds, path = manifest[-1]["duration"], cfg.out / "truth" / f"{name}.wav"
        truth = ground_truth(words, voice, seconds, rng)                                  # (N,)
        wave = codec.decode(codec.encode(truth[None, None]))[0]                           # (1, N)
        wave = 0.5 * wave[:, :round(seconds * songs.RATE)] / wave.abs().max()
        write_wave(path, wave, songs.RATE, path)
        account = {"word": words, "settings": {"duration": seconds}}
        write_text(Path(f"{path}.json"), json.dumps(account))
    write_json(cfg.out / "manifest.json", manifest)


if __name__ == "__main__":
    run(lambda: main(parse(JudgeSettings, __doc__)))
