"""Every setting, size and unit of the method in one place.

Read from top to bottom: the parts of a model, PRESETS, then the settings of each command. The comment after
a setting is its `--help`; a comment line of its own names the group in which `--help` shows the settings
below it. support/cli.py makes the command lines. A setting's value is taken from, in rising order: its
default here, the model's preset, `--config FILE`, its flag. Rooms keep the settings of their own commands.
"""

import dataclasses
import math
import pickle
import struct
import typing
from dataclasses import dataclass
from pathlib import Path

# What a model's folder holds; those of training checkpoints and of prepared songs hold the last ones, too.
WEIGHTS, CONFIG, STYLES = "model.safetensors", "config.json", "styles.safetensors"
PHONEMIZER, AVERAGED, SILENCE = "phonemizer.pt", "ema.safetensors", "silence.pt"
CODEC = "codec.safetensors"

# Names that settings may have; phonemes.py and sampler.py say what they mean.
FILLERS = ("average_sparse", "average_repeat", "pad_right", "sung")
SOLVERS = ("euler", "ab2", "abm")
DTYPES = ("float32", "bfloat16", "float16")
FRAMES = ("song", "window")
GUIDANCE_WEIGHTS = {"none": 0, "single": 1, "dual": 2, "dual_fix": 2}     # how many weights a mode takes
SOUND_FORMATS = ("wav", "flac", "ogg", "mp3")

# Exceptions that reading a corrupt or foreign file can raise.
READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
               AssertionError, OverflowError, struct.error, pickle.UnpicklingError)
# Exceptions that end one song, not the run; a device without memory left raises RuntimeError.
SONG_ERRORS = (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError)


class UserError(ValueError):
    """A user's mistake: file, place, value and what would be accepted, in one line."""

    def __init__(self, text: str):
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


class Settings:
    """Base of settings classes: checks every value against its `within` or `one_of`. Raises: UserError."""
    prefix = ""               # stands before each flag: --data.shards

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, accepts = getattr(self, field.name), field.metadata.get("accepts", lambda value: True)
            if value is not None and not accepts(value):
                name = f"--{self.prefix}{field.name}".replace("_", "-")
                raise UserError(f"{name} {value}: expected {field.metadata['expected']}")


def within(default: object, low: float, high: float = math.inf) -> typing.Any:
    """A number from low to high, ends included; low = ABOVE_0 leaves out 0 itself."""
    lowest = "more than 0" if low == ABOVE_0 else f"{low} or more"
    return dataclasses.field(default=default, metadata={
        "accepts": lambda value: low <= value <= high and value < math.inf,
        "expected": lowest if high == math.inf else f"{low} to {high}"})


def one_of(default: object, choices: typing.Collection[str]) -> typing.Any:
    """A text that is one of `choices`."""
    return dataclasses.field(default=default, metadata={
        "accepts": lambda value: value in choices, "expected": f"one of {', '.join(choices)}"})


ABOVE_0 = math.ulp(0.0)       # the smallest number above 0


@dataclass(frozen=True)
class ModelConfig:
    """The network's sizes. A checkpoint holds all of them, so none has a default."""
    dim: int                  # width of the blocks, a multiple of 2 * heads and of 16
    depth: int                # blocks; the first half of them gets the text fusion
    heads: int                # attention heads
    ff_mult: int              # feed-forward width / dim
    mel_dim: int              # latent channels
    text_num_embeds: int      # rows of the phoneme table, less one
    text_dim: int             # width of the text branch, even
    cond_dim: int             # width of style and scalars
    conv_layers: int          # ConvNeXt blocks of the text branch
    max_frames: int           # latent frames of a window: longer songs are sung in several


