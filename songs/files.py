"""The files of a song: where they go, what they are made from, and `write`, which writes all or none.

Read `Outputs` (the files), `request_of` (the inputs that determine a song), `write`, `account_of` (the JSON
beside a song, from which it can be made again), `check_output` (what may not be overwritten).
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save

from config import SampleConfig, UserError
from lyrics import formats
from lyrics.timing import Lyrics
from songs.manifest import FOLDERS, Song, names_of
from songs.page import page
from songs.picture import picture
from songs.tags import tag
from support.audio import FORMATS, READABLE, write_wave
from support.cli import weighted
from support.files import read_json, read_text, replacing, write_text
from support.hub import ASSETS, ModelFiles, encoder_folders, sha256

LONGEST_NAME = 240             # bytes; file systems allow 255, temporary names take some
# Settings that change a song, besides seed, duration, style and preset.
SINGING = ("bpm", "voice", "steps", "sway", "solver", "frames", "guidance", "guidance_weights",
           "guidance_range", "ignore_style", "dtype", "compile")
MODEL_FILES = ("weights", "codec", "phonemizer")
OF_ITS_FILE = ("chain", "versions", "seconds", "files", "plan", "unfinished")       # no song depends on them
CROPPING = ("num_style_secs", "style_start", "random_crop_style")


class Outputs(NamedTuple):
    """Where a song's files go."""
    song: Path
    account: Path                # JSON beside the song: everything needed to make it again
    page: Path                   # plays the song
    picture: Path                # the song's spectrogram
    plan: Path                   # the times given to lyrics that had none
    latents: Path                # what --edit begins with: tensors; of a manifest's song (T, C) float32
    # Of a manifest's songs only.
    original: Path | None        # the song as long as it was sampled

    def recorded(self, key: str) -> Any:
        """An entry of the account; None if there is no account, or it is not one of ours."""
        return (account_in(self.account) or {}).get(key)

    def files(self, with_page: bool) -> list[Path]:
        """What is written beside the account and the plan."""
        pages = [self.page, self.picture] if with_page else []
        return [path for path in (self.song, self.latents, self.original, *pages) if path]

    def owned(self) -> set[Path]:
        """The files that the account says are its song's; of accounts from before they said it, all."""
        if not self.recorded("request"):
            return set()
        names = self.recorded("files") or [path.name for path in self.files(True)]
        return {self.account, *(path for path in self.files(True) if path.name in names)}

    def made(self, request: dict, with_page: bool) -> bool:
        """Whether all files exist and were made from exactly this request."""
        before, files = self.recorded("request"), self.files(with_page)
        if self.recorded("unfinished"):
            return False
        with contextlib.suppress(LookupError, TypeError, AttributeError):
            before["preset"] = used(before["preset"] | {"codec": used(before["preset"]["codec"])})
        return all(path.is_file() for path in files) and before == json.loads(json.dumps(request))


def account_in(path: Path) -> dict | None:
    """The account that a file is; None for any other file, or none."""
    with contextlib.suppress(UserError):
        found = read_json(path) if path.suffix == ".json" else None
        parts = [found.get(key) for key in ("settings", "request")] if isinstance(found, dict) else [None]
        if all(isinstance(part, dict) for part in parts) and isinstance(parts[1].get("sha256"), dict):
            return found
    return None


def lyrics_in(path: Path, part: bool) -> tuple[Lyrics, list | None]:
    """The lyrics in a file and, of an account, which lines take the tune of which (see songs/tunes.py).

    The account of a part has the words of the part and, where a part is asked for, those of the whole song.
    """
    account = account_in(path) or {}
    again = account.get("repeats")
    rows = again if isinstance(again, list) else [again] if again else []
    if any(not isinstance(row, list) or [type(x) for x in row] != [int] * 3 or min(row) < 0 for row in rows):
        raise UserError(f"{path}: repeats: expected rows of three whole numbers of 0 or more")
    if part and "whole" in account:
        return formats.parse(json.dumps(account["whole"]), "jam", str(path)), again
    return formats.read(path), None if "whole" in account else again


def used(config: dict) -> dict:
    """A config's fields that are used: an account does not depend on others, which come and go."""
    return {name: value for name, value in config.items() if value}


