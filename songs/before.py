"""A finished song that is to be edited: read from its files, or sung again as its account says.

Read `Before`, then `before_of`. An edit's account holds those of all songs that it comes from, its chain, so
that it can be made again from nothing else: `remade` sings them one after another.

Axes: T latent frames, C latent channels, W wave channels, N samples, n frames of a codec's pitch.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from config import SampleConfig, UserError
from songs.files import account_in, digest, identity, latents_of, own_of, seal
from songs.manifest import Song
from support.audio import fingerprint, read_wave
from support.cli import parse
from support.files import reading, write_json

LOSSLESS = (".wav", ".flac")


class Before(NamedTuple):
    """A finished song that is to be edited."""
    account: dict
    latents: Tensor              # (T, C)
    hz: Tensor                   # (n,) pitch with which the codec sang; (0,) if it needs none
    wave: Tensor                 # (W, N) as its file holds it

    @property
    def chain(self) -> list[dict]:
        """The accounts of all songs that led to this one, itself last."""
        return [*self.account.get("chain", []), own_of(self.account)]


def before_of(song: Song, cfg: SampleConfig, sing: Callable[[SampleConfig], Path]) -> Before | None:
    """The song that --edit names, or that the edit was made from whose account is to be sung again.

    What no file holds, `sing` makes again from accounts. None if nothing is edited.
    Raises: UserError if --edit is no account, or one of a part.
    """
    again = account_in(song.lyrics) or {}
    remakes = cfg.edit is None and song.styles == (str(song.lyrics),) and again.keys() & {"edit", "chain"}
    if cfg.edit is None and not remakes:
        if cfg.span or cfg.line or cfg.lead or cfg.variation is not None:
            raise UserError("--line, --span, --variation and --lead need --edit, which names the song")
        return None
    with tempfile.TemporaryDirectory() as folder:
        if remakes:
            verify(song.lyrics, again)
            return saved(remade(again["chain"], cfg, Path(folder), sing))
        account = account_in(cfg.edit)
        if account is None:
            raise UserError(f"--edit {cfg.edit}: expected a song's account, the NAME.json beside it")
        if "whole" in account:
            raise UserError(f"--edit {cfg.edit}: is a part of a song (--from, --to); expected a whole one")
        verify(cfg.edit, account)
        found, path = saved(cfg.edit), cfg.edit.with_suffix("")
        if "seal" in account and path.is_file() and fingerprint(path) != account["sound"]:
            raise UserError(f"{path}: was changed since it was sung; if you move it away, the song is sung "
                            "again as its account says")
        if found is None:                                    # its latents are gone: the same again
            made = saved(remade([*account.get("chain", []), account], cfg, Path(folder), sing))
            wave = read_wave(path)[0] if path.suffix.lower() in LOSSLESS and path.is_file() else made.wave
            if wave.shape != made.wave.shape:
                raise UserError(f"{path}: is not the song that its account {cfg.edit} sings")
            own = account if "seal" in account else made.account       # which has what older ones lack
            found = made._replace(account=own, wave=wave)
        return found


def verify(path: Path, account: dict) -> None:
    """Raise UserError if an account, or one of its chain, is not as it was written.

    One from before accounts were sealed has no chain; its song is sung again.
    """
    chain, before, good = account.get("chain", []), None, True
    with reading(path, "was changed since it was sung"):
        for each in [*chain, account]:
            older = not chain and "seal" not in each and each.get("digest") in (None, digest(each))
            good = good and (older or each.get("seal") == seal(each)) and ("edit" in each) == bool(before)
            good = good and (not before or each["request"]["edit"]["before"] == identity(before))
            before = each
    if not good:
        raise UserError(f"{path}: was changed since it was sung; flags and --lyrics change a song")


def saved(path: Path) -> Before | None:
    """The song beside an account, if its files are there and are those of the account."""
    account, song = account_in(path), path.with_suffix("")
    tensors = latents_of(path, account) if "seal" in account else None
    if tensors is None or not song.is_file():
        return None
    latents = tensors["latents"]
    return Before(account, latents, tensors.get("hz", latents.new_zeros(0)), read_wave(song)[0])


def remade(chain: list[dict], cfg: SampleConfig, folder: Path,
           sing: Callable[[SampleConfig], Path]) -> Path:
    """Sing the songs of a chain one after another; the account of the last."""
    own = {"model": cfg.model, "vae": cfg.vae, "trust-vae": cfg.trust_vae, "phonemizer": cfg.phonemizer,
           "device": cfg.device, "threads": cfg.threads, "offline": cfg.offline,
           "style-encoder": cfg.style_encoder, "force": cfg.force}
    flags = [f"--{name}={value}" for name, value in own.items() if value is not None]
    before = []
    for i, account in enumerate(chain):
        write_json(folder / f"{i}.json", {key: value for key, value in account.items() if key != "chain"})
        ending = Path(str(account["settings"].get("out", SampleConfig.out))).suffix
        out = folder / f"{i}-sung{ending}"
        sing(parse(SampleConfig, "", [*before, "--config", str(folder / f"{i}.json"), "--out", str(out),
                                      "--page=false", *flags]))
        before = ["--edit", f"{out}.json"]
    return Path(f"{out}.json")
