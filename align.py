"""Word times of a recording: the letters of its lyrics are laid on what a published speech model hears (CTC).

Read `align`, then its steps in order: `fetch` (a model), `voice_of` (a mix without its instruments),
`emissions` (how likely each letter is in each frame), `grouped` and `targets` (what is to be found, where),
`find` and `lay` (the likeliest path), `hold` (words last as long as the voice), `guess` (unreadable words).
Axes: N samples, T frames of the speech model, C its letters.
"""

import http.client
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchaudio
import torchaudio.functional as AF
from torch import Tensor, nn
from tqdm import tqdm

from audio import mono, read_wave
from cli import pick_device
from config import READ_ERRORS, AlignSettings, UserError
from lyrics import HELD, Line, Lyrics, Word, place
from spoken import spoken

CHUNK_S = 20            # are heard at once; whole seconds, so that all frames lie on one grid
CONTEXT_S = 5           # before and after them, so that borders are heard like the middle
SHORTEST_S = 3          # shorter recordings are filled up: the frame rate is told by the number of frames
PIECE_S, FADE_S = 12, 2              # of a mix are separated at once; of these fade into the next piece
SILENCE = 1e-4                       # peak: -80 dB
BLANK, BAR, STAR = 0, "|", "*"       # of CTC; between words, in some models; for anything, in some models
# Tokens for whatever is sung beside the lyrics, between lines and between words, and what they cost in nats a
# frame: so much that letters and pauses are preferred, and that lines hold together.
ASIDES = {"between lines": 0.1, "between words": 0.5}
NEVER, TURNS = -100.0, 8             # log probability; see `find`
DOUBT = 0.2                          # words whose letters are less likely, on average, are listed; a choice
HOLD_S, HOLD_DB = 5.0, -20.0         # the longest held note; where it is over, to the word's own level
GUESS_S = 0.4                        # of a word that cannot be read, at most


@dataclass(frozen=True)
class Source:
    """A model of torchaudio.pipelines: where its weights come from, and where torchaudio puts them."""
    name: str
    url: str
    folder: str                          # of torch.hub.get_dir()
    size: str                            # of its parameters; the file's is not published
    licence: str                         # as torchaudio's documentation says
    options: dict = field(default_factory=dict)              # of get_model

    @property
    def bundle(self):
        """torchaudio's own description of it."""
        return getattr(torchaudio.pipelines, self.name)

    @property
    def path(self) -> Path:
        """The local copy of its weights."""
        return Path(torch.hub.get_dir()) / self.folder / self.url.rpartition("/")[2]


TENSORS_ONLY = {"dl_kwargs": {"weights_only": True}}
LISTENERS = {
    "mms": Source(
        "MMS_FA", "https://dl.fbaipublicfiles.com/mms/torchaudio/ctc_alignment_mling_uroman/model.pt",
        "checkpoints", "1.26 GB", "CC-BY-NC 4.0", TENSORS_ONLY),
    "wav2vec2": Source(
        "WAV2VEC2_ASR_BASE_960H",
        "https://download.pytorch.org/torchaudio/models/wav2vec2_fairseq_base_ls960_asr_ls960.pth",
        "checkpoints", "0.38 GB", "MIT", TENSORS_ONLY),
}
SEPARATOR = Source(
    "HDEMUCS_HIGH_MUSDB_PLUS", "https://download.pytorch.org/torchaudio/models/hdemucs_high_trained.pt",
    "torchaudio/models", "0.33 GB", "not stated; trained on MUSDB-HQ and 150 songs of Meta's")


class Span(NamedTuple):
    """Where a word is: frames from start until before end, and its letters' mean probability."""
    start: int
    end: int
    score: float


class Group(NamedTuple):
    """Lines, the number of their first word, and the frames from low until before high where they may be."""
    lines: list[Line]
    number: int
    low: int
    high: int
    alone: bool                          # beside all others