def outputs_of(song: Song, cfg: SampleConfig, best_of: int = 1) -> list[Outputs]:
    """The files of each variant of a song or, for best_of above 1, of each take."""
    def at(song: Path, latents: Path | None = None, original: Path | None = None) -> Outputs:
        return Outputs(song, song.with_name(song.name + ".json"), song.with_suffix(".html"),
                       song.with_suffix(".png"), song.with_suffix(".plan.lrc"),
                       latents or song.with_name(song.name + ".safetensors"), original)

    if cfg.out_dir is None:
        return [at(cfg.out.with_name(name + cfg.out.suffix))
                for name in names_of(cfg.out.stem, cfg.batch_infer_num, best_of)]
    songs, originals, latents = (cfg.out_dir / name for name in FOLDERS)
    ending = cfg.format or "mp3"
    return [at(songs / f"{name}.{ending}", latents / f"{name}.pt", originals / f"{name}.{ending}")
            for name in names_of(song.id, cfg.batch_infer_num, best_of)]


def request_of(song: Song, variant: int, files: ModelFiles, cfg: SampleConfig,
               before: dict | None = None) -> dict:
    """The inputs that determine a variant of a song, as JSON: equal requests give equal songs.

    Files count by their contents, not by their names. Args: before, the account of the song that is edited.
    """
    def content(name: str) -> str:
        return sha256(Path(name)) if os.path.isfile(name) else name

    parts = {"lyrics": song.lyrics, "lexicon": cfg.lexicon, "weights": files.weights,
             "phonemizer": files.phonemizer, "codec": files.codec, "styles": files.styles}
    styles = [weighted(name, os.path.isfile) for name in song.styles]
    sound = any(Path(name).suffix.lower() in READABLE for name, _ in styles)
    if (sound or song.texts) and files.preset.style_encoder != "none":
        parts["style_encoder"] = encoder_folders(cfg)[0] / ASSETS["mulan"].file
    settings = SINGING + CROPPING if sound else SINGING      # which cover the rest of the preset
    preset = dataclasses.replace(files.preset, guidance=None, steps=0, solver="", sway=0.0, trim=False,
                                 negative_style="")
    preset = used(dataclasses.asdict(preset) | {"codec": used(dataclasses.asdict(preset.codec))})
    part = {} if (cfg.from_, cfg.to) == (None, None) else {"part": [cfg.from_, cfg.to]}
    edited = {} if before is None else {"edit": {
        "before": identity(before), "span": cfg.span, "line": cfg.line,
        "variation": cfg.variation, "lead": cfg.lead}}
    account = remade(song)
    own = account and cfg.negative_style == str(song.lyrics)
    request = {"seed": song.seed + variant, "duration": song.duration_s, **part,
               "style": [[content(name), weight] for name, weight in styles], "style_text": song.texts,
               "negative_style": account["request"]["negative_style"] if own else content(cfg.negative_style),
               **{name: getattr(cfg, name) for name in settings}, "preset": preset, **edited,
               "sha256": {part: sha256(path) for part, path in parts.items() if path}}
    return account["request"] if account and alike(account, request) else request


def remade(song: Song) -> dict | None:
    """The account that a song takes its words and its style from, as --config ACCOUNT asks for."""
    return account_in(song.lyrics) if song.styles == (str(song.lyrics),) and not song.texts else None


def alike(account: dict, request: dict) -> bool:
    """Whether a request that takes words and style from an account asks for the same in everything else."""
    before, request = account["request"], json.loads(json.dumps(request))
    rest = request.keys() - {"style", "style_text", "ignore_style", "sha256", "duration"}
    return (all(before.get(key) == request[key] for key in rest) and not changed(before, request)
            and account["settings"].get("duration") == request["duration"]
            and account.get("digest") == digest(account))


def digest(account: dict) -> str:
    """A checksum of what an account sings: if it was edited, it is another song's."""
    sung = [account.get(key) for key in ("word", "segment", "whole", "repeats", "style", "negative")]
    return hashlib.sha256(json.dumps(sung).encode()).hexdigest()


def identity(account: dict) -> str:
    """A checksum of a song: what was asked for, and what it sings."""
    return hashlib.sha256(json.dumps([account["request"], account.get("digest")]).encode()).hexdigest()


def own_of(account: dict) -> dict:
    """The entries of an account that its song depends on, but for those of the songs that led to it."""
    return {key: value for key, value in account.items() if key not in OF_ITS_FILE}