@dataclass(frozen=True)
class CodecConfig:
    """Latents <-> wave. `hop` is samples per latent frame, for every kind."""
    kind: str                 # "sung": a voice's envelope and pitch; "oobleck": autoencoder
    sample_rate_hz: int
    hop: int
    # sung
    fold: int = 1             # short frames side by side in one latent frame
    mels: int = 0             # bands of the envelope
    ratios: int = 0           # bands of the ratio of harmonics to noise
    floor: float = 0.0        # magnitudes below it are silence
    log_mean: float = 0.0     # of the envelopes of the training songs, so that latents have mean 0
    log_std: float = 1.0      # likewise, so that latents have variance 1
    encoder_width: int = 0    # channels and blocks of the networks
    encoder_depth: int = 0
    decoder_depth: int = 0
    # oobleck
    wave_channels: int = 1
    latent_dim: int = 0
    width: int = 0            # channels beside the wave; each deeper level has multiples[i] times as many
    strides: tuple[int, ...] = ()        # of the encoder's levels; their product is hop
    multiples: tuple[int, ...] = ()
    decoder_width: int = 0    # like width, for the decoder alone; 0: the same; also of sung


@dataclass(frozen=True)
class Guidance:
    """How far conditions are exaggerated; see sampler.guide for the formulas and the neutral weights."""
    mode: str = "dual"                           # none, single, dual, dual_fix
    weights: tuple[float, ...] = (4.7, 2.6)      # (strength,) for single, (style, lyrics) for the dual modes
    range: tuple[float, float] = (0.05, 1.0)     # flow times between which guidance acts, ends included


@dataclass(frozen=True)
class Preset:
    """A whole model as it is used: everything that its weights do not say."""
    model: ModelConfig
    codec: CodecConfig
    filler: str               # how a word's phonemes fill its cells: one of FILLERS
    trim: bool                # compute only as many frames as the song has; else always max_frames
    guidance: Guidance
    style_encoder: str        # turns sound and text into styles: muq-mulan, or none
    negative_style: str       # what guidance leads away from: zeros, or vocal (published with JAM)
    repeats: bool             # whether lines that come again take the noise, so the tune, of before
    steps: int                # grid points of the sampler; one more than its steps
    solver: str = "euler"     # one of SOLVERS
    sway: float = 0.0         # how the grid's points lie: see sampler.time_grid


# The cheapest sampler whose error is that of 49 Euler steps: docs/solvers.md.
FAST = {"steps": 13, "solver": "abm", "sway": -1.0}

PRESETS = {
    # 6M parameters, made by baby/: sings a cappella in eight styles, 60 s in one window.
    "baby": Preset(
        ModelConfig(dim=256, depth=6, heads=4, ff_mult=3, mel_dim=151, text_num_embeds=64, text_dim=128,
                    cond_dim=128, conv_layers=2, max_frames=2816),
        CodecConfig("sung", sample_rate_hz=24000, hop=512, fold=2, mels=64, ratios=8, floor=4e-5,
                    log_mean=-8.9, log_std=1.3, encoder_width=144, encoder_depth=5, decoder_width=192,
                    decoder_depth=7),
        filler="sung", trim=True, guidance=Guidance("dual", (1.0, 2.0), (0.0, 1.0)),
        style_encoder="none", negative_style="zeros", repeats=True, **FAST),
    # 530M parameters, arXiv 2507.20880: whole songs, 232 s in a window. support/hub.py fetches its weights,
    # its codec and its style encoder.
    "jam-0.5": Preset(
        ModelConfig(dim=1408, depth=16, heads=32, ff_mult=4, mel_dim=64, text_num_embeds=256, text_dim=512,
                    cond_dim=512, conv_layers=4, max_frames=5000),
        CodecConfig("oobleck", sample_rate_hz=44100, hop=2048, wave_channels=2, latent_dim=64, width=128,
                    strides=(2, 4, 4, 8, 8), multiples=(1, 2, 4, 8, 16)),
        filler="average_sparse", trim=False, guidance=Guidance(),
        style_encoder="muq-mulan", negative_style="vocal", repeats=False, steps=50, solver="euler", sway=0.0),
}