def align(audio: Path, lyrics: Lyrics, settings: AlignSettings) -> Lyrics:
    """Give every word of the lyrics the times at which a recording sings it.

    Words are expected in the order of the lyrics; those of a line that has a time, and of the lines after it
    that have none, near this time (see `grouped`). What is sung beside the lyrics is passed over. Words that
    cannot be read get guessed times; they are listed on stderr, and so are doubtful ones.

    Args: audio, a sound file; lyrics, with times or without.
    Returns: the same lines; their words with start and end, without syllables and phones; lines with words
        begin and end with these.
    Raises: UserError for a recording that is missing, broken, silent or too short for the words, for lyrics
        without a readable word, and for a model that is unknown or cannot be had.
    """
    if settings.model not in LISTENERS:
        raise UserError(f"--model {settings.model}: expected {' or '.join(LISTENERS)}")
    if not 0 <= settings.margin < math.inf:
        raise UserError(f"--margin {settings.margin}: expected seconds, 0 or more")
    source, device = LISTENERS[settings.model], pick_device(settings.device)
    labels = [label.lower() for label in source.bundle.get_labels() if label != STAR]
    ids = {label: i for i, label in enumerate([*labels, *ASIDES])}
    if not any(spell(word, ids) for word in lyrics.words):
        raise UserError(f"{audio}: the lyrics have no word that can be read; expected words of a to z")
    wave, rate_hz = read_wave(audio)                                                    # (W, N)
    if silent(wave):
        raise UserError(f"{audio}: is silent")
    if settings.separate:
        wave, rate_hz = voice_of(wave, rate_hz, device, settings.offline)
        if silent(wave):
            raise UserError(f"{audio}: no voice was found in it; --separate false listens to all of it")
    wave, rate_hz = mono(wave, rate_hz, source.bundle.sample_rate), source.bundle.sample_rate      # (N,)
    heard, per_s = emissions(wave, rate_hz, fetch(source, device, settings.offline), device)
    spans = find(audio, lyrics, ids, with_asides(heard, labels), per_s, settings.margin)
    report(audio, lyrics, spans)
    power = wave.unfold(0, rate_hz // per_s, rate_hz // per_s).square().mean(1)         # (N,) -> (T,)
    lines = [i for i, line in enumerate(lyrics.lines) for _ in line.words]
    times = guess(hold(spans, power, round(HOLD_S * per_s)), lines, len(heard), GUESS_S * per_s)
    length_s = len(wave) / rate_hz                           # the last frame may go on behind it
    return timed(lyrics, [(min(a / per_s, length_s), min(b / per_s, length_s)) for a, b in times])


def fetch(source: Source, device: torch.device, offline: bool) -> nn.Module:
    """A model with its published weights, which torchaudio downloads if they are not here.

    Raises: UserError if they cannot be had, or are broken.
    """
    path, missing = source.path, not source.path.is_file()
    if missing and offline:
        raise UserError(f"{source.name}: {path} is missing and --offline forbids to fetch it; put "
                        f"{source.url} there")
    if missing:
        print(f"fetching {source.name} from {source.url} to {path}, {source.size}; licence: "
              f"{source.licence}", file=sys.stderr)
    try:
        model = source.bundle.get_model(**source.options)
    except (*READ_ERRORS, http.client.HTTPException) as e:
        if path.is_file():
            raise UserError(f"{path}: broken, or no weights of {source.name}; delete it and it is fetched "
                            "anew") from None
        why = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise UserError(f"{source.name} ({source.url}): {why}; or put it at {path}") from None
    # MMS_FA would turn each chunk up to the same level, pauses too: `emissions` does it, once for all.
    model.normalize_waveform = False
    return model.eval().to(device)


# The voice and what is heard

def silent(wave: Tensor) -> bool:
    """Whether the mean of the channels of wave (W, N) is all but constant."""
    wave = wave.mean(0)
    return bool((wave - wave.mean()).abs().max() < SILENCE)


def voice_of(wave: Tensor, rate_hz: int, device: torch.device, offline: bool) -> tuple[Tensor, int]:
    """The voice in a mix (W, N), at the separator's rate: (1, N'), rate in Hz."""
    wanted_hz = SEPARATOR.bundle.sample_rate
    model = fetch(SEPARATOR, device, offline)
    wave = AF.resample(wave if len(wave) == 2 else wave.mean(0).expand(2, -1), rate_hz, wanted_hz)
    return separate(wave, model, PIECE_S * wanted_hz, FADE_S * wanted_hz, device)[None], wanted_hz


@torch.inference_mode()
def separate(wave: Tensor, model: nn.Module, size: int, fade: int, device: torch.device) -> Tensor:
    """The vocals of wave (2, N), mean of both channels: (N,).

    They are separated in pieces of `size` samples, which fade into each other over `fade` samples.
    """
    samples, step = wave.shape[1], size - fade
    count = max(1, math.ceil((samples - fade) / step))
    wave = F.pad(wave, (0, (count - 1) * step + size - samples))
    ramp = (torch.arange(fade) + 0.5) / fade                 # and its mirror add up to 1
    weight = torch.cat([ramp, torch.ones(size - 2 * fade), ramp.flip(0)])
    total, weights = torch.zeros(2, wave.shape[1])
    for start in tqdm(range(0, count * step, step), "separating", unit="piece"):
        piece = model(wave[None, :, start:start + size].to(device))          # (1, sources, 2, size)
        total[start:start + size] += weight * piece[0, model.sources.index("vocals")].mean(0).cpu()
        weights[start:start + size] += weight
    return (total / weights)[:samples]


@torch.inference_mode()
def emissions(wave: Tensor, rate_hz: int, model: nn.Module, device: torch.device) -> tuple[Tensor, int]:
    """What a speech model hears in wave (N,), chunk by chunk: its scores (T, classes), frames per second.

    All chunks are equally long, but of a recording that is shorter than one.
    """
    seconds = max(SHORTEST_S, math.ceil(len(wave) / rate_hz))
    samples, wave = len(wave), F.pad((wave - wave.mean()) / wave.std(), (0, seconds * rate_hz - len(wave)))
    size = min(seconds, CHUNK_S + 2 * CONTEXT_S)
    step = CHUNK_S if size < seconds else seconds
    parts = []
    for first in tqdm(range(0, seconds, step), "listening", unit="chunk"):
        start = min(max(0, first - CONTEXT_S), seconds - size)
        heard = model(wave[None, start * rate_hz:(start + size) * rate_hz].to(device))[0][0].cpu()
        per_s = round(len(heard) / size)                     # a frame or so is lost at the end
        parts.append(heard[(first - start) * per_s:(first - start + step) * per_s])
    return torch.cat(parts)[:-(-samples * per_s // rate_hz)], per_s


def with_asides(heard: Tensor, labels: list[str]) -> Tensor:
    """Log probabilities (T, C) of the labels and of ASIDES, from a speech model's scores (T, classes).

    An aside is about as likely as the likeliest label. BAR counts as a pause: not all models have it, and who
    sings does not always pause.
    Differs: MMS_FA's own star is certain everywhere, so that faint singing goes to it, not to its letters.
    """
    log_p = heard[:, :len(labels)].log_softmax(-1)
    if BAR in labels:
        log_p[:, BLANK] = log_p[:, BLANK].logaddexp(log_p[:, labels.index(BAR)])
    return torch.cat([log_p, *(log_p.amax(-1, keepdim=True) - cost for cost in ASIDES.values())], -1)


# Where the words are

def spell(word: Word, ids: dict[str, int]) -> list[int]:
    """A word's letters as a speech model numbers them; [] if it cannot be read."""
    return [ids[c] for c in "".join(spoken(word.word.replace(HELD, ""))) if c in ids]


def grouped(lyrics: Lyrics, frames: int, per_s: int, margin_s: float) -> list[Group]:
    """The lines that are looked for together: one with a time begins a group, those without follow.

    A group is expected from margin_s before its time to margin_s after the next one's, or after its own end
    where this is later; one of the lead knows no backing ones beside it.
    """
    groups, made, words = [], [], 0
    for line in lyrics.lines:
        if line.start is not None or not groups:
            groups.append([])
        groups[-1].append(line)
    backing = [group[0].backing and group[0].start is not None for group in groups]
    for i, group in enumerate(groups):
        after = next((k for k in range(i + 1, len(groups)) if backing[i] or not backing[k]), None)
        low, high = 0, frames
        if group[0].start is not None:
            low = max(0, math.floor((group[0].start - margin_s) * per_s))
        if after is not None:
            high = math.ceil((max(groups[after][0].start, group[-1].end or 0.0) + margin_s) * per_s)
        made.append(Group(group, words, low, high, backing[i]))
        words += sum(len(line.words) for line in group)
    return made


def places(lyrics: Lyrics) -> list[tuple[Line, str]]:
    """Each word's line, and how messages name the word."""
    words = [(line, word) for line in lyrics.lines for word in line.words]
    return [(line, place(line, number, word)) for number, (line, word) in enumerate(words, 1)]


def targets(group: Group, ids: dict[str, int]) -> list[tuple[int, int]]:
    """What a group sings: letters, each with its word's number, and ASIDES, with -1, before words and lines.

    They stand for words that cannot be read, too.
    """
    outer, inner = ((ids[name], -1) for name in ASIDES)
    found, number = [], group.number
    for line in group.lines:
        before = outer
        for word in line.words:
            letters = [(token, number) for token in spell(word, ids)]
            found += [before, *letters] if letters else []
            before, number = inner if letters else outer, number + 1
    return found


def find(audio: Path, lyrics: Lyrics, ids: dict[str, int], log_p: Tensor, per_s: int, margin_s: float
         ) -> list[Span | None]:
    """Where the words of the lyrics are in log_p (T, C); None for those that cannot be read.

    Groups (see `grouped`) follow each other; backing ones with a time are looked for by themselves.
    Raises: UserError if there are more letters than frames, or a line begins behind the end.
    """
    frames, classes = log_p.shape
    for line, where in places(lyrics):
        if (line.start or 0.0) * per_s >= frames:
            raise UserError(f"{audio}: {where}: its line begins at {line.start:.2f} s; the recording ends at "
                            f"{frames / per_s:.2f} s")
    groups, spans = grouped(lyrics, frames, per_s, margin_s), [None] * len(lyrics.words)
    for voice in [[g for g in groups if not g.alone], *([g] for g in groups if g.alone)]:
        # Letters of a group are columns of their own, impossible elsewhere. TURNS later they are used again:
        # their order keeps such groups apart.
        near, tokens = torch.full((TURNS, frames, classes), NEVER), []
        for i, group in enumerate(voice):
            near[i % TURNS, group.low:group.high] = log_p[group.low:group.high]
            shift = (i % TURNS + 1) * classes
            tokens += [(token + shift * (number >= 0), number) for token, number in targets(group, ids)]
        tokens.append((ids[next(iter(ASIDES))], -1))
        need = len(tokens) + sum(a == b for (a, _), (b, _) in zip(tokens, tokens[1:]))
        if need > frames:
            raise UserError(f"{audio}: is {frames / per_s:.2f} s long; its words need {need / per_s:.2f} s or"
                            " more")
        for number, span in lay(torch.cat([log_p, *near], 1), tokens).items():
            spans[number] = span
    return spans


def lay(log_p: Tensor, tokens: list[tuple[int, int]]) -> dict[int, Span]:
    """The likeliest path of `targets` through log_p (T, C): a span for each number of a word."""
    path, scores = AF.forced_align(log_p[None], torch.tensor([[token for token, _ in tokens]]), blank=BLANK)
    runs = AF.merge_tokens(path[0], scores[0].exp(), BLANK)                             # one for each token
    letters = {}
    for run, (_, number) in zip(runs, tokens, strict=True):
        letters.setdefault(number, []).append(run)
    letters.pop(-1)
    return {number: Span(own[0].start, own[-1].end, sum(run.score for run in own) / len(own))
            for number, own in letters.items()}


# Spans to times

def hold(spans: list[Span | None], power: Tensor, longest: int) -> list[Span | None]:
    """Let words last while the voice does: of a held sound, models hear the beginning.

    Args: power (T,) of the voice; longest, frames by which a word may grow. It ends where the next one
        begins; before one that cannot be read it stays as it is.
    """
    held = []
    for span, after in zip(spans, [*spans[1:], Span(len(power), 0, 0.0)]):
        if span and after:
            end, over = span.end, power[span.start:span.end].mean() * 10 ** (HOLD_DB / 10)
            while end < min(after.start, len(power), span.end + longest) and power[end] > over:
                end += 1
            span = span._replace(end=end)
        held.append(span)
    return held


def guess(spans: list[Span | None], lines: list[int], frames: int, longest: float
          ) -> list[tuple[float, float]]:
    """Start and end of each word in frames; words without a span share the gap, `longest` each at most.

    They stand right behind the word before them if that is of the same line, else right before the next one.
    Args: lines, the number of each word's line.
    """
    times = [span and (span.start, span.end) for span in spans]
    while None in times:
        i = times.index(None)
        j = next((k for k in range(i, len(times)) if times[k]), len(times))
        low, high = times[i - 1][1] if i else 0, times[j][0] if j < len(times) else frames
        size = min(longest, max(0, high - low) / (j - i))
        behind = j == len(times) or i and lines[i - 1] == lines[i]
        first = low if behind else high - size * (j - i)
        times[i:j] = [(first + size * k, first + size * (k + 1)) for k in range(j - i)]
    return times


def timed(lyrics: Lyrics, times: list[tuple[float, float]]) -> Lyrics:
    """The lyrics with these times in seconds, one pair for each word."""
    lines, rest = [], iter(times)
    for line in lyrics.lines:
        words = tuple(replace(word, start=start, end=end, phones=(), syllables=())
                      for word, (start, end) in zip(line.words, rest))
        if words:
            line = replace(line, words=words, start=words[0].start, end=words[-1].end)
        lines.append(line)
    return replace(lyrics, lines=tuple(lines))


def report(audio: Path, lyrics: Lyrics, spans: list[Span | None]) -> None:
    """List on stderr the words whose times are guessed, or doubtful."""
    named = [(where, span) for (_, where), span in zip(places(lyrics), spans)]
    unread = [where for where, span in named if span is None]
    doubtful = [f"{where} ({span.score:.2f})" for where, span in named if span and span.score < DOUBT]
    for names, what in ((unread, "cannot be read, their times are guessed"),
                        (doubtful, f"were hardly heard (below {DOUBT})")):
        if names:
            print(f"warning: {audio}: {len(names)} of {len(named)} words {what}: {'; '.join(names)}",
                  file=sys.stderr)
