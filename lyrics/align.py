"""Word times of a recording: the letters of its lyrics are laid on what a published speech model hears (CTC).

Read `align`, then its steps in order: `fetch` (a model of models.py), `voice_of` (the voice without its
accompaniment), `emissions` (how likely each letter is in each frame), `groups_of` (what to find, and where),
`find` and `lay` (the likeliest path), `hold` (words last as long as the voice), `guess` (unreadable words).
Axes: N samples, T frames of the speech model, C its letters.
"""

import http.client
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from config import READ_ERRORS, UserError
from lyrics.models import LISTENERS, SEPARATOR, AlignSettings, Source
from lyrics.spoken import spoken
from lyrics.timing import HELD, Line, Lyrics, Word
from support.audio import mono, read_wave
from support.files import one_line
from support.processes import pick_device

CHUNK_S = 20            # the model hears this much at once; whole seconds, so that all frames lie on one grid
CONTEXT_S = 5           # more on either side, so that borders are heard like the middle
SHORTEST_S = 3          # shorter recordings are padded: the number of frames gives the frame rate
PIECE_S, FADE_S = 12, 2              # of a mix that is separated at once; overlap with the next piece
SILENCE = 1e-4                       # peak: -80 dB
BLANK, BAR, STAR = 0, "|", "*"       # of CTC; between words, in some models; for anything, in some models
# Tokens for whatever is sung besides the lyrics, between lines and between words, and what they cost in nats
# a frame: enough that letters and pauses are preferred, and that lines hold together.
ASIDES = {"between lines": 0.1, "between words": 0.5}
NEVER, TURNS = -100.0, 8             # log probability; see `find`
DOUBT = 0.2                          # words whose letters are less likely, on average, are listed; a choice
HOLD_S, HOLD_DB = 5.0, -20.0         # the longest held note; the level at its end, relative to the word's
GUESS_S = 0.4                        # of a word that cannot be read, at most
Tokens = list[tuple[int, int]]       # letters, each with its word's number, and ASIDES, with -1


class Span(NamedTuple):
    """Where a word is: frames from start until before end, and its letters' mean probability."""
    start: int
    end: int
    score: float


def align(audio: Path, lyrics: Lyrics, settings: AlignSettings) -> Lyrics:
    """Give every word of the lyrics the times at which a recording sings it.

    Words are expected in the order of the lyrics; those of a line with a time, and of the lines without times
    after it, near this time (see `groups_of`). Whatever is sung besides the lyrics is skipped. Words that
    cannot be read get guessed times; they are listed on stderr, and so are doubtful ones.

    Args: audio, a sound file; lyrics, with times or without.
    Returns: the same lines; their words with start and end, without syllables and phones; lines with words
        begin and end with these.
    Raises: UserError for a recording that is missing, corrupt, silent or too short for the words, for lyrics
        without a readable word, and for a model that is unavailable.
    """
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

    # In seconds; the last frame may go on past the end. Lines begin and end with their words.
    times = [[min(frame / per_s, len(wave) / rate_hz) for frame in span] for span in times]
    aligned = lyrics.with_words(replace(word, start=start, end=end, phones=(), syllables=())
                                for word, (start, end) in zip(lyrics.words, times))
    return replace(aligned, lines=tuple(
        replace(line, start=line.words[0].start, end=line.words[-1].end) if line.words else line
        for line in aligned.lines))


def fetch(source: Source, device: torch.device, offline: bool) -> nn.Module:
    """A model with its published weights, which torchaudio downloads if they are not here.

    Raises: UserError if they are unavailable or corrupt.
    """
    path = source.path
    if not path.is_file():
        if offline:
            raise UserError(f"{source.name}: {path} is missing and --offline forbids to fetch it; put "
                            f"{source.url} there")
        print(f"fetching {source.name} from {source.url} to {path}, {source.size}; licence: "
              f"{source.licence}", file=sys.stderr)
    try:
        model = source.bundle.get_model(**source.options)
    except (*READ_ERRORS, http.client.HTTPException) as e:
        if path.is_file():
            raise UserError(f"{path}: corrupt, or no weights of {source.name}; delete it and it is fetched "
                            "again") from None
        raise UserError(f"{source.name} ({source.url}): {one_line(e)}; or put it at {path}") from None
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
    import torchaudio.functional as AF

    wanted_hz = SEPARATOR.bundle.sample_rate
    model = fetch(SEPARATOR, device, offline)
    wave = AF.resample(wave if len(wave) == 2 else wave.mean(0).expand(2, -1), rate_hz, wanted_hz)
    return separate(wave, model, PIECE_S * wanted_hz, FADE_S * wanted_hz, device)[None], wanted_hz