@dataclass(frozen=True)
class SingSettings(Settings):
    """How a model sings, and how takes are judged."""
    # song
    model: str = "baby"                         # baby, jam-0.5, a .safetensors file, or a folder that holds
                                                #   model.safetensors
    seed: int = within(0, 0, 2 ** 63 - 1)       # the same seed gives the same song
    bpm: float = within(100.0, 20, 400)         # beats per minute, for lyrics without times
    voice: str | None = None                    # who sings: lead, backing, or a voice that the lyrics name
                                                #   (P1, v2); default: the lead and what answers it
    lexicon: Path | None = None                 # your own pronunciations: lines of a word and its IPA or
                                                #   ARPAbet
    # style
    style: tuple[str, ...] | None = None        # a style that the model names (baby: alto, tenor...), a sound
                                                #   file, or a saved vector (.npy, .pt, .safetensors), with an
                                                #   optional weight (a.mp3:0.7); repeat to blend; default: the
                                                #   model's first
    style_text: tuple[str, ...] | None = None   # the style in words, at most 300 characters, with an
                                                #   optional weight; repeat to blend, also with --style
    num_style_secs: float = within(30.0, 0.1)   # seconds of a sound file that its style is taken from
    style_start: float = within(0.0, 0)         # second of the sound file where they begin
    random_crop_style: bool = False             # begin them at a place that --seed chooses
    use_prompt_style: bool = False              # take the style from a manifest's prompt_path, not audio_path
    ignore_style: bool = False                  # sing in the negative style
    negative_style: str | None = None           # what guidance leads away from: zeros, vocal, or a file;
                                                #   default: the model's preset
    # sampler
    steps: int | None = within(None, 2, 10 ** 6)             # grid points of the sampler; default: the
                                                #   model's preset
    guidance: str | None = one_of(None, GUIDANCE_WEIGHTS)    # none, single, dual or dual_fix; default: the
                                                #   model's preset
    guidance_weights: tuple[float, ...] | None = None        # style and lyrics, e.g. 1,2; or one strength
    guidance_range: tuple[float, ...] | None = None          # flow times between which guidance acts:
                                                #   0,1
    sway: float | None = within(None, -1, 0)    # -1 to 0: below 0, more of the steps lie near the noise;
                                                #   default: the model's preset
    solver: str | None = one_of(None, SOLVERS)  # euler, ab2, or abm, the fewest steps for the same error;
                                                #   default: the model's preset
    fast: bool = False                          # 12 steps of abm, sway -1: a quarter of JAM-0.5's work (the
                                                #   embedded model's preset)
    frames: str | None = one_of(None, FRAMES)   # song: compute as many frames as it has; window: always all
                                                #   that the network reads; default: the model's preset
    device: str = "auto"                        # auto (CUDA, then MPS, then CPU), or a torch device
    dtype: str = one_of("auto", ("auto", *DTYPES))           # of the network: float32, as published, bfloat16
                                                #   or float16; auto: bfloat16 where the device computes in it
    threads: int | None = within(None, 1, 1024) # of the CPU; default: all, but of a manifest's songs
                                                #   OMP_NUM_THREADS, or 1
    compile: bool = False                       # torch.compile the network's blocks: a minute at the start,
                                                #   faster steps for songs of any length
    # choosing
    scorer: str = "phonemes:1,timing:1"         # phonemes, timing, style, audiobox, songeval,
                                                #   MODULE:FUNCTION, or a weighted sum of them
    recogniser: str | None = one_of(None, ("ear", "wav2vec2"))      # who listens for phonemes and timing: ear
                                                #   (songs of the embedded model) or wav2vec2 (real songs);
                                                #   default: by the model's codec
    separate: bool = True                       # for wav2vec2: separate the voice from the mix first
    # files
    vae: str | None = None                      # decoder: diffrhythm, stable-audio, or a local file; default:
                                                #   diffrhythm, if the model needs one
    trust_vae: bool = False                     # let a TorchScript decoder run code of its own; a flag only,
                                                #   no settings file can say so
    phonemizer: Path | None = None              # a DeepPhonemizer checkpoint; default: the model's own
    style_encoder: Path | None = None           # folder of MuQ-MuLan-large, MuQ-large-msd-iter and
                                                #   xlm-roberta-base; default: the hub's
    offline: bool = False                       # download nothing


