"""The settings of tools/prepare.py: a command line is read before torch is imported, which takes seconds."""

import dataclasses
from pathlib import Path

from config import PRESETS, one_of, within
from lyrics.models import LISTENERS
from lyrics.pronounce import ReadSettings

SHORTEST_S = 1.0               # of a recording


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig(ReadSettings):
    """Make shards of recordings and their lyrics: NAME.mp3 beside NAME.lrc (or another format of lyrics)."""
    # songs
    songs: Path = Path("recordings")            # folder of recordings (.wav, .flac, .ogg, .mp3) and lyrics;
                                                #   its subfolders count, too
    out: Path = Path("shards")                  # folder for shards, list of songs, silence and report;
                                                #   finished shards are kept
    # model
    preset: str = one_of("baby", PRESETS)       # the model to train: a name in config.PRESETS
    phonemizer: Path | None = None              # a DeepPhonemizer checkpoint; default: the model's own
    vae: str | None = None                      # encoder: diffrhythm, stable-audio, or a local file;
                                                #   default: diffrhythm, if the model needs one
    trust_vae: bool = False                     # let a TorchScript encoder run code of its own
    # style
    style: tuple[str, ...] | None = None        # style of all songs without a NAME.style.npy (.pt,
                                                #   .safetensors) of their own: one that the model names, or
                                                #   a saved vector; default: the style of the recording, if
                                                #   the model has a style encoder
    styles: Path | None = None                  # file of the styles that the model names; default: the
                                                #   model's own
    style_windows: int = within(4, 1)           # parts of a recording whose styles are kept, spread over its
                                                #   length
    num_style_secs: float = within(30.0, 0.1)   # seconds of each part
    style_encoder: Path | None = None           # folder of MuQ-MuLan-large, MuQ-large-msd-iter and
                                                #   xlm-roberta-base; default: the hub's
    # alignment
    model: str = one_of("mms", LISTENERS)       # aligner for lyrics without word times: mms or wav2vec2
    separate: bool = True                       # separate the voice from the mix before aligning
    # shards
    longest: float = within(600.0, SHORTEST_S)  # seconds; longer recordings are rejected
    dtype: str = one_of("float32", ("float32", "float16"))   # of the latents: float32, as published, or
                                                #   float16, half the size
    songs_per_shard: int = within(100, 1)       # songs in each shard
    max_rejected: float = within(1.0, 0, 1)     # share of rejected songs above which the exit code is 1
    device: str = "auto"                        # auto (CUDA, then MPS, then CPU), or a torch device
    offline: bool = False                       # download nothing
