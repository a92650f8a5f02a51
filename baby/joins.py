"""Where the windows of a long song join: are words sung once, do sound and tune go on?

    python -m baby.joins --out runs/joins

Each singer sings its song of examples/ three times in a row, over two minutes, so in several windows
(`sampler.averaged`). `main` prints what is measured where two windows overlap, near a window's edge, and
elsewhere. Axes: N samples, n frames of a spectrogram, M bands, T latent frames, C channels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from baby import songs
from baby.judge import ASSETS
from config import CODEC, Settings, within
from data import window_starts
from evaluate import measures, ratio
from sample import main as sing
from songs.listeners import EAR_HZ, small_ear
from sung import LogMel, SungCodec, whole_frames
from support.audio import mono, read_wave
from support.cli import parse, run
from support.files import find, make_folder, read_json, read_text, write_json, write_text
from vae import make_codec

NEAR_S = 0.5                  # from the edge of a window
PLACES = ("in overlaps", "near edges", "elsewhere")


@dataclass(frozen=True)
class JoinSettings(Settings):
    out: Path = Path("runs/joins")              # folder
    songs: int = within(4, 1, len(songs.PLAIN))  # of the singers, the first
    steps: int | None = within(None, 2)         # grid points of the sampler; default: the model's preset


def places(frames: int, frame_hz: float, at_s: np.ndarray) -> dict[str, np.ndarray]:
    """For each of PLACES, which of the seconds `at_s` of a song of `frames` lie there."""
    length = songs.PRESET.model.max_frames
    first = np.array(window_starts(frames, length))
    begins, ends = first[1:, None] / frame_hz, (first[:-1, None] + length) / frame_hz
    inside = ((begins <= at_s) & (at_s <= ends)).any(0)
    near = np.minimum(abs(at_s - begins), abs(at_s - ends)).min(0) < NEAR_S
    return dict(zip(PLACES, (inside & ~near, near, ~inside & ~near)))


def flux_db(wave: Tensor) -> np.ndarray:
    """How much the bands of a sound (N,) change from a frame to the next, root mean square, dB: (n - 1,)."""
    spectrogram = LogMel(songs.PRESET.codec)
    mel = spectrogram(whole_frames(wave[None], spectrogram.hop))[0]                          # (n, M)
    return (20 / np.log(10) * spectrogram.std * mel.diff(dim=0)).square().mean(1).sqrt().numpy()


def steps_of_pitch(latents: Tensor, codec: SungCodec) -> np.ndarray:
    """Steps of the pitch (n - 1,) of latents (T, C), in semitones; not a number where there is none."""
    voice = codec.unpack(latents[None])
    voiced = voice.voiced[0] > 0
    step = voice.note[0].diff().abs()
    return step.masked_fill(~(voiced[1:] & voiced[:-1]), torch.nan).numpy()


def main(cfg: JoinSettings) -> None:
    codec, ear, manifest = make_codec(songs.PRESET.codec, find(ASSETS / CODEC)), small_ear(), []
    make_folder(cfg.out)
    singers = [*songs.PLAIN][:cfg.songs]
    for singer in singers:
        lyrics = cfg.out / f"{singer}.txt"
        write_text(lyrics, 3 * f"{read_text(find(Path('examples') / lyrics.name)).strip()}\n\n")
        manifest.append({"id": singer, "lrc_path": str(lyrics.resolve()), "style": singer})
    write_json(cfg.out / "manifest.json", manifest)
    sing(["--manifest", str(cfg.out / "manifest.json"), "--out-dir", str(cfg.out), "--format", "wav",
          "--page", "false", *([] if cfg.steps is None else ["--steps", str(cfg.steps)])])

    frame_hz = songs.RATE / songs.PRESET.codec.hop
    found = {place: {"words": [], "flux": [], "pitch": []} for place in PLACES}
    for singer in singers:
        song, latents = (cfg.out / folder / f"{singer}.{ending}" for folder, ending in
                         (("generated", "wav"), ("cfm_latents", "pt")))
        record, latents = read_json(Path(f"{song}.json")), torch.load(latents, weights_only=True)
        wave = mono(*read_wave(song), EAR_HZ)
        values = {"words": np.array(measures(wave[None], EAR_HZ, record, ear)["words"]),
                  "flux": flux_db(wave), "pitch": steps_of_pitch(latents, codec)}
        seconds = {"words": np.array([word["start"] for word in values["words"]])} | {
            name: (1 + np.arange(len(values[name]))) * songs.PRESET.codec.hop / songs.PRESET.codec.fold
            / songs.RATE for name in ("flux", "pitch")}
        for name, own in values.items():
            for place, here in places(len(latents), frame_hz, seconds[name]).items():
                found[place][name].extend(own[here])

    print("| | words | missing | phoneme errors | spectral flux, mean, 99 % | pitch step, mean, 99 % |\n"
          "|---|---|---|---|---|---|")
    for place, own in found.items():
        words, pitch = own["words"], np.array(own["pitch"])[~np.isnan(own["pitch"])]
        missing = ratio([(word["found"] is None, 1) for word in words] or [(0, 0)])
        wrong = ratio([(word["errors"], word["sounds"]) for word in words] or [(0, 0)])
        print(f"| {place} | {len(words)} | {missing:.1%} | {wrong:.1%} | {np.mean(own['flux']):.2f}, "
              f"{np.quantile(own['flux'], 0.99):.2f} dB | {pitch.mean():.3f}, "
              f"{np.quantile(pitch, 0.99):.3f} semitones |")


if __name__ == "__main__":
    run(lambda: main(parse(JoinSettings, __doc__)))