def seal(account: dict) -> str:
    """A checksum of `own_of` an account: an edit needs what was written, unchanged."""
    own = {key: value for key, value in own_of(account).items() if key != "seal"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def changed(before: dict, request: dict) -> list[str]:
    """Which files of the model are not those of an earlier request."""
    return [part for part in MODEL_FILES if before["sha256"].get(part) != request["sha256"].get(part)]


def check_account(song: Song, request: dict, cfg: SampleConfig) -> None:
    """Raise UserError if a song is to be sung again by another model, unless that is forced."""
    for name, path, account in (("--edit", cfg.edit, cfg.edit and account_in(cfg.edit)),
                                ("--config", song.lyrics, remade(song))):
        other = changed(account["request"], request) if account and not cfg.force else []
        if other:
            raise UserError(f"{name} {path}: was sung with other {' and '.join(other)} than this model has; "
                            "--force true sings its words with these")


def check_outputs(song: Song, cfg: SampleConfig) -> None:
    """`check_output` of the files of a song, its variants and its takes."""
    paths = [song.lyrics, cfg.manifest, cfg.negative_style, cfg.lexicon, cfg.edit,
             cfg.edit and cfg.edit.with_suffix(""),
             *(weighted(name, os.path.isfile)[0] for name in song.styles)]
    for outputs in dict.fromkeys([*outputs_of(song, cfg), *outputs_of(song, cfg, cfg.best_of)]):
        check_output(outputs, [Path(path) for path in paths if path], cfg)


def check_output(outputs: Outputs, inputs: list[Path], cfg: SampleConfig) -> None:
    """Raise UserError, before any work is done, if a song cannot be written, or something would be lost.

    That is an input, or a file that no account there names: it is not of an earlier song. A plan has a check
    of its own.
    """
    where = f"--out {outputs.song}"
    if outputs.song.suffix.lower() not in FORMATS:
        raise UserError(f"{where}: unknown ending; expected {', '.join(FORMATS)}")
    if len(os.fsencode(outputs.account.name)) > LONGEST_NAME:
        raise UserError(f"{where}: a name of more than {LONGEST_NAME - len('.json')} bytes")
    if not outputs.song.parent.is_dir():
        raise UserError(f"{where}: there is no folder {outputs.song.parent}")
    for file in (*outputs.files(cfg.page), outputs.account, outputs.plan):
        if file.is_dir():
            raise UserError(f"{where}: {file} is a folder")
        free = cfg.overwrite or file == outputs.plan         # which may be the lyrics
        for used in inputs if not free else ():
            if file.exists() and os.path.exists(used) and file.samefile(used):
                raise UserError(f"{where}: would overwrite {used}; --overwrite true allows it")
        if os.path.lexists(file) and file not in outputs.owned() and not free:
            raise UserError(f"{where}: would overwrite {file}, which is not of this song; --overwrite true "
                            "allows it")
        if not os.access(file.parent, os.W_OK) or file.exists() and not os.access(file, os.W_OK):
            raise UserError(f"{where}: no permission to write")


def check_plan(outputs: Outputs, plan: Lyrics | None, lyrics: Path) -> None:
    """Raise UserError if writing a plan would overwrite the lyrics, or a plan that was edited."""
    if plan is None or not outputs.plan.exists():
        return
    if outputs.plan.samefile(lyrics):
        raise UserError(f"--out {outputs.song}: its plan would overwrite the lyrics {lyrics}")
    if read_text(outputs.plan) not in (formats.write(plan, "lrc"), outputs.recorded("plan")):
        raise UserError(f"{outputs.plan}: was changed; sing it with --lyrics {outputs.plan}, or move it away")


def account_of(prompt, request: dict, cfg: SampleConfig, outputs: Outputs, **more: object) -> str:
    """The JSON beside a song. `--config` makes the song again from it, and `--lyrics` takes it, too.

    Args: prompt, a sample.Prompt; more entries.
    """
    song = prompt.song
    settings = dataclasses.replace(
        cfg, lyrics=song.lyrics, style=song.styles or None, style_text=song.texts or None,
        duration=song.duration_s, seed=request["seed"], out=outputs.song, batch_infer_num=1, best_of=1,
        manifest=None, out_dir=None, format=None, use_prompt_style=False, overwrite=False, force=False)
    files = {*(path.name for path in outputs.files(cfg.page)), *(outputs.recorded("files") or [])}
    if not cfg.page:                             # what is there shows the words of before: `write` removes it
        files -= {outputs.page.name, outputs.picture.name}
    more |= {"whole": content_of(prompt.whole, prompt.title)} if prompt.whole is not prompt.lyrics else {}
    more |= {"others": formats.write(prompt.others, "lrc")} if prompt.others.words else {}
    if os.path.isfile(cfg.negative_style):
        more["negative"] = prompt.negative[0].tolist()
    account = content_of(prompt.lyrics, prompt.title) | {
        "id": song.id, "request": request, "settings": dataclasses.asdict(settings),
        "repeats": prompt.repeats, "files": sorted(files),
        "style": prompt.style.tolist(),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__}, **more}
    account = json.loads(json.dumps(account, default=str))
    account["digest"] = digest(account)
    account["seal"] = seal(account)
    return json.dumps(account, default=str, ensure_ascii=False, indent=1)


