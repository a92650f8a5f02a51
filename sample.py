"""Timed words -> a song: `python sample.py --lyrics FILE --style female --out song.wav`.

Read `main`, then `Singer`: lyrics.py reads words, phonemes.py pronounces them and lays them on the frame
grid, model.py turns noise into latents, vae.py turns latents into sound, `master` sets its loudness.
"""

import dataclasses
import hashlib
import json
import math
import os
import resource
import sys
import time
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from config import CONFIG, GUIDANCE_WEIGHTS, PHONEMIZER, WEIGHTS, Guidance, SampleConfig, UserError
from config import find, parse, pick_device, preset_from_json, replacing, run
from data import collate, conditions
from lyrics import Word, check_duration, place, pronounce, read
from model import DiT, load_weights, sample, time_grid
from phonemes import CELLS_PER_FRAME, SymbolTable, load_phonemizer
from style import load_style
from vae import make_codec

LOUDNESS_LUFS = -14.0
TAIL_S = 0.5                   # silence after the last word where no duration is given
PEAK_DB = -1.0                 # true peak: of the wave between its samples, too
MOST_GAIN_DB = 30.0            # so that what is nearly silent stays so
LONGEST_NAME = 240             # bytes; file systems allow 255, temporary names take some
SHORTEST_S = 0.4               # loudness is defined from here on
FORMATS = {".wav": {"format": "WAV", "subtype": "PCM_16"}, ".flac": {"format": "FLAC", "subtype": "PCM_16"},
           ".ogg": {"format": "OGG", "subtype": "VORBIS"},
           ".mp3": {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.0}}


