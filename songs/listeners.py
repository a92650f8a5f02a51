"""What evaluate.py listens with: recognisers of sung words, and scorers that need no recogniser.

Read `Recogniser`, then `small_ear` (songs of the embedded model, by the network `Ear`, which baby/ear.py
trains) or `wav2vec2` (real songs), `likeliest` (what is heard), `misheard` (beside what was asked),
`find_words` (where the asked words are), `outside_scorer`. Axes: B songs, n mel frames of the codec,
W channels, N samples, T frames of the recogniser, C its classes, E width of an embedding.
"""

import functools
import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from config import PHONEMIZER, PRESETS, EvaluateConfig, SampleConfig, SingSettings, UserError
from lyrics import align, pronounce
from lyrics.spoken import spoken
from lyrics.timing import HELD, Word
from phonemes import CONSONANT_S, VOWELS
from style import SHORTEST_S, Crop, encoder_of, style_vector
from support import mulan
from support.audio import mono, read_wave
from support.files import find, reading
from support.hub import sha256
from support.processes import pick_device
from sung import LogMel, whole_frames

SWITCH = 4.0            # of the small ear; on its training songs 3 to 8 do about as well
OTHER = 3.0             # nats a frame that it costs to hear something other than the asked words
ABSENT = 2.0            # nats by which a missing word's sounds are less likely than what is heard there

# Of the ear.
CODEC = PRESETS["baby"].codec
EAR_HZ = CODEC.sample_rate_hz
PER_S = EAR_HZ * CODEC.fold / CODEC.hop            # 93.75 frames a second
FOLD = 2                                         # frames that the network computes at once
WIDTH, DILATIONS = 160, (1, 1, 2, 2, 1)          # which reach 0.35 s to each side
LOUD_DB = 26.0                                   # 20 ms no further below the loudest 20 ms are sung


@dataclass(frozen=True)
class Recogniser:
    """A CTC model with what is needed to compare what it hears with words. Class 0 is its blank."""
    name: str
    sha256: str
    labels: list[str]                    # of its classes; align.BAR separates words
    # wave (W, N), rate -> the voice (N',), its rate, log p (T, C), frames a second
    hear: Callable[[Tensor, int], tuple[Tensor, int, Tensor, float]]
    spell: Callable[[Word], str]         # a word in its labels
    say: Callable[[str], str]            # the IPA of labels between two bars
    switch: float = 0.0                  # nats that a change of class from one frame to the next costs
    embed: Callable[[Tensor, int], Tensor] | None = None     # wave (W, N), rate -> (pieces, E)


@functools.cache
def phonemizer():
    """The embedded model's phonemizer, for words that come without phonemes."""
    return pronounce.reader(Path("weights/baby") / PHONEMIZER)


def sounds_of(word: Word) -> str:
    """A word's IPA without marks."""
    return "".join(c for c in word.phoneme or phonemizer()(word.word) if c in VOWELS or c in CONSONANT_S)


def letters_of(word: Word) -> list[str]:
    """A word as it is spoken, in words of a to z."""
    return spoken(word.word.replace(HELD, ""))


def recogniser_of(cfg: EvaluateConfig | SingSettings) -> Recogniser:
    """The recogniser that --recogniser names. Raises: UserError if its files are not there."""
    return wav2vec2(cfg) if cfg.recogniser == "wav2vec2" else small_ear()


def small_ear(path: Path = Path("weights/baby/ear.safetensors")) -> Recogniser:
    """The embedded model's ear, which spells in IPA. Raises: UserError if its file is missing or corrupt."""
    path = find(path)
    ear = load_ear(path)

    def hear(wave: Tensor, rate_hz: int) -> tuple[Tensor, int, Tensor, float]:
        voice = mono(wave, rate_hz, EAR_HZ)
        return voice, EAR_HZ, ear(ear.mel(voice))[0], PER_S

    def embed(wave: Tensor, rate_hz: int) -> Tensor:
        features = ear.features(ear.mel(mono(wave, rate_hz, EAR_HZ)))[0]                    # (n / FOLD, E)
        pieces = features.split(round(PER_S / FOLD))                                # of a second each
        return torch.stack([piece.mean(0) for piece in pieces])

    return Recogniser("ear", sha256(path), ear.classes, hear, sounds_of, lambda heard: heard, SWITCH, embed)


