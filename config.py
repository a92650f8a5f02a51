"""Every setting, size and unit in one place.

Read from top to bottom: the parts of a model, PRESETS, then the settings of each command. cli.py makes the
command lines from these classes. A setting's value is taken from, in rising order: its default here, the
model's preset, `--config FILE`, its flag.
"""

import math
import pickle
import struct
import typing
from dataclasses import dataclass, field
from pathlib import Path

# Names that settings may have; phonemes.py and model.py say what they mean.
FILLERS = ("average_sparse", "average_repeat", "pad_right", "sung")
GUIDANCE_WEIGHTS = {"none": 0, "single": 1, "dual": 2, "dual_fix": 2}     # how many weights a mode takes

# What a model's folder holds.
WEIGHTS, CONFIG, STYLES, PHONEMIZER = (
    "model.safetensors", "config.json", "styles.safetensors", "phonemizer.pt")
# And what a training checkpoint and prepared songs hold besides.
AVERAGED, SILENCE = "ema.safetensors", "silence.pt"


# All that reading a broken or foreign file led to.
READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
               AssertionError, struct.error, pickle.UnpicklingError)


class UserError(ValueError):
    """A mistake in what the user gave: file, place, value and what would be accepted, in one line."""

    def __init__(self, text: str):
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def setting(default: object, text: str, short: str = "") -> typing.Any:
    """A dataclass field with its unit, range and reason; `--help` prints the text. `short` as in -o."""
    return field(default=default, metadata={"help": text, "short": short})


def argument(text: str) -> typing.Any:
    """A setting without a name on the command line, which has to be given."""
    return field(metadata={"help": text})


@dataclass(frozen=True)
class ModelConfig:
    """The network's sizes; all of them are in a checkpoint, so none has a default."""
    dim: int                  # width of the blocks, a multiple of heads and of 16
    depth: int                # blocks; the first half of them gets the text fusion
    heads: int                # attention heads
    ff_mult: int              # feed-forward width / dim
    mel_dim: int              # latent channels
    text_num_embeds: int      # rows of the phoneme table, less one
    text_dim: int             # width of the text branch
    cond_dim: int             # width of style and scalars
    conv_layers: int          # ConvNeXt blocks of the text branch
    max_frames: int           # longest song, latent frames


@dataclass(frozen=True)
class CodecConfig:
    """Latents <-> wave. `hop` is samples per latent frame, for every kind."""
    kind: str                 # "mel": log-mel spectrogram and Griffin-Lim; "oobleck": autoencoder
    sample_rate_hz: int
    hop: int
    # mel
    fold: int = 1             # mel frames side by side in one latent frame
    n_fft: int = 0
    window: int = 0           # samples of the Hann window, n_fft at most
    mels: int = 0
    floor: float = 0.0        # mel magnitudes below it are silence
    log_mean: float = 0.0     # of the log-mel values of the training songs, so that latents have mean 0
    log_std: float = 1.0      # likewise, so that latents have variance 1
    griffin_lim_steps: int = 0
    # oobleck
    wave_channels: int = 1
    latent_dim: int = 0
    width: int = 0            # channels beside the wave; each deeper level has multiples[i] times as many
    strides: tuple[int, ...] = ()        # of the encoder's levels; their product is hop
    multiples: tuple[int, ...] = ()


@dataclass(frozen=True)
class Guidance:
    """How far conditions are exaggerated; see model.guide for the formulas and the neutral weights."""
    mode: str = "dual"                           # none, single, dual, dual_fix
    weights: tuple[float, ...] = (4.7, 2.6)      # (strength,) for single, (style, lyrics) for the dual modes
    range: tuple[float, float] = (0.05, 1.0)     # flow times between which guidance acts, ends included


@dataclass(frozen=True)
class Preset:
    """A whole model as it is used: what its weights cannot tell by themselves."""
    model: ModelConfig
    codec: CodecConfig
    filler: str               # how a word's phonemes fill its cells: one of FILLERS
    trim: bool                # sample only as many frames as the song has; else always max_frames
    guidance: Guidance
    style_encoder: str        # makes styles of sound and text: muq-mulan, or none
    negative_style: str       # what guidance leads away from: zeros, or vocal (published with JAM)
    steps: int                # grid points of the sampler; one more than its Euler steps


