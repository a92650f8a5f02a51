"""Trains weights/baby/phonemizer.pt: a small DeepPhonemizer forward model of the CMU dictionary in IPA.

    OMP_NUM_THREADS=1 python -m baby.phonemizer --out weights/baby/phonemizer.pt

It writes the checkpoint and, beside it, phonemizer_log.json: the settings and the error on held-out words.
Needs `pip install -r baby/requirements.txt`. Read `read_cmu` (the words), `train`, then `main`.

The file has the library's own keys, but weights in float16, the lexicon as one text, a line for each word,
which is read in a tenth of the time, and no `pos_encoder.pe`: that table is a fixed sinusoid of 5000 rows,
which the library rebuilds and which would be a third of the file.
"""

import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from baby.songs import PHONEMES, pronunciations
from config import Settings
from lyrics.pronounce import ipa
from support.cli import parse, run
from support.files import make_folder, replacing, write_json

LANG = "en_us"
LEXICON_WORDS = 50_000
HELD_OUT_WORDS = 2_000
BATCH, PEAK_LR, WARMUP_STEPS, SEED = 128, 1.5e-3, 400, 0
# no dropout: in so few epochs it only costs time (0.2 instead of 0.12 s a step)
MODEL = {"type": "transformer", "d_model": 160, "d_fft": 512, "layers": 4, "dropout": 0.0, "heads": 4}
CHAR_REPEATS = 2                       # slots a letter; too few for 80 abbreviations, a third faster than 3
# The part of the library's config that building and running a model needs.
CONFIG = {"preprocessing": {"languages": [LANG], "text_symbols": list("abcdefghijklmnopqrstuvwxyz"),
                            "phoneme_symbols": list(PHONEMES), "char_repeats": CHAR_REPEATS,
                            "lowercase": True},
          "model": MODEL}


@dataclass(frozen=True)
class PhonemizerSettings(Settings):
    out: Path = Path("weights/baby/phonemizer.pt")       # checkpoint
    steps: int = 6_500                                   # batches of 128 words; 12 minutes of one core


def read_cmu() -> tuple[dict[str, str], dict[str, str]]:
    """The first pronunciation of each CMU spelling: (words to learn, lexicon), both {word: IPA}.

    The model never sees apostrophes (the library strips them), so words to learn have none; where
    "we'll" and "well" collide the plain word wins and "we'll" stays in the lexicon under its own spelling.
    """
    from wordfreq import word_frequency
    said = {w: ipa(" ".join(p[0])) for w, p in pronunciations().items() if re.fullmatch("[a-z']+", w)}
    bare = {w: said[w] for w in said if "'" not in w}
    for word in sorted(said):
        bare.setdefault(word.replace("'", ""), said[word])
    lexicon = {}
    for word in sorted(said, key=lambda w: (-word_frequency(w, "en"), w))[:LEXICON_WORDS]:
        key = word.replace("'", "")
        lexicon[key] = bare[key]
        if said[word] != bare[key]:
            lexicon[word] = said[word]
    return bare, lexicon