def wav2vec2(cfg: EvaluateConfig | SingSettings) -> Recogniser:
    """torchaudio's WAV2VEC2_ASR_BASE_960H, which spells in letters. Raises: as align.fetch."""
    source, device = align.LISTENERS["wav2vec2"], pick_device(cfg.device)
    model = align.fetch(source, device, cfg.offline)

    def hear(wave: Tensor, rate_hz: int) -> tuple[Tensor, int, Tensor, float]:
        if cfg.separate:
            wave, rate_hz = align.voice_of(wave, rate_hz, device, cfg.offline)
        voice, rate_hz = mono(wave, rate_hz, source.bundle.sample_rate), source.bundle.sample_rate
        # The model divides by the wave's deviation: a little noise, so that silence has one.
        voice = voice + 1e-5 * torch.randn(len(voice), generator=torch.Generator().manual_seed(0))
        scores, per_s = align.emissions(voice, rate_hz, model, device)
        return voice, rate_hz, scores.log_softmax(-1), per_s

    labels = [label.lower() for label in source.bundle.get_labels()]
    return Recogniser("wav2vec2", sha256(source.path), labels, hear, lambda word: "".join(letters_of(word)),
                      phonemizer())


# The ear

class Ear(nn.Module):
    """Which phoneme is sung in each frame: mel frames (B, n, mels) -> log p (B, n, C). Class 0 is silence."""

    def __init__(self, phonemes: str):
        super().__init__()
        self.classes = ["", *phonemes]
        self.spectrogram = LogMel(CODEC)
        self.first = nn.Conv1d(FOLD * LogMel.mels, WIDTH, 5, padding=2)
        self.layers = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 5, padding=2 * d, dilation=d) for d in DILATIONS)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in DILATIONS)
        self.out = nn.Linear(WIDTH, FOLD * len(self.classes))

    def features(self, mel: Tensor) -> Tensor:
        """The last hidden layer for mel frames (B, n, mels), n a multiple of FOLD: (B, n / FOLD, WIDTH)."""
        x = self.first(mel.unflatten(1, (-1, FOLD)).flatten(2).transpose(1, 2))
        for layer, norm in zip(self.layers, self.norms):
            x = x + layer(torch.relu(norm(x.transpose(1, 2)).transpose(1, 2)))
        return torch.relu(x).transpose(1, 2)

    def forward(self, mel: Tensor) -> Tensor:
        return self.out(self.features(mel)).unflatten(2, (FOLD, -1)).flatten(1, 2).log_softmax(-1)

    def mel(self, wave: Tensor) -> Tensor:
        """wave (N,) at EAR_HZ, of any loudness -> mel frames (1, n, mels), n = 2 ceil(N / hop)."""
        return self.spectrogram(whole_frames(level(wave)[None], CODEC.hop))


def level(wave: Tensor) -> Tensor:
    """Bring the sung parts of wave (N,) to RMS 0.1, the level of the training songs."""
    size = EAR_HZ // 50
    power = F.pad(wave, (0, -len(wave) % size)).view(-1, size).square().mean(1)
    return 0.1 * wave / power[power >= power.max() * 10 ** (-LOUD_DB / 10)].mean().sqrt().clamp_min(1e-6)


def load_ear(path: Path) -> Ear:
    """Read a trained ear. Raises: UserError if the file is missing, corrupt or something else."""
    with reading(path, "not an ear's weights"), safe_open(path, "pt") as file:
        ear = Ear(file.metadata()["phonemes"])
        ear.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})
        return ear.eval().requires_grad_(False)


# What is heard, and where

def likeliest(log_p: Tensor, switch: float) -> list[int]:
    """The classes of the likeliest path through log_p (T, C), each run of a class once, without blanks.

    Going from one class to another costs `switch`, which removes the flicker of a network that classifies
    each frame by itself; 0 is CTC's greedy path.
    """
    best, came = log_p[0], []
    for frame in log_p[1:]:
        top, other = best.max(0)
        stays = best >= top - switch
        came.append(torch.where(stays, torch.arange(len(best)), other))
        best = torch.where(stays, best, top - switch) + frame
    path = [int(best.argmax())]
    for last in reversed(came):
        path.append(int(last[path[-1]]))
    return [i for i in torch.tensor(path[::-1]).unique_consecutive().tolist() if i != align.BLANK]