PRESETS = {
    # 5M parameters, made by baby/: sings a cappella, up to 20 s, from flite's two voices.
    "baby": Preset(
        ModelConfig(dim=256, depth=5, heads=4, ff_mult=3, mel_dim=160, text_num_embeds=64, text_dim=128,
                    cond_dim=128, conv_layers=2, max_frames=960),
        CodecConfig("mel", sample_rate_hz=24000, hop=512, fold=2, n_fft=2048, window=1024, mels=80,
                    floor=5e-3, log_mean=-1.5, log_std=2.3, griffin_lim_steps=80),
        filler="sung", trim=True, guidance=Guidance("dual", (1.0, 2.0), (0.0, 1.0)),
        style_encoder="none", negative_style="zeros", steps=32),
    # 530M parameters, arXiv 2507.20880: whole songs, up to 232 s. Weights, codec and style encoder come from
    # the hub (see hub.py).
    "jam-0.5": Preset(
        ModelConfig(dim=1408, depth=16, heads=32, ff_mult=4, mel_dim=64, text_num_embeds=256, text_dim=512,
                    cond_dim=512, conv_layers=4, max_frames=5000),
        CodecConfig("oobleck", sample_rate_hz=44100, hop=2048, wave_channels=2, latent_dim=64, width=128,
                    strides=(2, 4, 4, 8, 8), multiples=(1, 2, 4, 8, 16)),
        filler="average_sparse", trim=False, guidance=Guidance(),
        style_encoder="muq-mulan", negative_style="vocal", steps=50),
}


@dataclass(frozen=True)
class PlanSettings:
    """How words without times are placed."""
    bpm: float = setting(100.0, "beats a minute of lines without times, 20..400")
    beats_per_bar: int = setting(4, "beats of a bar, 1..16; a section starts on a bar, a line on half a bar "
                                   "(an odd number: on a beat)")
    bars_per_line: float | None = setting(None, "bars a line takes; default: what its syllables need")
    duration: float | None = setting(None, "seconds that the song is fitted into; default: as --bpm has it")
    start_s: float = setting(0.5, "second at which the first bar starts")
    gap_bars: float = setting(2.0, "bars of a section without words: [Intro], [Break], [Solo], [Outro]")
    section_bars: float = setting(0.0, "bars of rest before a section, beyond what takes it to the next bar")

    def __post_init__(self):
        for name, low, high in (("bpm", 20, 400), ("beats_per_bar", 1, 16), ("bars_per_line", 0.25, 64),
                                ("duration", 1, 36000), ("start_s", 0, 3600), ("gap_bars", 0, 64),
                                ("section_bars", 0, 64)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"{name} is {value}; expected {low}..{high}")


@dataclass(frozen=True)
class SingSettings:
    """How a model sings, and by what its songs are chosen."""
    model: str = setting("baby", "baby, jam-0.5, a .safetensors file, or a folder with model.safetensors")
    seed: int = setting(0, "same seed, same song")
    bpm: float = setting(PlanSettings.bpm, "beats a minute of lyrics without times")
    lexicon: Path | None = setting(None, "pronunciations of your own: lines of a word and its IPA or ARPAbet")
    # Style
    style: tuple[str, ...] | None = setting(
        None, "a style that the model names (baby: female, male), a sound file, or a saved vector (.npy, "
        ".pt, .safetensors), with a weight if you like (a.mp3:0.7); again for a blend; default: the first")
    style_text: tuple[str, ...] | None = setting(
        None, "the style in words, 300 characters at most, with a weight if you like; blends with --style")
    num_style_secs: float = setting(30.0, "seconds of a sound file that its style is taken from")
    style_start: float = setting(0.0, "second of the sound file where they begin")
    random_crop_style: bool = setting(False, "begin them anywhere, by --seed")
    use_prompt_style: bool = setting(False, "style from a manifest's prompt_path, not its audio_path")
    ignore_style: bool = setting(False, "sing in the negative style")
    negative_style: str | None = setting(
        None, "what guidance leads away from: zeros, vocal, or a file; default: the model's preset")
    # Sampler
    steps: int | None = setting(None, "grid points of the sampler, 2 or more; default: the model's preset")
    guidance: str | None = setting(None, "none, single, dual or dual_fix; default: the model's preset")
    guidance_weights: tuple[float, ...] | None = setting(None, "style and lyrics, e.g. 1,2; or one strength")
    guidance_range: tuple[float, ...] | None = setting(
        None, "flow times between which guidance acts, e.g. 0,1")
    sway: float | None = setting(None, "-1..0: more steps near the noise")
    device: str = setting("auto", "auto (CUDA, then MPS, then CPU), or a torch device")
    dtype: str = setting("float32", "float32, as published, or bfloat16, half the memory")
    # What songs are chosen by
    scorer: str = setting("phonemes:1,timing:1", "phonemes, timing, style, audiobox, songeval, "
                                                 "MODULE:FUNCTION, or a sum of them; see evaluate.py")
    recogniser: str | None = setting(
        None, "what listens for phonemes and timing: ear (songs of the embedded model) or wav2vec2 (real "
        "songs); default: by the model's codec")
    separate: bool = setting(True, "for wav2vec2: take the voice out of the mix first")
    # Where the parts of a model lie
    vae: str | None = setting(
        None, "decoder: diffrhythm, stable-audio, or a local file; default: diffrhythm where one is needed")
    phonemizer: Path | None = setting(None, "a DeepPhonemizer checkpoint; default: the model's own")
    style_encoder: Path | None = setting(
        None, "folder with MuQ-MuLan-large, MuQ-large-msd-iter and xlm-roberta-base; default: the hub's")
    offline: bool = setting(False, "use what is on this machine only")