def endless_batches(items: list[tuple]) -> Iterator[dict]:
    """Yield the library's batches of words of similar length, reshuffled each epoch."""
    from dp.training.dataset import PhonemizerDataset, collate_dataset
    dataset, rng = PhonemizerDataset(items), torch.Generator().manual_seed(SEED)
    while True:
        pools = torch.randperm(len(items), generator=rng).split(50 * BATCH)
        order = [i for pool in pools for i in sorted(pool.tolist(), key=lambda i: len(items[i][1]))]
        for b in torch.randperm(len(order) // BATCH, generator=rng).tolist():
            yield collate_dataset([dataset[i] for i in order[b * BATCH:(b + 1) * BATCH]])


def train(model: torch.nn.Module, items: list[tuple], steps: int) -> None:
    """Train in place with the library's CTC loss, Adam, linear warm-up and decay to 0, in bfloat16."""
    from dp.training.losses import CTCLoss
    criterion, optimizer = CTCLoss(), torch.optim.Adam(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / WARMUP_STEPS, 1.0) * (1 - s / steps))
    start, recent = time.time(), []
    for step, batch in zip(range(1, steps + 1), endless_batches(items)):
        # the plain attention: its backward is three times as fast as the fused one on such short words
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits = model(batch)
        loss = criterion(logits.float(), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if step % 200 == 0 or step == steps:
            print(f"step {step:6d}/{steps}  loss {sum(recent) / len(recent):7.4f}  "
                  f"{time.time() - start:6.0f} s", flush=True)
            recent = []
    model.eval()


def measure(model: torch.nn.Module, preprocessor, words: dict[str, str]) -> dict[str, float]:
    """Phoneme and word error rate of the model alone (no lexicon), one word per call."""
    from dp.model.predictor import Predictor
    from dp.training.metrics import phoneme_error       # not evaluate_samples: it sums uint8 and overflows
    predictor = Predictor(model, preprocessor)
    said = {word: predictor([word], LANG)[0].phonemes for word in words}
    wrong = sum(int(phoneme_error(said[word], ipa)[0]) for word, ipa in words.items())
    return {"per": round(wrong / sum(map(len, words.values())), 4),
            "wer": round(sum(said[word] != ipa for word, ipa in words.items()) / len(words), 4)}


def main(cfg: PhonemizerSettings) -> None:
    from dp.model.model import ForwardTransformer
    from dp.preprocessing.text import Preprocessor
    torch.set_num_threads(1)           # such small matrices are many times slower on two
    torch.manual_seed(SEED)            # initial weights
    start = time.time()
    make_folder(cfg.out.parent)

    # Held-out words, and words to learn, without those that are too long: CTC would be infinite.
    bare, lexicon = read_cmu()
    preprocessor, words = Preprocessor.from_config(CONFIG), sorted(bare)
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(SEED)).tolist()
    shuffled = [words[i] for i in order]
    held_out = {word: bare[word] for word in shuffled[:HELD_OUT_WORDS]}
    items = [preprocessor((LANG, word, bare[word])) for word in shuffled[HELD_OUT_WORDS:]]
    fits = [(lang, text, ipa) for lang, text, ipa in items
            if len(text) >= len(ipa) + sum(a == b for a, b in zip(ipa, ipa[1:]))]
    warnings.filterwarnings("ignore", message="enable_nested_tensor")
    model = ForwardTransformer.from_config(CONFIG)
    print(f"{len(fits)} words to learn ({len(items) - len(fits)} too long for CTC left out), "
          f"{len(lexicon)} in the lexicon, {sum(p.numel() for p in model.parameters() if p.requires_grad)} "
          "parameters", flush=True)
    train(model, fits, cfg.steps)

    # Measure the weights as they are stored, in half precision.
    weights = {k: v.half() for k, v in model.state_dict().items() if k != "pos_encoder.pe"}
    model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    rates = measure(model, preprocessor, held_out)
    text = "\n".join(f"{word}\t{lexicon[word]}" for word in sorted(lexicon))
    with replacing(cfg.out) as path:
        torch.save({"preprocessor": preprocessor, "config": CONFIG, "phoneme_dict": {LANG: text},
                    "step": cfg.steps, "model": weights}, path)
    log = {"model": MODEL, "char_repeats": CHAR_REPEATS, "batch": BATCH, "peak_lr": PEAK_LR,
           "warmup_steps": WARMUP_STEPS, "seed": SEED, "steps": cfg.steps, "train_words": len(fits),
           "held_out_words": len(held_out), "lexicon_words": len(lexicon), **rates,
           "seconds": round(time.time() - start), "bytes": cfg.out.stat().st_size}
    write_json(cfg.out.with_name("phonemizer_log.json"), log)
    print(f"held-out words: phoneme error rate {rates['per']:.2%}, word accuracy {1 - rates['wer']:.2%}; "
          f"{log['bytes']} bytes in {cfg.out}")


if __name__ == "__main__":
    run(lambda: main(parse(PhonemizerSettings, __doc__)))