def misheard(asked: Sequence[str], heard: Sequence[str]) -> tuple[list[int], list[str]]:
    """Errors, and what is heard, by place (n + 1,): before the first, then at each of the n asked.

    The errors sum to the edit distance. An extra sound counts at the asked one before it.
    """
    cost = np.add.outer(np.arange(len(asked) + 1), np.arange(len(heard) + 1))        # right at its borders
    for i, a in enumerate(asked, 1):
        for j, b in enumerate(heard, 1):
            cost[i, j] = min(cost[i - 1, j - 1] + (a != b), cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    errors, places, i, j = [0] * (len(asked) + 1), [""] * (len(asked) + 1), len(asked), len(heard)
    while i or j:
        right = i and j and asked[i - 1] == heard[j - 1]
        extra = not right and j and cost[i, j] == cost[i, j - 1] + 1     # so it counts where all is wrong
        missed = not right and not extra and not (j and i and cost[i, j] == cost[i - 1, j - 1] + 1)
        errors[i] += not right
        places[i] = ("" if missed else heard[j - 1]) + places[i]
        i, j = i - (not extra), j - (not missed)
    return errors, places


def find_words(log_p: Tensor, tokens: list[list[int]], bar: int) -> list[align.Span | None]:
    """Find words, each a list of classes, in log_p (T, C); None for a word that is missing.

    All sounds are aligned along the likeliest path (CTC). What is sung between them, or instead, costs OTHER
    a frame. A word is missing if its sounds are, on average, less likely by ABSENT than the likeliest ones
    there: it is left out, and the others are aligned again, because it may have taken its neighbours' place;
    of neighbours the less likely one is left out first. `bar`, the class between words, counts as a blank.
    """
    best, flat = log_p.amax(-1), [(token, i) for i, own in enumerate(tokens) for token in own]        # (T,)
    if not flat or len(flat) + sum(a == b for (a, _), (b, _) in zip(flat, flat[1:])) > len(log_p):
        return [None] * len(tokens)
    lenient = log_p.clone()
    lenient[:, align.BLANK] = log_p[:, align.BLANK].maximum(log_p[:, bar]).maximum(best - OTHER)
    spans = align.lay(lenient, flat, lambda scores: scores - best)
    margins = [span.score for span in spans.values()]
    gone = {i for k, i in enumerate(spans) if margins[k] <= min(-ABSENT, *margins[max(0, k - 1):k + 2])}
    if gone:
        return find_words(log_p, [[] if i in gone else own for i, own in enumerate(tokens)], bar)
    return [spans.get(i) for i in range(len(tokens))]


# Scorers that need no recogniser

def outside_scorer(name: str, cfg: EvaluateConfig | SingSettings) -> Callable[[Path, dict], float]:
    """A scorer that needs no recogniser: a function from a song's file and account to a number.

    Raises: UserError for an unknown name, a missing library, or a module of the user's that fails to load.
    """
    module, colon, function = name.partition(":")
    with reading(f"--scorer {name}", "", Exception):
        if name == "style":
            return style_scorer(cfg)
        if name == "audiobox":
            predictor = importlib.import_module("audiobox_aesthetics.infer").initialize_predictor()
            return lambda path, record: np.mean([*predictor.forward([{"path": str(path)}])[0].values()])
        if name == "songeval":
            songeval = importlib.import_module("songeval")
            return lambda path, record: np.mean([*songeval.evaluate_song(str(path)).values()])
        if colon:
            sys.path.append(os.getcwd())                     # of the user's own modules
            own = getattr(importlib.import_module(module), function)
            if callable(own):
                return own
            raise UserError(f"--scorer {name}: is {own!r}; expected a function")
    raise UserError(f"--scorer {name}: expected phonemes, timing, style, audiobox, songeval or "
                    "MODULE:FUNCTION")


def style_scorer(cfg: EvaluateConfig | SingSettings) -> Callable[[Path, dict], float]:
    """The cosine between MuQ-MuLan's vector of a song and the vector of the style that was asked for."""
    encoder = encoder_of(cfg, None, pick_device(cfg.device))

    def score(path: Path, record: dict) -> float:
        wave = mono(*read_wave(path), mulan.RATE_HZ)
        wave = F.pad(wave, (0, max(0, math.ceil(SHORTEST_S * mulan.RATE_HZ) - len(wave))))
        wanted, settings = torch.tensor(record.get("style", [])), record.get("settings", {})
        if wanted.shape != (encoder.width,):                 # no account, or a model with other styles
            wanted = style_vector(tuple(settings.get("style") or ()), tuple(settings.get("style_text") or ()),
                                  Crop(0.0, SampleConfig.num_style_secs, None), None, encoder.width,
                                  lambda: encoder)
        return F.cosine_similarity(encoder.audio(wave), wanted, 0).item()

    return score