def packed(take, path: Path) -> bytes:
    """A file's bytes with a song's latents and, but for a manifest's songs, the codec's pitch."""
    if path.suffix != ".pt":
        return save({"latents": take.latents.contiguous(), "hz": take.hz.contiguous()})
    latents = io.BytesIO()                       # torch has no clear words for a full disk
    torch.save(take.latents.clone(), latents)
    return latents.getvalue()


def latents_of(path: Path, account: dict) -> dict[str, torch.Tensor] | None:
    """The tensors of the song whose account is at `path`; None if no file beside it is the account's."""
    song = path.with_suffix("")
    for file in (song.with_name(song.name + ".safetensors"),
                 song.parent.parent / FOLDERS[2] / f"{song.stem}.pt"):
        content = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(content).hexdigest() == account.get("latents"):
            pickled = file.suffix == ".pt"
            return {"latents": torch.load(file, weights_only=True)} if pickled else load(content)
    return None


def content_of(lyrics: Lyrics, title: str) -> dict:
    """Lyrics as JSON, with the phonemes of each word."""
    plain = lyrics.changed(lambda word: dataclasses.replace(word, phoneme=None))         # easier to read
    return json.loads(formats.write(dataclasses.replace(plain, title=title), "jam")) | {
        "word": [formats.json.word_json(word) for word in lyrics.words]}


def write(take, prompt, request: dict, cfg: SampleConfig, outputs: Outputs, **more: object) -> None:
    """Write a song's files, each whole; the account, which comes last, says if all are there.

    Args: take and prompt as in sample.py; more, for the account.
    """
    rate_hz = request["preset"]["codec"]["sample_rate_hz"]
    plan = formats.write(prompt.plan, "lrc") if prompt.plan else None
    before = outputs.recorded("plan")            # stays beside a song that has none
    stale = set() if cfg.page else {outputs.page, outputs.picture} & outputs.owned()
    seconds = {name: round(value, 2) for name, value in take.seconds.items()}
    with contextlib.ExitStack() as stack:                    # the account appears last, after the others
        def at(path: Path) -> Path:
            return stack.enter_context(replacing(path))

        file, latents = at(outputs.account), packed(take, outputs.latents)
        at(outputs.latents).write_bytes(latents)
        if outputs.original:
            write_wave(at(outputs.original), take.wave, rate_hz, outputs.original)
        path, wave = at(outputs.song), take.wave[:, :round(prompt.duration_s * rate_hz)]
        sound = write_wave(path, wave, rate_hz, outputs.song)
        account = account_of(prompt, request, cfg, outputs, plan=plan or before, seconds=seconds, sound=sound,
                             latents=hashlib.sha256(latents).hexdigest(), **take.about, **more)
        file.write_text(account, encoding="utf-8", errors="backslashreplace")
        settings = (remade(prompt.song) or {}).get("settings", {})   # of the song that is sung again
        tag(path, prompt.lyrics, prompt.title, seed=request["seed"], name=outputs.song,
            model=Path(settings.get("model", cfg.model)).name)
        if cfg.page:
            text = page(prompt.lyrics, path, prompt.title, wave, rate_hz, outputs.song)
            at(outputs.page).write_text(text, encoding="ascii")
            picture(at(outputs.picture), wave, rate_hz, prompt.lyrics)
        if plan:
            at(outputs.plan).write_text(plan, encoding="utf-8")
        # From here on the old files are replaced. If that is cut short, the account says whose they are.
        write_text(outputs.account, json.dumps(json.loads(account) | {"unfinished": True}))
        for path in stale:
            path.unlink(missing_ok=True)
