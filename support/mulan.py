"""MuQ-MuLan of the library muq, built from its files on disk; downloads nothing, keeps random states.

Read `build_mulan` (the network, from three configs), then `load_mulan` (its weights) and `load_tokenizer`.
style.StyleEncoder puts them together.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from config import UserError
from support.files import read_json, reading

RATE_HZ = 24000               # sample rate of MuQ-MuLan's input
# Tensors of MuQ-MuLan's file that only its training uses: they may be missing or of any shape.
UNUSED = ("mulan.audio.aggregator.", "mulan.audio.model.model.cls_token",
          "mulan.audio.model.model.conformer.pos_conv_embed.", "mulan.audio.model.model.linear.",
          "mulan.audio.model.model.rvq.", "mulan.contrast.", "mulan.text.model.embeddings.position_ids",
          "mulan.text.model.pooler.")
NEEDS = "the style encoder needs: pip install muq==0.1.0 transformers==5.15.1 torchvision==0.26.0"


@contextlib.contextmanager
def same_randomness() -> Iterator[None]:
    """Restore the random states of torch and Python afterwards: muq seeds both and draws from them."""
    state = random.getstate()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        try:
            yield
        finally:
            random.setstate(state)


def build_mulan(mulan: Path, muq: Path, xlmr: Path) -> nn.Module:
    """Build MuQ-MuLan with random weights.

    Args: config.json of MuQ-MuLan, of MuQ and of XLM-R.
    Raises: UserError if one is missing or another model's; ImportError if a library is not installed.
    """
    try:
        from huggingface_hub.errors import StrictDataclassError
        from muq import MuQ, MuQConfig, MuQMuLan
        from muq.muq_mulan.models.audio import AudioSpectrogramTransformerPretrained
        from muq.muq_mulan.models.text import TextTransformerPretrained
        from transformers import XLMRobertaConfig, XLMRobertaModel
    except ModuleNotFoundError as e:
        raise ImportError(f"{e}; {NEEDS}") from e

    def build(path: Path, make: Callable[[dict], nn.Module]) -> nn.Module:
        with reading(path, "not a config of MuQ-MuLan's parts", ArithmeticError, StrictDataclassError):
            return make(read_json(path))

    of_sound = build(muq, lambda values: MuQ(MuQConfig(**values)))
    of_text = build(xlmr, lambda values: XLMRobertaModel(XLMRobertaConfig.from_dict(values)))
    # muq would load these two from the hub, by the names in its config.
    with (mock.patch.object(AudioSpectrogramTransformerPretrained, "_init_pretrained_model",
                            lambda self, name: setattr(self, "model", of_sound)),
          mock.patch.object(TextTransformerPretrained, "_init_pretrained_model", lambda self: of_text)):
        model = build(mulan, MuQMuLan)
    if model.sr != RATE_HZ:
        raise UserError(f"{mulan}: mulan.sr is {model.sr}; expected {RATE_HZ}")
    return model


def load_mulan(model: nn.Module, path: Path) -> None:
    """Load MuQ-MuLan's weights, memory-mapped.

    Raises: UserError if the file is corrupt, lacks a tensor that is used, or has an unknown one or one of
        another shape.
    """
    with reading(path, "cannot be read as weights"):
        given = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(given, dict) or not all(isinstance(v, Tensor) for v in given.values()):
        raise UserError(f"{path}: not weights; expected tensors by name")
    given = {str(name): tensor for name, tensor in given.items() if not str(name).startswith(UNUSED)}
    found, wanted = ({name: f"{tuple(x.shape)} {'float' if x.is_floating_point() else x.dtype}"
                      for name, x in tensors.items() if not name.startswith(UNUSED)}
                     for tensors in (given, model.state_dict()))
    wrong = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
    if wrong:
        raise UserError(f"{path}: not MuQ-MuLan's; tensors that differ: {len(wrong)}, such as {wrong[0]}: "
                        f"{found.get(wrong[0], 'missing')}; expected {wanted.get(wrong[0], 'none')}")
    model.load_state_dict(given, strict=False, assign=True)


def load_tokenizer(path: Path, sizes: Any) -> Callable[..., Any]:
    """XLM-R's tokenizer with the signature that muq calls: texts -> ids.

    transformers' own class would rebuild the rules rather than take them from the file.
    Args: path of tokenizer.json; sizes, XLM-R's config.
    Raises: UserError if the file is corrupt or does not fit the config.
    """
    from tokenizers import Tokenizer
    from transformers import BatchEncoding

    read_json(path)                                          # for its errors, which name line and column
    with reading(path, "not a tokenizer", Exception):        # tokenizers has no class of its own
        tokenizer = Tokenizer.from_file(str(path))
    tokens, begin = tokenizer.get_vocab_size(), tokenizer.token_to_id("<s>")
    if tokens > sizes.vocab_size or begin != sizes.bos_token_id:
        raise UserError(f"{path}: not XLM-R's tokenizer: {tokens} tokens, <s> is {begin}; expected "
                        f"{sizes.vocab_size} at most, <s> {sizes.bos_token_id}")
    tokenizer.enable_truncation(sizes.max_position_embeddings - sizes.pad_token_id - 1)      # 512 of 514
    tokenizer.no_padding()

    def tokenize(texts: list[str], **ignored: object) -> Any:
        ids = torch.tensor([tokenizer.encode(text).ids for text in texts])           # (1, tokens)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    return tokenize