@dataclass(frozen=True)
class SampleConfig(SingSettings):
    """Sing words, with times or without: one song, or all songs of a manifest."""
    lyrics: Path = setting(Path("examples/hello.json"), "plain text, or timed words (JSON, LRC, SRT, ASS...)")
    duration: float | None = setting(None, "length in seconds; default: half a second after the last word")
    out: Path = setting(Path("song.wav"), "result; .wav, .flac, .ogg or .mp3")
    page: bool = setting(True, "write NAME.html, to hear and read the song, and NAME.png, its spectrogram")
    batch_infer_num: int = setting(1, "variants of each song, with seeds counting up from --seed")
    best_of: int = setting(1, "candidates of each song, NAME-1, NAME-2..., with seeds counting up; the one "
                              "that --scorer likes best is the song")
    # Many songs
    manifest: Path | None = setting(
        None, "JSON list of {id, audio_path, lrc_path, duration, prompt_path[, seed]}; needs --out-dir")
    out_dir: Path | None = setting(None, "folder of a manifest's songs; finished ones are not made again")
    format: str | None = setting(None, "wav, flac, ogg or mp3, of a manifest's songs; default: mp3")
    doctor: bool = setting(False, "list all assets, versions and devices, and what is missing; sing nothing")


@dataclass(frozen=True)
class PairsConfig(SingSettings):
    """Let a model sing each prompt several times, and pair its best song with its worst."""
    manifest: Path = setting(Path("prompts.json"), "prompts: a manifest as sample.py takes it; an entry may "
                                                   "have gt_latent, the posterior of a true song")
    out: Path = setting(Path("pairs"), "folder; round-N/pairs.json in it is what train_dpo.py takes")
    round: int = setting(1, "of several; each has seeds of its own")
    candidates: int = setting(4, "songs of each prompt, 2 to 1000")
    margin: float = setting(0.0, "a pair's scores differ by more than this; prompts without are left out")


@dataclass(frozen=True)
class BenchConfig:
    """Measure a model with random weights."""
    what: str = setting("sample", "sample: singing a song; train: optimizer steps")
    preset: str = setting("jam-0.5", "sizes of the model: a name in config.PRESETS")
    duration: float | None = setting(None, "seconds of the song; default: the longest that the model sings")
    steps: int = setting(2, "grid points of the sampler, or optimizer steps, the first of which is not timed "
                            "(1 on a CPU: count memory alone)")
    batch: int = setting(1, "songs of an optimizer step")
    gradient_checkpointing: bool = setting(False, "compute the blocks twice, to keep less in memory")
    compile: bool = setting(False, "torch.compile the blocks of optimizer steps")
    dtype: str = setting("bfloat16", "float32 or bfloat16")
    device: str = setting("auto", "auto (CUDA, then MPS, then CPU), or a torch device")