@dataclass(frozen=True)
class SampleConfig(SingSettings):
    """Sing words, with times or without: one song, or all songs of a manifest."""
    # song
    lyrics: Path = Path("examples/hello.json")  # plain text, or timed words (JSON, LRC, SRT, ASS...)
    duration: float | None = None               # length in seconds; default: half a second after the last
                                                #   word
    from_: float | None = None                  # sing a part of it: the second where the part begins;
                                                #   default: the song's start
    to: float | None = None                     # the second where the part ends; default: the song's end
    out: Path = Path("song.wav")                # the song: .wav, .flac, .ogg or .mp3
    overwrite: bool = False                     # replace files that are not of an earlier song, and inputs
    force: bool = False                         # sing --config ACCOUNT though the model's files have changed
    page: bool = True                           # also write NAME.html, a page that plays the song, and
                                                #   NAME.png, its spectrogram
    # editing
    edit: Path | None = None                    # account of a finished song (NAME.json): sing again only what
                                                #   differs in --lyrics, and keep the rest to the bit; its
                                                #   settings are those of before, but for flags
    line: tuple[int, ...] | None = None         # sing these lines again, counted from 1; with --style in that
                                                #   style, with another --seed on another tune
    span: tuple[str, ...] | None = None         # sing these seconds again: 12.0-15.5; repeat for more
    variation: float | None = within(None, 0, 1)             # 0 to 1: how far the tune of what is sung again
                                                #   goes towards that of another --seed; without --line and
                                                #   --span of the whole song; default: all the way
    lead: float = within(0.0, 0, 36000)         # seconds to put in front of the song; --duration adds some at
                                                #   its end
    # choosing
    batch_infer_num: int = within(1, 1, 10 ** 5)             # variants of each song, with seeds counting up
                                                #   from --seed
    best_of: int = within(1, 1, 10 ** 5)        # sing so many takes, NAME-1, NAME-2..., with seeds counting
                                                #   up; the one with the best --scorer becomes the song
    # many songs
    manifest: Path | None = None                # JSON list of {id, audio_path, lrc_path, duration,
                                                #   prompt_path[, seed]}; needs --out-dir
    out_dir: Path | None = None                 # folder for a manifest's songs; finished ones are kept
    format: str | None = one_of(None, SOUND_FORMATS)         # format of a manifest's songs; default: mp3
    doctor: bool = False                        # list all assets, versions and devices, and what is missing;
                                                #   sing nothing