class Singer:
    """A model with all that it needs to sing: network, codec, phonemizer.

    Args: folder with WEIGHTS, CONFIG and PHONEMIZER; device of the network (the codec stays on the CPU).
    Raises: UserError if a file is missing or does not fit.
    """

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device, path = folder, device, folder / WEIGHTS
        self.preset = preset_from_json(folder / CONFIG)
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as e:
            raise UserError(f"{path}: {e}") from None
        with torch.device("meta"):                           # no time is spent on random weights
            self.model = DiT(self.preset.model)
        self.model.to_empty(device="cpu")
        load_weights(self.model, weights, str(path))
        self.model.eval().to(device)
        self.codec = make_codec(self.preset.codec)
        self.phonemizer = load_phonemizer(folder / PHONEMIZER)
        self.table = SymbolTable(self.phonemizer.symbols)
        self.frame_hz = self.preset.codec.sample_rate_hz / self.preset.codec.hop

    @property
    def longest_s(self) -> float:
        """The longest song that the model sings, in seconds."""
        return self.preset.model.max_frames / self.frame_hz

    def batch(self, words: list[Word], style: Tensor, duration_s: float) -> tuple[dict[str, Tensor], list]:
        """One song as the network reads it, and where its words were placed (see phonemes.phoneme_grid)."""
        frames = min(math.ceil(duration_s * self.frame_hz), self.preset.model.max_frames)
        spoken = [(w.start, w.end, w.phoneme) for w in words]
        item, placed = conditions(spoken, frames, 0, self.preset, self.table)
        return collate([item | {"style": style, "frames": frames}], self.codec.silence, self.preset), placed

    def latents(self, batch: dict[str, Tensor], seed: int, steps: int, guidance: Guidance,
                sway: float | None = None, progress=lambda steps: steps) -> Tensor:
        """Sing one song's latents (1, T, C). Its noise comes from the CPU and its own seed, on any device."""
        rng = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, self.preset.model.max_frames, self.preset.model.mel_dim, generator=rng)
        noise = noise[:, :batch["phonemes"].shape[1] // CELLS_PER_FRAME].to(self.device)
        batch = {k: v.to(self.device) for k, v in batch.items()}
        return sample(self.model, batch, noise, time_grid(steps, sway), guidance,
                      torch.zeros_like(batch["style"]), progress).cpu()

    def wave(self, latents: Tensor, duration_s: float) -> Tensor:
        """Latents (1, T, C) -> sound (N,) of duration_s."""
        return self.codec.decode(latents)[0, :round(duration_s * self.preset.codec.sample_rate_hz)]


def loudness_lufs(wave: Tensor, rate_hz: int) -> float | None:
    """Integrated loudness of wave (N,) by ITU-R BS.1770; None for silence.

    Clips under 0.4 s are repeated to fill it. torchaudio clips inside its filters above 1.0: the wave is
    measured at a quarter of its peak or less.
    """
    if not len(wave):
        return None
    wave = wave.double().repeat(math.ceil(SHORTEST_S * rate_hz / len(wave)))
    scale = max(1.0, 4 * wave.abs().max().item())
    value = AF.loudness((wave / scale)[None], rate_hz).item() + 20 * math.log10(scale)
    return value if math.isfinite(value) else None


def limit(wave: Tensor, ceiling: float) -> Tensor:
    """Turn wave (N,) down around each peak, true peaks included, so that none is above `ceiling`."""
    reach = 255                              # samples before and after a peak that move with it
    peak = AF.resample(wave, 1, 8, lowpass_filter_width=64)[:8 * len(wave)].abs().view(-1, 8).amax(1)
    gain = (ceiling / peak.maximum(wave.abs()).clamp_min(1e-9)).clamp_max(1.0)[None, None]
    # Twice reach / 2 to either side: the whole reach, and the length of the wave again.
    gain = -F.max_pool1d(F.pad(-gain, (reach, reach), value=-1.0), reach + 1, 1)
    gain = -F.max_pool1d(-gain, reach + 1, 1)
    for _ in range(2):                       # smooth by two boxes that reach no further than that
        gain = F.avg_pool1d(F.pad(gain, (reach // 2, reach // 2), mode="replicate"), reach, 1)
    return wave * gain[0, 0]


def master(wave: Tensor, rate_hz: int) -> Tensor:
    """Bring wave (N,) to -14 LUFS with true peaks at -1 dB at most; silence stays silence."""
    ceiling = 10 ** (PEAK_DB / 20)
    wave, out = wave.double(), wave.double()
    gain_db = 0.0
    for _ in range(8):                                       # limiting costs loudness: make up for it
        now = loudness_lufs(out, rate_hz)
        if now is None or abs(now - LOUDNESS_LUFS) < 0.05:
            break
        gain_db = min(gain_db + LOUDNESS_LUFS - now, MOST_GAIN_DB)
        out = limit(wave * 10 ** (gain_db / 20), ceiling)
    return out.clamp(-ceiling, ceiling).float()


def write_wave(path: Path, wave: Tensor, rate_hz: int) -> None:
    """Write wave (N,) in the format of the path's ending (see FORMATS)."""
    # One NaN would abort the MP3 encoder's whole process.
    if not wave.isfinite().all():
        raise UserError(f"{path}: the song has samples that are not finite; lower --guidance-weights")
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            soundfile.write(file, wave.numpy(), rate_hz, **FORMATS[path.suffix.lower()])
        except soundfile.SoundFileError as e:
            raise UserError(f"{path}: cannot be written: {e}") from None


def sidecar_path(path: Path) -> Path:
    """Where the account of a song lies."""
    return path.with_name(path.name + ".json")


def check_output(path: Path, lyrics: Path) -> None:
    """Raise UserError, before any work is done, if the song could not be written to path."""
    about = sidecar_path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--out {path}: unknown ending; expected {', '.join(FORMATS)}")
    if len(os.fsencode(about.name)) > LONGEST_NAME:
        raise UserError(f"--out {path}: a name of more than {LONGEST_NAME - len('.json')} bytes")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")
    for file in (path, about):
        if file.is_dir():
            raise UserError(f"--out {path}: {file} is a folder")
        if file.exists() and file.samefile(lyrics):
            raise UserError(f"--out {path}: would overwrite the lyrics {lyrics}")
        if not os.access(path.parent, os.W_OK) or file.exists() and not os.access(file, os.W_OK):
            raise UserError(f"--out {path}: no permission to write")


def choose_guidance(cfg: SampleConfig, default: Guidance) -> Guidance:
    """The preset's guidance with what the flags change.

    Raises: UserError for a mode, number or range that is none.
    """
    mode = default.mode if cfg.guidance is None else cfg.guidance
    if mode not in GUIDANCE_WEIGHTS:
        raise UserError(f"--guidance {mode}: expected one of {', '.join(GUIDANCE_WEIGHTS)}")
    needed = GUIDANCE_WEIGHTS[mode]
    weights = cfg.guidance_weights if cfg.guidance_weights is not None else default.weights if needed else ()
    bounds = default.range if cfg.guidance_range is None else cfg.guidance_range
    if len(weights) != needed or not all(map(math.isfinite, weights)):
        raise UserError(f"--guidance {mode} takes {needed} finite weights, not {weights}")
    if len(bounds) != 2 or not bounds[0] <= bounds[1]:
        raise UserError(f"--guidance-range {bounds}: expected two flow times, the lower one first")
    return Guidance(mode, weights, bounds)


def check_numbers(cfg: SampleConfig, steps: int) -> None:
    """Raise UserError for a seed, number of steps or sway that is none."""
    if not 0 <= cfg.seed < 2 ** 63:
        raise UserError(f"--seed {cfg.seed}: expected 0 to {2 ** 63 - 1}")
    if steps < 2:
        raise UserError(f"--steps {steps}: expected 2 or more grid points")
    if cfg.sway is not None and not -1 <= cfg.sway <= 0:
        raise UserError(f"--sway {cfg.sway}: expected -1 to 0")


def warn_of_cuts(words: list[Word], placed: list[tuple[int, int, list[int]]], path: Path) -> None:
    """Warn of each word that is too short for all of its phonemes."""
    for i, (word, (first, end, ids)) in enumerate(zip(words, placed, strict=True), 1):
        if end - first < len(ids) - 1:                       # all but the word end
            print(f"warning: {place(path, i, word.word)}: {len(ids) - 1} phonemes ({word.phoneme}) in "
                  f"{end - first} cells; the last ones are left out", file=sys.stderr)


def sidecar(cfg: SampleConfig, singer: Singer, words: list[Word], style: Tensor,
            seconds: dict[str, float]) -> dict:
    """Everything needed to remake a song; `--lyrics` takes it, too."""
    return {"settings": json.loads(json.dumps(dataclasses.asdict(cfg), default=str)),
            "word": [dataclasses.asdict(word) for word in words],
            "style": [round(x, 7) for x in style.tolist()],
            "weights_sha256": hashlib.sha256((singer.folder / WEIGHTS).read_bytes()).hexdigest(),
            "preset": dataclasses.asdict(singer.preset), "versions": {"python": sys.version.split()[0],
                                                                      "torch": torch.__version__},
            "seconds": {name: round(value, 2) for name, value in seconds.items()}}


def main(argv: list[str] | None = None) -> None:
    """Make one song."""
    began = time.perf_counter()
    cfg = parse(SampleConfig, __doc__.splitlines()[0], argv)
    lyrics, folder = find(cfg.lyrics), find(cfg.model)
    words = read(lyrics)
    check_output(cfg.out, lyrics)
    if not words and cfg.duration is None:
        raise UserError(f"{cfg.lyrics}: has no words; say how long the song is with --duration")
    singer = Singer(folder, pick_device(cfg.device))
    duration_s = cfg.duration
    if duration_s is None:
        duration_s = max(words[-1].end, min(words[-1].end + TAIL_S, singer.longest_s))
    check_duration(words, duration_s, singer.longest_s, cfg.lyrics)
    steps = singer.preset.steps if cfg.steps is None else cfg.steps
    check_numbers(cfg, steps)
    guidance = choose_guidance(cfg, singer.preset.guidance)
    style = load_style(cfg.style, folder, singer.preset.model.cond_dim)
    words = pronounce(words, singer.phonemizer, singer.table, cfg.lyrics)
    batch, placed = singer.batch(words, style, duration_s)
    warn_of_cuts(words, placed, cfg.lyrics)
    cfg = dataclasses.replace(cfg, duration=duration_s, steps=steps, guidance=guidance.mode,
                              guidance_weights=guidance.weights or None, guidance_range=guidance.range)
    print(f"seed {cfg.seed}, style {cfg.style}, {len(words)} words in {duration_s:.2f} s, on {singer.device}")
    marks = {"load": time.perf_counter()}
    latents = singer.latents(batch, cfg.seed, steps, guidance, cfg.sway,
                             lambda grid: tqdm(grid, "sampling", unit="step"))
    marks["sample"] = time.perf_counter()
    with tqdm(total=round(duration_s, 1), desc="decoding", unit="s") as bar:
        wave = master(singer.wave(latents, duration_s), singer.preset.codec.sample_rate_hz)
        bar.update(bar.total)
    marks["decode"] = time.perf_counter()
    seconds = {k: t - s for (k, t), s in zip(marks.items(), [began, *marks.values()])}
    with replacing(sidecar_path(cfg.out)) as path:           # both or neither
        path.write_text(json.dumps(sidecar(cfg, singer, words, style, seconds), ensure_ascii=False, indent=1),
                        encoding="utf-8", errors="backslashreplace")
        write_wave(cfg.out, wave, singer.preset.codec.sample_rate_hz)
    total = time.perf_counter() - began
    units_per_gib = 1024 ** 2 if sys.platform != "darwin" else 1024 ** 3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_gib
    print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
          + f"; {total / duration_s:.2f} s per second of song; {peak:.2f} GiB of memory at most")
    print(cfg.out.resolve())


if __name__ == "__main__":
    run(main)