@torch.inference_mode()
def separate(wave: Tensor, model: nn.Module, size: int, fade: int, device: torch.device) -> Tensor:
    """The vocals of wave (2, N), mean of both channels: (N,).

    Pieces of `size` samples are separated; they fade into each other over `fade` samples.
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

    All chunks are equally long, unless the recording is shorter than one.
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

    An aside is about as likely as the likeliest label. BAR counts as a blank: not all models have it, and
    singers do not always pause.
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


def groups_of(lyrics: Lyrics, ids: dict[str, int], frames: int, per_s: int, margin_s: float
              ) -> list[list[tuple[Tokens, slice]]]:
    """What to look for, and where.

    A group is a line with a time and the lines without times after it. It is expected from margin_s before
    its time to margin_s after the next one's, or after its own end if that is later. The next one of a lead
    group is a lead group.
    Returns: for the lead, then for each backing line with a time, the groups: their tokens and frames. An
        aside precedes each line and each word; it also stands for words that cannot be read.
    """
    groups: list[list[Line]] = []
    for line in lyrics.lines:
        if line.start is not None or not groups:
            groups.append([])
        groups[-1].append(line)

    voices, number, (outer, inner) = {"lead": []}, 0, [(ids[name], -1) for name in ASIDES]
    for i, group in enumerate(groups):
        start, backing = group[0].start, group[0].backing and group[0].start is not None
        after = next((later[0] for later in groups[i + 1:] if backing or not later[0].backing), None)
        first_s = max(0.0, (start or 0.0) - margin_s)
        last = math.ceil((max(after.start, group[-1].end or 0.0) + margin_s) * per_s) if after else frames
        tokens = []
        for line in group:
            before = outer
            for word in line.words:
                letters = [(token, number) for token in spell(word, ids)]
                tokens += [before, *letters] if letters else []
                before, number = inner if letters else outer, number + 1
        voice = voices.setdefault(i if backing else "lead", [])
        voice.append((tokens, slice(math.floor(first_s * per_s), last)))
    return list(voices.values())


def find(audio: Path, lyrics: Lyrics, ids: dict[str, int], log_p: Tensor, per_s: int, margin_s: float
         ) -> list[Span | None]:
    """Where the words of the lyrics are in log_p (T, C); None for those that cannot be read.

    The groups of a voice (see `groups_of`) follow each other; each voice is looked for by itself.
    Raises: UserError if there are more letters than frames, or a line begins after the end.
    """
    frames, classes = log_p.shape
    for where, line, _ in lyrics.places():
        if (line.start or 0.0) * per_s >= frames:
            raise UserError(f"{audio}: {where}: its line begins at {line.start:.2f} s; the recording ends at "
                            f"{frames / per_s:.2f} s")
    spans = [None] * len(lyrics.words)
    for voice in groups_of(lyrics, ids, frames, per_s, margin_s):
        # Letters of a group are columns of their own, impossible elsewhere. TURNS later they are used again:
        # their order keeps such groups apart.
        near, tokens = torch.full((TURNS, frames, classes), NEVER), []
        for i, (group, place) in enumerate(voice):
            near[i % TURNS, place] = log_p[place]
            shift = (i % TURNS + 1) * classes
            tokens += [(token if number < 0 else token + shift, number) for token, number in group]
        tokens.append((ids[next(iter(ASIDES))], -1))
        need = len(tokens) + sum(a == b for (a, _), (b, _) in zip(tokens, tokens[1:]))
        if need > frames:
            raise UserError(f"{audio}: is {frames / per_s:.2f} s long; its words need {need / per_s:.2f} s or"
                            " more")
        for number, span in lay(torch.cat([log_p, *near], 1), tokens).items():
            spans[number] = span
    return spans


def lay(log_p: Tensor, tokens: Tokens, score: Callable[[Tensor], Tensor] = torch.exp) -> dict[int, Span]:
    """Find the likeliest path of tokens through log_p (T, C). Returns: a span for each word, by its number.

    Args: tokens, each with its word's number, -1 for none; score, from the path's log probabilities (T,) to
        the scores whose mean a span has.
    """
    import torchaudio.functional as AF

    path, scores = AF.forced_align(log_p[None], torch.tensor([[token for token, _ in tokens]]), blank=BLANK)
    runs = AF.merge_tokens(path[0], score(scores[0]), BLANK)                            # one for each token
    letters = {}
    for run, (_, number) in zip(runs, tokens, strict=True):
        letters.setdefault(number, []).append(run)
    letters.pop(-1, None)
    return {number: Span(own[0].start, own[-1].end, sum(run.score for run in own) / len(own))
            for number, own in letters.items()}


# Spans to times

def hold(spans: list[Span | None], power: Tensor, longest: int) -> list[Span | None]:
    """Let words last while the voice does: models hear only the beginning of a held sound.

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

    They stand right after the word before them if that is of the same line, else right before the next one.
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


def report(audio: Path, lyrics: Lyrics, spans: list[Span | None]) -> None:
    """List on stderr the words whose times are guessed, or doubtful."""
    named = [(where, span) for (where, *_), span in zip(lyrics.places(), spans)]
    unread = [where for where, span in named if span is None]
    doubtful = [f"{where} ({span.score:.2f})" for where, span in named if span and span.score < DOUBT]
    for names, what in ((unread, "cannot be read, their times are guessed"),
                        (doubtful, f"were hardly heard (below {DOUBT})")):
        if names:
            print(f"warning: {audio}: {len(names)} of {len(named)} words {what}: {'; '.join(names)}",
                  file=sys.stderr)