@dataclass(frozen=True)
class DataSettings(Settings):
    """Which songs of which shards, in which order."""
    prefix = "data."
    # data
    shards: tuple[str, ...] = ("baby/data/songs-*.tar",)     # WebDataset tars: files ({000..012}, * and ? are
                                                #   expanded), folders, http(s) addresses, - for standard
                                                #   input, or pipe: and a shell command; repeat for more
    pipe: bool = False                          # allow the shell commands of pipe: shards to run
    ids: Path | None = None                     # JSONL of {"id", "duration"}: train on these songs only
    min_duration: float = within(0.0, 0)        # seconds; train on longer songs only; needs --data.ids
    resample_duration: float | None = within(None, 0.001)    # seconds; keep a shorter song with probability
                                                #   (its duration / this) ^ 1.2, drawn anew each epoch; needs
                                                #   --data.ids
    from_start: bool = False                    # crop long songs at their beginning; else anywhere
    style_index: int | None = within(None, 0)   # which style of a song that has several; default: drawn
    replacement: bool = False                   # draw shards with replacement, as published; else each song
                                                #   once an epoch
    shuffle: bool = True                        # else songs come as they lie in the shards, and the shards as
                                                #   they are listed unless --data.replacement draws them
    bucket: int = within(1, 1)                  # consecutive songs of similar length, which saves padding;
                                                #   1: any order
    window: int = within(1000, 1)               # songs shuffled together where shards are streamed
    max_broken: float = within(0.01, 0, 1)      # broken songs are named and skipped; the run ends when their
                                                #   share exceeds this
    workers: int = within(2, 0)                 # reading processes of each training process; 0: none


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Train on WebDataset shards."""
    # model
    preset: str = one_of("baby", PRESETS)       # sizes of the model: a name in config.PRESETS
    max_frames: int | None = within(None, 1)    # longest crop, latent frames; default: the preset's
    init_from: Path | None = None               # start from these weights (.safetensors, or a model's folder)
    data: DataSettings = DataSettings()
    # files
    assets: Path | None = None                  # folder of phonemizer.pt, styles.safetensors and silence.pt,
                                                #   as tools.prepare leaves it; each checkpoint gets copies;
                                                #   default: weights/PRESET, or the hub's
    out: Path = Path("runs/baby")               # folder for checkpoints, log and samples
    resume: str = "auto"                        # auto: continue from the newest whole checkpoint in --out;
                                                #   none; or a checkpoint
    # optimisation
    steps: int = within(3000, 1)                # optimizer steps in all
    batch: int = within(8, 1)                   # songs that one process computes at once
    accumulate: int = within(1, 1)              # such batches of each process per step
    lr: float = within(1e-3, 0)                 # peak learning rate of AdamW
    warmup: int = within(200, 0)                # steps of linear warm-up
    decay: float = within(0.35, 0, 1)           # the last share of the steps after warm-up, over which the
                                                #   rate falls to 0
    weight_decay: float = within(0.01, 0)       # of AdamW
    clip: float = within(1.0, ABOVE_0)          # gradient L2 norm above which it is scaled down
    ema: float = within(0.999, 0, 1)            # decay of the averaged weights, which sing; 0: none
    drop_style: float = within(0.1, 0, 1)       # share of songs trained without style
    drop_text: float = within(0.5, 0, 1)        # share of those that are trained without text, too
    drop_per_batch: bool = False                # draw these for a whole batch, as published; else per song
    # machine
    bf16: bool = True                           # matrix products in bfloat16; weights stay float32
    fp16: bool = False                          # float16 instead, for a GPU without bfloat16: the loss is
                                                #   scaled, and a step whose gradient overflows is skipped
    gradient_checkpointing: bool = False        # compute the blocks twice, which saves memory
    compile: bool = False                       # torch.compile the blocks
    fsdp: bool = False                          # shard weights and optimizer over the processes (fully_shard)
    device: str = "auto"                        # auto (CUDA, then MPS, then CPU), or a torch device
    seed: int = within(0, 0, 2 ** 62)           # of weights, order, crops and noise
    # checkpoints and log
    save_every: int = within(500, 1)            # steps between checkpoints
    keep: int = within(3, 0)                    # newest checkpoints to keep; 0: all
    log_every: int = within(50, 1)              # steps between log lines
    max_loss: float = within(100.0, 0)          # a loss above it, or one that is not a number, ends the run
    validation: tuple[str, ...] = ()            # shards of held-out songs, as in --data.shards
    validate_every: int = within(500, 1)        # steps between validation losses
    validation_songs: int = within(64, 1)       # how many of them count, from the first
    listen: bool = True                         # at each checkpoint, sing the first validation (or training)
                                                #   song
    vae: Path | None = None                     # decoder of these songs, if the model needs one; without it
                                                #   checkpoints come without a song
    trust_vae: bool = False                     # let a TorchScript decoder run code of its own
    tensorboard: bool = True                    # write curves for TensorBoard
    wandb: str | None = None                    # PROJECT/NAME: also log to Weights & Biases
    wandb_mode: str = one_of("online", ("online", "offline"))       # online or offline


@dataclass(frozen=True)
class DPOConfig(TrainConfig):
    """Align a model with pairs of a better and a worse song."""
    # preference
    pairs: tuple[str, ...] = ()                 # JSON list of {win_latent, loss_latent, transcription,
                                                #   style[, gt_latent]}; repeat for more; --validation takes
                                                #   the same
    vae_sampled: bool = False                   # latents are posteriors (2C, frames), not generated ones
                                                #   (frames, C)
    beta: float = within(2000.0, ABOVE_0)       # how strongly the model is held to the reference
    sft: str = one_of("none", ("none", "win", "gt"))         # flow matching beside it: none, win (on
                                                #   winners), gt (on ground truth)
    sft_weight: float = within(0.2, 0)          # its weight
    reference: str = one_of("float32", ("float32", "precomputed"))     # the frozen reference: float32, as
                                                #   the model (its error in bfloat16, times beta, would be a
                                                #   preference); or precomputed: only its losses are kept,
                                                #   computed before the run


# Starting points for `--config NAME`. Source of the first three: the published templates of JAM-0.5, which
# need not equal the paper's runs. The templates' duration rules need a list: see --data.ids.
_published = dict(preset="jam-0.5", data=DataSettings(shards=(), replacement=True), batch=4, lr=7.5e-5,
                  warmup=10_000, decay=1.0, clip=10.0, ema=0.0, steps=750_000, save_every=10_000,
                  validate_every=10_000)
RECIPES = {
    "pretrain": TrainConfig(**_published, max_frames=2000, out=Path("runs/pretrain")),
    "sft": TrainConfig(**_published, gradient_checkpointing=True, out=Path("runs/sft")),
    "dpo": DPOConfig(**_published | {
        "data": DataSettings(), "batch": 1, "accumulate": 4, "lr": 5e-7, "warmup": 1000, "steps": 20_000,
        # In float32, as the original: beta, 2000, multiplies a difference of losses which bfloat16, with its
        # three digits, would drown in its own error.
        "bf16": False,
        "save_every": 100, "log_every": 8, "gradient_checkpointing": True, "listen": False,
        "out": Path("runs/dpo")}),
    "baby-pretrain": TrainConfig(data=DataSettings(bucket=8, workers=1), max_frames=320, lr=1.5e-3,
                                 steps=3200),
    "baby-sft": TrainConfig(data=DataSettings(bucket=8, workers=1), out=Path("runs/baby-sft"), steps=600,
                            batch=4, lr=5e-4, warmup=50, decay=1.0, init_from=Path("weights/baby")),
    "baby-dpo": DPOConfig(out=Path("runs/baby-dpo"), steps=150, lr=1e-5, warmup=15, decay=1.0, ema=0.0,
                          sft="win", bf16=False, save_every=50, log_every=10, listen=False,
                          init_from=Path("weights/baby")),
}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Measure finished songs: are the asked words heard, and when; how do they sound."""
    songs: Path                                 # a song with its account, NAME.mp3 and NAME.mp3.json, or a
                                                #   folder of them
    # songs
    manifest: Path | None = None                # what songs ID.mp3 without accounts were asked for
    against: Path | None = None                 # a second folder, or song, to compare with, song by song,
                                                #   where words, times and duration are the same
    out: Path | None = None                     # folder for evaluation.json and report.html; default: the
                                                #   songs'
    # measuring
    recogniser: str = one_of("ear", ("ear", "wav2vec2"))     # ear (songs of the embedded model) or wav2vec2
                                                #   (real songs)
    separate: bool = False                      # for wav2vec2: separate the voice from the mix first
    scorer: tuple[str, ...] | None = None       # one more number per song: style, audiobox, songeval,
                                                #   phonemes, timing, MODULE:FUNCTION, or a weighted sum
                                                #   (phonemes:1,timing:2); repeat for more
    style_encoder: Path | None = None           # folder of MuQ-MuLan-large, MuQ-large-msd-iter and
                                                #   xlm-roberta-base; default: the hub's
    seed: int = within(0, 0, 2 ** 63 - 1)       # of the draws behind the intervals
    device: str = "auto"                        # auto (CUDA, then MPS, then CPU), or a torch device
    offline: bool = False                       # download nothing
