"""Songs to judge the embedded model by: words that it has not seen, timed without a beat, for every singer.

    python -m baby.judge --out runs/judge
    python sample.py --manifest runs/judge/manifest.json --out-dir runs/judge/model
    python evaluate.py runs/judge/model --against runs/judge/truth --scorer baby.judge:sphinx
    python -m baby.judge --check 24

`main` writes a manifest of baby/held_out.txt, three lines a song, the eight styles in turn, and the truth:
the neural voice singing the same words at the same times on a tune of its own, in truth/ as it is, in coded/
through the model's codec. Read it, then `ground_truth`. The scorers `sphinx`, for times, and `sphinx_phones`,
for sounds, are the second opinion of a recogniser that knows neither this recipe nor singing: it gets more
than half of the sounds wrong. The scorer `singer` says whether the singer is heard who was asked for; read
`profile`. `check` says how both recognisers fare with sounds that are spoilt in known ways. Axes: N samples,
n frames and M bands of a spectrogram, F numbers of a profile.
"""

import functools
import itertools
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchaudio.functional as AF
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from baby import songs
from baby.ear import elsewhere, hiss, room
from baby.prompts import timed, write_prompt
from baby.voice import Part
from config import CODEC, PHONEMIZER, Settings, UserError, within
from evaluate import METRICS, measures, ratio
from lyrics.pronounce import ARPABET, ipa, reader
from phonemes import VOWELS
from songs.listeners import EAR_HZ, level, small_ear
from support.audio import mono, read_wave, write_wave
from support.cli import parse, run, weighted
from support.files import find, make_folder, read_text, reading, replacing, write_json, write_text
from support.hub import sha256
from sung import LogMel, SungCodec, whole_frames
from vae import make_codec

LINES = 3                                        # of a song
PAUSE_S = 0.3                                    # a longer one ends a phrase
AROUND_S = 0.25                                  # pocketsphinx hears this much before and after a phrase
WITHIN_S = 0.12
HEARING_HZ = 16000                               # pocketsphinx's sample rate
ASSETS = Path("weights/baby")
FIRST_SINGER, SINGER_SONGS, HELD_OUT = 800_000, 280, 0.2    # songs that the classifier of singers learns from
LONGEST_S = 16.0                                 # of them
FIRST_CHECK = 810_000                            # number of the first song of `check`
CEPSTRA = 20                                     # that describe the envelope, not the pitch


@dataclass(frozen=True)
class JudgeSettings(Settings):
    out: Path = Path("runs/judge")              # folder
    assets: Path = ASSETS                       # folder of the model, for its phonemizer and its codec
    check: int | None = within(None, 1)         # instead, spoil so many other true songs, and listen to them
    ear: Path = ASSETS / "ear.safetensors"      # who listens to these


def phrases(words: list[dict]) -> list[list[dict]]:
    """Split words at pauses of more than PAUSE_S."""
    found = []
    for word in words:
        if not found or word["start"] - found[-1][-1]["end"] > PAUSE_S:
            found.append([])
        found[-1].append(word)
    return found


def phones_of(word: dict) -> list[str]:
    """A word's ARPAbet phones: CMUdict's, if they say the same, else with a stress on each full vowel."""
    for phones in songs.pronunciations().get(word["word"].lower(), []):
        if ipa(" ".join(phones)) == word["phoneme"]:
            return phones
    arpabet = {sign: name + "1" * (sign[0] in VOWELS and name != "AH0") for name, sign in ARPABET.items()}
    found = re.findall("|".join([*sorted(arpabet, key=len, reverse=True), "."]), word["phoneme"])
    return [arpabet[sign] for sign in found]


def ground_truth(words: list[dict], style: str, rng: np.random.Generator) -> list[Part]:
    """The neural voice's singing of the same words at the same times, on a tune of its own."""
    singer, plan = songs.SINGERS[style], []
    tune = songs.Tune(rng, singer.low)
    for phrase in phrases(words):
        phones = [phones_of(word) for word in phrase]
        count = sum(phone[-1].isdigit() for word in phones for phone in word)
        notes = iter(tune.phrase([1.0] * count, phrase[-1] is words[-1]))
        plan.append([songs.Sung(word["word"], own, word["start"], word["end"],
                                [[next(notes)] for phone in own if phone[-1].isdigit()])
                     for word, own in zip(phrase, phones)])
    return songs.synthesize(plan, singer, rng)