@dataclass(frozen=True)
class AlignSettings:
    """Find the times of the words in a recording."""
    model: str = setting("mms", "mms (1,130 languages, non-commercial) or wav2vec2 (English speech)")
    separate: bool = setting(True, "take the voice out of the mix first; false for a voice alone")
    margin: float = setting(1.0, "seconds by which lines may miss their own times, where they have some")
    device: str = setting("auto", "auto (CUDA, then MPS, then CPU), or a torch device")
    offline: bool = setting(False, "use what is on this machine only")


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """How words are pronounced."""
    phonemizer: Path = setting(Path("weights/baby/phonemizer.pt"), "a DeepPhonemizer checkpoint")
    lexicon: Path | None = setting(None, "pronunciations of your own: lines of a word and its IPA or ARPAbet")


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PlanSettings, ReadSettings):
    """Give words their times: plain text on a beat grid, lines with times word by word, gaps filled."""
    input: Path = argument("lyrics in any format; plain text may have [Verse], (backing) and blank lines")
    out: Path | None = setting(None, "where the plan goes; default: the terminal, as LRC", "-o")
    to: str | None = setting(None, "its format, by name; default: by the ending of --out")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(ReadSettings):
    """Tell what of timed lyrics cannot be sung (errors), may be sung badly (warnings), is guessed (notes)."""
    input: Path = argument("lyrics in any format")
    duration: float | None = setting(None, "seconds of the song; default: up to its last word")
    preset: str = setting("baby", "model that shall sing it, for its grid: a name in config.PRESETS")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Write lyrics in another format."""
    input: Path = argument("lyrics in any format")
    output: Path = argument("where they go")
    to: str | None = setting(None, "format by name (ultrastar, audacity, json...); default: by the ending")


@dataclass(frozen=True, kw_only=True)
class AlignConfig(AlignSettings):
    """Find the times at which a recording sings the words of its lyrics."""
    audio: Path = argument("the recording: .mp3, .wav, .flac or .ogg")
    input: Path = argument("its lyrics in any format, with times or without")
    out: Path | None = setting(None, "where the timed lyrics go; default: the terminal, as LRC", "-o")
    to: str | None = setting(None, "their format, by name; default: by the ending of --out")


@dataclass(frozen=True)
class DataSettings:
    """Which songs of which shards, in which order."""
    shards: tuple[str, ...] = setting(
        ("baby/data/songs-*.tar",), "WebDataset tars: files ({000..012}, * and ? are expanded), folders, "
        "http(s) addresses, - for standard input, pipe: and a shell command; again for more")
    pipe: bool = setting(False, "run the shell commands of pipe: shards")
    ids: Path | None = setting(None, 'JSONL of {"id", "duration"}: take these songs only')
    min_duration: float = setting(0.0, "seconds; take longer songs only; needs --data.ids")
    resample_duration: float | None = setting(
        None, "seconds; keep a shorter song with probability (its duration / this) ^ 1.2, drawn anew each "
        "epoch; needs --data.ids")
    from_start: bool = setting(False, "crop long songs at their beginning; else anywhere")
    style_index: int | None = setting(None, "which style of a song that has several; default: drawn")
    replacement: bool = setting(
        False, "draw shards with replacement, as published; else each song once an epoch")
    bucket: int = setting(1, "songs of like length that follow one another, to save padding; 1: any order")
    window: int = setting(1000, "songs that are shuffled together where shards are streamed, not files")
    max_broken: float = setting(
        0.01, "share of broken songs, which are named and passed over, above which the run ends")
    workers: int = setting(2, "processes that read songs, of each training process; 0: none")

    def __post_init__(self):
        for name, low, high in (("bucket", 1, math.inf), ("window", 1, math.inf), ("workers", 0, math.inf),
                                ("min_duration", 0, math.inf), ("resample_duration", 0.001, math.inf),
                                ("style_index", 0, math.inf), ("max_broken", 0, 1)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"--data.{name.replace('_', '-')} {value}: expected {low} to {high}")


@dataclass(frozen=True)
class TrainConfig:
    """Train on WebDataset shards."""
    preset: str = setting("baby", "sizes of the model: a name in config.PRESETS")
    max_frames: int | None = setting(None, "longest song or crop, latent frames; default: the preset's")
    data: DataSettings = DataSettings()
    assets: Path | None = setting(
        None, "folder of phonemizer.pt, styles.safetensors and silence.pt, as data.py prepare leaves them; "
        "each checkpoint gets copies; default: weights/PRESET, or what the hub has")
    out: Path = setting(Path("runs/baby"), "folder of checkpoints, log and samples")
    resume: str = setting("auto", "auto: go on from --out's newest whole checkpoint; none; or a checkpoint")
    init_from: Path | None = setting(
        None, "start from these weights (.safetensors, or a model's folder), not from fresh ones")
    # Steps
    steps: int = setting(3000, "optimizer steps in all")
    batch: int = setting(8, "songs that one process computes at once")
    accumulate: int = setting(1, "such batches of each process per step")
    lr: float = setting(1e-3, "peak learning rate of AdamW")
    warmup: int = setting(200, "steps of linear warm-up")
    decay: float = setting(
        0.35, "share of the steps after warm-up, at the end, over which the rate falls to 0; 0..1")
    weight_decay: float = setting(0.01, "of AdamW")
    clip: float = setting(1.0, "gradient L2 norm above which it is scaled down")
    ema: float = setting(0.999, "decay of the averaged weights that are saved for sampling; 0 for none")
    drop_style: float = setting(0.1, "share of songs trained without style")
    drop_text: float = setting(0.5, "share of those trained without text, too")
    drop_per_batch: bool = setting(False, "draw these for a whole batch, as published; else for each song")
    # Machine
    bf16: bool = setting(True, "matrix products in bfloat16; weights stay float32")
    gradient_checkpointing: bool = setting(False, "compute the blocks twice, to keep less in memory")
    compile: bool = setting(False, "torch.compile the blocks")
    fsdp: bool = setting(False, "share out weights and optimizer over the processes (fully_shard)")
    device: str = setting("auto", "auto (CUDA, then MPS, then CPU), or a torch device")
    seed: int = setting(0, "of weights, order, crops and noise")
    # What the run tells, and leaves
    save_every: int = setting(500, "steps between checkpoints")
    keep: int = setting(3, "newest checkpoints to keep; 0: all")
    log_every: int = setting(50, "steps between log lines")
    max_loss: float = setting(100.0, "a loss above it, or one that is no number, ends the run")
    validation: tuple[str, ...] = setting((), "shards of songs that are not trained on, as in --data.shards")
    validate_every: int = setting(500, "steps between validation losses")
    validation_songs: int = setting(64, "of them, the first ones")
    listen: bool = setting(True, "at each checkpoint, sing the first validation song (or training song)")
    vae: Path | None = setting(None, "decoder of these songs where the model needs one; without: no sound")
    tensorboard: bool = setting(True, "write curves for TensorBoard")
    wandb: str | None = setting(None, "PROJECT/NAME: send them to Weights & Biases, too, if it is installed")
    wandb_mode: str = setting("online", "online or offline")


@dataclass(frozen=True)
class DPOConfig(TrainConfig):
    """Align a model with pairs of a better and a worse song."""
    pairs: tuple[str, ...] = setting((), "JSON list of {win_latent, loss_latent, transcription, style"
                                         "[, gt_latent]}; again for more; --validation takes such, too")
    vae_sampled: bool = setting(False, "latents are posteriors (2C, frames), not generated ones (frames, C)")
    beta: float = setting(2000.0, "how strongly the model is held to the reference")
    sft: str = setting("none", "flow matching beside it: none, win (on winners), gt (on ground truth)")
    sft_weight: float = setting(0.2, "its weight")
    reference: str = setting("float32", "the frozen reference: float32; bfloat16, half as large; or "
                                        "precomputed: its losses alone are kept, worked out before the run")


# Starting points for `--config NAME`. Source of the first three: the published templates of JAM-0.5, which
# need not equal the paper's runs. The templates' duration rules need a list: see --data.ids.
_published = dict(preset="jam-0.5", data=DataSettings(shards=(), replacement=True), batch=4, lr=7.5e-5,
                  warmup=10_000, decay=1.0, clip=10.0, ema=0.0, steps=750_000, save_every=10_000,
                  validate_every=10_000)
RECIPES = {
    "pretrain": TrainConfig(**_published, max_frames=2000, out=Path("runs/pretrain")),
    "sft": TrainConfig(**_published, gradient_checkpointing=True, out=Path("runs/sft")),
    "dpo": DPOConfig(**_published | {
        "batch": 1, "accumulate": 4, "lr": 5e-7, "warmup": 1000, "steps": 20_000, "save_every": 100,
        "log_every": 8, "gradient_checkpointing": True, "listen": False, "out": Path("runs/dpo")}),
    "baby-pretrain": TrainConfig(data=DataSettings(bucket=8, workers=1)),
    "baby-sft": TrainConfig(data=DataSettings(bucket=8, workers=1), out=Path("runs/baby-sft"), steps=300,
                            lr=1e-4, warmup=30, decay=1.0, init_from=Path("weights/baby")),
    "baby-dpo": DPOConfig(out=Path("runs/baby-dpo"), steps=150, lr=1e-5, warmup=15, decay=1.0, ema=0.0,
                          sft="win", bf16=False, save_every=50, log_every=10, listen=False,
                          init_from=Path("weights/baby")),
}


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(ReadSettings):
    """Make shards of recordings and their lyrics: NAME.mp3 beside NAME.lrc (or any format of lyrics.py)."""
    songs: Path = setting(Path("songs"), "folder of recordings (.wav, .flac, .ogg, .mp3) and lyrics, with "
                                         "all folders in it")
    out: Path = setting(Path("shards"), "folder of shards, list of songs, silence and report; finished "
                                        "shards are not made again")
    preset: str = setting("baby", "model they are for: a name in config.PRESETS")
    phonemizer: Path | None = setting(None, "a DeepPhonemizer checkpoint; default: the model's own")
    vae: str | None = setting(
        None, "encoder: diffrhythm, stable-audio, or a local file; default: diffrhythm where one is needed")
    style: tuple[str, ...] | None = setting(
        None, "style of all songs that have no NAME.style.npy (.pt, .safetensors) of their own: one that the "
        "model names, or a saved vector; default: that of the recording, where the model hears style")
    styles: Path | None = setting(None, "file of the styles that a model names; default: the model's own")
    style_windows: int = setting(4, "parts of a recording whose styles are kept, spread over its length")
    num_style_secs: float = setting(30.0, "seconds of each of them")
    style_encoder: Path | None = setting(
        None, "folder with MuQ-MuLan-large, MuQ-large-msd-iter and xlm-roberta-base; default: the hub's")
    model: str = setting("mms", "aligner of lyrics without word times: mms or wav2vec2")
    separate: bool = setting(True, "take the voice out of the mix before words are aligned")
    longest: float = setting(600.0, "seconds; longer recordings are rejected")
    dtype: str = setting("float32", "of the latents: float32, as published, or float16, half the size")
    songs_per_shard: int = setting(100, "songs of a shard")
    max_rejected: float = setting(1.0, "share of rejected songs above which the exit code is 1")
    device: str = setting("auto", "auto (CUDA, then MPS, then CPU), or a torch device")
    offline: bool = setting(False, "use what is on this machine only")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Say what is in a shard, song by song, and draw its first songs."""
    shard: str = argument("a tar, or - for standard input")
    songs: int = setting(10, "songs to list; 0: all")
    draw: Path | None = setting(None, "folder for a picture of each listed song: latents, with words above")
    preset: str = setting("baby", "model they are for: a name in config.PRESETS")


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Check every song of shards: parts, shapes, finite numbers, words, phonemes."""
    shards: str = argument("shards as in train.py: a pattern, a folder, an address")
    preset: str = setting("baby", "model they are for: a name in config.PRESETS")
    phonemizer: Path | None = setting(
        None, "whose symbols the phonemes have to be of; default: the model's own")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure finished songs: are the asked words heard, and when; how do they sound."""
    songs: Path = argument("folder of songs and their accounts, NAME.mp3 and NAME.mp3.json")
    manifest: Path | None = setting(None, "what songs ID.mp3 without accounts were asked for")
    out: Path | None = setting(None, "folder of evaluation.json, report.html; default: the songs'", "-o")
    recogniser: str = setting("ear", "ear (songs of the embedded model) or wav2vec2 (real songs)")
    separate: bool = setting(False, "for wav2vec2: take the voice out of the mix first")
    scorer: tuple[str, ...] | None = setting(
        None, "one more number for each song: style, audiobox, songeval, phonemes, timing, MODULE:FUNCTION, "
        "or a sum (phonemes:1,timing:2); again for one more")
    against: Path | None = setting(None, "a second folder with the same songs, to compare with")
    style_encoder: Path | None = setting(
        None, "folder with MuQ-MuLan-large, MuQ-large-msd-iter and xlm-roberta-base; default: the hub's")
    seed: int = setting(0, "of the draws behind the intervals")
    device: str = setting("auto", "auto (CUDA, then MPS, then CPU), or a torch device")
    offline: bool = setting(False, "use what is on this machine only")