def sounds(parts: list[Part], seconds: float, codec: SungCodec,
           rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A song (N,) as the voice sings it, and as the codec returns it."""
    true = torch.from_numpy(songs.wave_of(parts, seconds, rng))
    latents = codec.pack(**songs.tracks_of(parts, seconds, codec))
    return true, codec.decode(latents[None])[0, 0, :len(true)]


# pocketsphinx

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


def misheard_phones(wave: Tensor, record: dict) -> tuple[int, int]:
    """Errors of what pocketsphinx hears in wave (N,) at HEARING_HZ, and how many phones were asked for.

    Repeated phones count once.
    """
    said = [s.word for s in hear("phones", wave) if s.word.isalpha() and s.word != "SIL"]
    asked = [phone for word in record["word"] for phone in unstressed(word["word"])]
    asked, said = ([phone for phone, _ in itertools.groupby(phones)] for phones in (asked, said))
    return AF.edit_distance(asked, said), len(asked)


def sphinx_phones(path: Path, record: dict) -> float:
    """A scorer for evaluate.py: 1 less the error rate of phones."""
    return 1 - ratio([misheard_phones(mono(*read_wave(path), HEARING_HZ), record)])


# Who sings

def profile(wave: Tensor) -> Tensor:
    """What tells one singer from another in a song (N,) at EAR_HZ: (F,).

    Over its louder half, the mean and the deviation of each band, and the deviation of the first cepstra,
    which say how the envelope moves, and which the pitch hardly touches.
    """
    spectrogram = LogMel(songs.PRESET.codec)
    mel = spectrogram(whole_frames(level(wave)[None], spectrogram.hop))[0]                            # (n, M)
    mel = mel[mel.mean(1) >= mel.mean(1).median()]
    cepstra = mel @ AF.create_dct(CEPSTRA, mel.shape[1], "ortho")
    return torch.cat([mel.mean(0), mel.std(0), cepstra.std(0)])


def learn_singers(codec: SungCodec) -> dict[str, Tensor]:
    """Logistic regression of the four singers on profiles of true songs.

    Each song counts four times: as it is and through the codec, and both in a room, or with noise.
    """
    profiles, names, rng = [], [], torch.Generator().manual_seed(0)
    for number in range(FIRST_SINGER, FIRST_SINGER + SINGER_SONGS):
        entry, parts, _, seconds = songs.song(number)
        if ":" not in entry["voice"] and seconds < LONGEST_S:                # no blend of two
            made = sounds(parts, seconds, codec, np.random.default_rng(number))
            made += tuple(elsewhere(wave, len(wave), rng) for wave in made)
            profiles.append(torch.stack([*map(profile, made)]))
            names.append([*songs.PLAIN].index(entry["voice"].removesuffix("-soft")))
    x, y = torch.stack(profiles), torch.tensor(names)[:, None].expand(-1, len(made))         # (songs, 4, F)
    learn = round(len(x) * (1 - HELD_OUT))
    scale = {"mean": x[:learn].mean((0, 1)), "deviation": x[:learn].std((0, 1))}
    x = (x - scale["mean"]) / scale["deviation"]
    weight = torch.zeros(x.shape[2], len(songs.PLAIN), requires_grad=True)
    bias = torch.zeros(len(songs.PLAIN), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = (x[:learn] @ weight + bias).flatten(0, 1)
        value = nn.functional.cross_entropy(scores, y[:learn].flatten()) + 0.01 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    right = ((x @ weight + bias).argmax(2) == y)[learn:].double().mean(0)
    print(f"singers learnt from {learn} songs; of {len(x) - learn} others, heard right: {right[0]:.1%}, "
          f"{right[1]:.1%} through the codec, {right[2:].mean():.1%} in a room or with noise", flush=True)
    return scale | {"weight": weight.detach(), "bias": bias.detach()}


@functools.cache
def singers() -> dict[str, Tensor]:
    """The classifier, learnt when it is first asked for, and then kept in runs/."""
    source = find(ASSETS / CODEC)
    path = Path("runs") / f"singers-{sha256(source)[:12]}.safetensors"
    if not path.is_file():
        learnt = learn_singers(make_codec(songs.PRESET.codec, source))
        make_folder(path.parent)
        with replacing(path) as temporary:
            save_file(learnt, temporary)
    with reading(path):
        return load_file(path)


def singer(path: Path, record: dict) -> float:
    """A scorer for evaluate.py: 1 if the singer is heard who was asked for, in whatever manner, else 0.

    Raises: UserError if the account names no singer.
    """
    asked = max(map(weighted, record["settings"].get("style") or [""]), key=lambda style: style[1])[0]
    name = songs.ALIASES.get(asked, asked).removesuffix("-soft")
    if name not in songs.PLAIN:
        raise UserError(f"{path}: its style is {asked!r}; expected a singer, {', '.join(songs.PLAIN)}")
    own = singers()
    x = (profile(mono(*read_wave(path), EAR_HZ)) - own["mean"]) / own["deviation"]
    return float([*songs.PLAIN][(x @ own["weight"] + own["bias"]).argmax()] == name)


# What recognisers make of spoilt sounds

def griffin_lim(wave: Tensor) -> Tensor:
    """A sound (N,) from its own mel spectrogram, whose phases Griffin-Lim guesses."""
    mel = LogMel(songs.PRESET.codec)
    spectrum = wave.stft(mel.n_fft, mel.hop, window=mel.taper, return_complex=True).abs()             # (K, n)
    bands = mel.filters.T @ spectrum                                                                  # (M, n)
    spectrum = (torch.linalg.pinv(mel.filters.T) @ bands).clamp_min(0)
    return AF.griffinlim(spectrum, mel.taper, mel.n_fft, mel.hop, mel.n_fft, power=1.0, n_iter=32,
                         momentum=0.99, length=len(wave), rand_init=False)


def spoilt(number: int, codec: SungCodec) -> tuple[dict, dict[str, Tensor]]:
    """The account of a training song, and sounds (N,) of it, spoilt in different ways."""
    entry, parts, _, seconds = songs.song(number)
    true, coded = sounds(parts, seconds, codec, np.random.default_rng(number))
    rng, tracks = torch.Generator().manual_seed(number), songs.tracks_of(parts, seconds, codec)
    wobble = torch.randn(1, 1, round(8 * seconds) + 1, generator=rng)                        # semitones
    wobble = nn.functional.interpolate(wobble, len(tracks["note"]), mode="linear")[0, 0]
    latents, detuned = (codec.pack(**tracks | {"note": tracks["note"] + x}) for x in (0, wobble.numpy()))
    blurred = nn.functional.avg_pool1d(latents.T, 5, 1, 2, count_include_pad=False).T        # 107 ms
    decay = room(0.8, 0.0, rng)
    return entry | {"settings": {"duration": seconds}}, {
        "the voice's own sound": true,
        "through the codec": coded,
        "its mel bands through Griffin-Lim": griffin_lim(true),
        "through the codec, pitch off by a semitone (deviation)": codec.decode(detuned[None])[0, 0],
        "through the codec, latents averaged over 0.1 s": codec.decode(blurred[None])[0, 0],
        "in a room: 0.8 s, as loud as the voice": AF.fftconvolve(true, decay)[:len(true)],
        "with noise, 10 dB below": level(true) + hiss(len(true), -10.0, 0.5, rng)}


def check(cfg: JudgeSettings, codec: SungCodec) -> None:
    """Print what the ear and pocketsphinx make of spoilt songs, sound by sound."""
    ear, rows = small_ear(cfg.ear), defaultdict(list)
    for number in range(FIRST_CHECK, FIRST_CHECK + cfg.check):
        record, made = spoilt(number, codec)
        for sound, wave in made.items():
            row = measures(wave[None], EAR_HZ, record, ear)
            rows[sound].append((row, misheard_phones(mono(wave[None], EAR_HZ, HEARING_HZ), record)))
    names = ("phoneme_error_rate", "missing", "within_50_ms")
    print(" | ".join(["| sound", *names, "pocketsphinx |"]) + "\n" + "|---" * (len(names) + 2) + "|")
    for sound, heard in rows.items():
        values = [METRICS[name].total([value for row, _ in heard for value in METRICS[name].values(row)])
                  for name in names] + [ratio([errors for _, errors in heard])]
        print(f"| {sound} | {' | '.join(f'{value:.1%}' for value in values)} |")


# The command

def main(cfg: JudgeSettings) -> None:
    codec, manifest = make_codec(songs.PRESET.codec, find(cfg.assets / CODEC)), []
    if cfg.check:
        return check(cfg, codec)
    pronounce = reader(find(cfg.assets / PHONEMIZER))
    lines = read_text(Path(__file__).with_name("held_out.txt")).splitlines()
    for folder in ("truth", "coded"):
        make_folder(cfg.out / folder)
    for k in range(0, len(lines), LINES):
        rng, style = np.random.default_rng(k), [*songs.SINGERS][k // LINES % len(songs.SINGERS)]
        name, words = f"{k // LINES:02d}-{style}", timed(lines[k:k + LINES], rng, pronounce)
        manifest.append(write_prompt(cfg.out, name, words, style) | {"seed": k})
        seconds = manifest[-1]["duration"]
        account = json.dumps({"word": words, "settings": {"duration": seconds, "style": [style]}})
        made = sounds(ground_truth(words, style, rng), seconds, codec, rng)
        for folder, wave in zip(("truth", "coded"), made):
            path = cfg.out / folder / f"{name}.wav"
            write_wave(path, 0.5 * wave[None] / wave.abs().max(), songs.RATE, path)
            write_text(Path(f"{path}.json"), account)
    write_json(cfg.out / "manifest.json", manifest)


if __name__ == "__main__":
    run(lambda: main(parse(JudgeSettings, __doc__)))
