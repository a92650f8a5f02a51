"""Where every file of a model comes from: this repository, a path of the user, or the network.

Read assets.json (the files that others publish), then `fetch` (a cached copy, else one checked download),
`plan` and `locate` (the files that --model needs), `doctor` (which of them are on this machine).
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from config import AVERAGED, CODEC, CONFIG, PHONEMIZER, PRESETS, STYLES, WEIGHTS, EvaluateConfig
from config import Preset, SampleConfig, SingSettings, UserError
from support.audio import READABLE
from support.checkpoint import preset_from_json
from support.cli import weighted
from support.files import find, one_line, read_json, reading, replacing

TIMEOUT_S = 30                 # of a plain url; the hub's library has its own
DECODERS = ("diffrhythm", "stable-audio")
ENCODER = ("mulan", "mulan-config", "muq-config", "xlmr-config", "xlmr-tokenizer")
LIBRARIES = ("torch", "torchaudio", "transformers", "huggingface_hub", "muq", "deep-phonemizer",
             "safetensors", "soundfile", "numpy")


@dataclass(frozen=True)
class Asset:
    """A file that others publish. Its size and checksum come from its page, or were computed."""
    what: str
    repo: str                            # owner/name on the hub, or the url of the file's folder
    file: str
    flag: str                            # of sample.py, to pass a local copy; "": there is none
    licence: str = "see its page"
    revision: str | None = "main"        # of the repository, 40 hex digits if pinned; None: repo is a url
    bytes: int | None = None             # None: unknown
    sha256: str | None = None            # None: unknown
    gated: bool = False                  # needs an accepted licence and a token
    check_always: bool = False           # check sha256 at each use, not only after a download
    note: str = ""                       # for the reader of assets.json

    @property
    def source(self) -> str:
        """Repository, revision and file, or the url."""
        return f"{self.repo}{f'@{self.revision[:8]}' if self.revision else ''}/{self.file}"


ASSETS = {name: Asset(**values)
          for name, values in read_json(Path(__file__).with_name("assets.json")).items()}


@dataclass(frozen=True)
class ModelFiles:
    """Paths of all files that a model needs to sing, and the preset that its weights fit."""
    preset: Preset
    weights: Path
    phonemizer: Path
    codec: Path                          # weights of the decoder
    styles: Path | None                  # the model's named styles
    trust_vae: bool = False              # whether code in the decoder's file may run


# Fetching

def fetch(name: str, offline: bool = False) -> Path:
    """The local path of an asset, which is downloaded if it is not on this machine.

    Args: name, a key of ASSETS; offline, download nothing (so does HF_HUB_OFFLINE=1).
    Raises: UserError if it cannot be downloaded or is corrupt.
    """
    asset, path = ASSETS[name], cached(name)
    if path is None:
        try:
            return download(asset, offline)
        except UserError as e:
            raise UserError(f"{asset.what} ({asset.source}): {e}; or {by_hand(asset)}") from None
    if wrong := fault(asset, path, asset.check_always):
        raise UserError(f"{path}: {wrong}; {repair(path)}")
    return path


def cached(name: str) -> Path | None:
    """The local path of an asset, or None if it is not on this machine. Never uses the network."""
    asset = ASSETS[name]
    if asset.revision is None:
        path = own_cache() / asset.file
        return path if path.is_file() else None
    if importlib.util.find_spec("huggingface_hub") is None:  # nothing was fetched without it
        return None
    import huggingface_hub
    # hf_hub_download(local_files_only=True) would ask the hub for a list of agents, once a day.
    path = huggingface_hub.try_to_load_from_cache(asset.repo, asset.file, revision=asset.revision)
    return Path(path) if isinstance(path, str) else None     # it may also be a mark: known not to exist


def download(asset: Asset, offline: bool) -> Path:
    """Download an asset to the hub's cache, or from a plain url to this project's own.

    Raises: UserError with the reason if that fails.
    """
    try:
        import httpx
        import huggingface_hub as hf
    except ImportError:
        raise UserError("huggingface_hub is not installed (pip install 'huggingface_hub<2')") from None
    if offline or hf.is_offline_mode():
        raise UserError("not on this machine, and --offline or HF_HUB_OFFLINE forbids the download")
    size, commit = asset.bytes, ""
    try:
        if asset.revision:
            # One request without retries: without a network, the download alone would retry for 23 s.
            about = hf.get_hf_file_metadata(hf.hf_hub_url(asset.repo, asset.file, revision=asset.revision))
            size, commit = about.size, f" (commit {about.commit_hash})"
        print(f"fetching the {asset.what} from {asset.source}{commit}, {in_words(size)}; licence: "
              f"{asset.licence}", file=sys.stderr)
        if asset.revision:
            path = Path(hf.hf_hub_download(asset.repo, asset.file, revision=asset.revision))
        else:
            path = own_cache() / asset.file
            answer = httpx.get(asset.source, timeout=TIMEOUT_S, follow_redirects=True).raise_for_status()
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(answer.content)
            print(f"{path}: sha256 {sha256(path)}", file=sys.stderr)
    # Some failures are not OSErrors: httpx.ConnectError, hf_xet's RuntimeError, a malformed proxy setting
    # (ValueError), a SOCKS proxy without its library (ImportError).
    except (OSError, RuntimeError, ValueError, ImportError, httpx.HTTPError, httpx.InvalidURL) as e:
        raise UserError(explain(asset, e)) from None
    if wrong := fault(asset, path, True):
        path.resolve().unlink()                              # a dangling link counts as missing
        raise UserError(f"{wrong}; the corrupt copy was deleted, try again")
    return path


def explain(asset: Asset, error: Exception) -> str:
    """Why a download failed, in one line."""
    from huggingface_hub import errors
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__                              # the library wraps the real error
    no_repository = "there is no such repository, or it is private"
    reasons = {                                              # the first that fits
        UserError: str(error), errors.GatedRepoError: access(asset),
        # The hub hides gated repositories from users who are not logged in.
        errors.RepositoryNotFoundError: access(asset) if asset.gated else no_repository,
        errors.RevisionNotFoundError: f"there is no revision {asset.revision}",
        errors.EntryNotFoundError: "there is no such file",
        Exception: f"{type(error).__name__}: {getattr(error, 'strerror', None) or one_line(error, 200)}"}
    return next(reason for kind, reason in reasons.items() if isinstance(error, kind))


def by_hand(asset: Asset) -> str:
    if asset is ASSETS["phonemizer"]:                        # which train.py wants, too
        return f"pass a local copy with {asset.flag}, to train.py as {PHONEMIZER} in the folder of --assets"
    return f"pass a local copy with {asset.flag}" if asset.flag else f"put it at {own_cache() / asset.file}"


def access(asset: Asset) -> str:
    return f"accept the licence at https://huggingface.co/{asset.repo} and log in with `hf auth login`"


def repair(path: Path) -> str:
    # The hub's file is a link: if only the link were deleted, the same corrupt file would come back.
    return f"delete {path.resolve()} and it is fetched again"


def own_cache() -> Path:
    """The folder for files that do not come from the hub."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jam-pytorch"


def sha256(path: Path) -> str:
    """The checksum of a file, in hex; an unchanged file is read only once. Raises: UserError."""
    with reading(path):
        about = path.stat()
        return digest_of(path, about.st_size, about.st_mtime_ns)


@functools.cache
def digest_of(path: Path, size: int, changed_ns: int) -> str:
    """As `sha256`; size and time of change are the cache's keys."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2 ** 20):
            digest.update(chunk)
    return digest.hexdigest()


def fault(asset: Asset, path: Path, thorough: bool) -> str | None:
    """How a file differs from the asset's size and checksum, or None. Reads the file only if thorough."""
    size = path.stat().st_size
    right_size = asset.bytes in (None, size)
    if right_size and (not thorough or asset.sha256 in (None, sha256(path))):
        return None
    expected = f"{asset.sha256}, {asset.bytes} bytes" if asset.bytes else asset.sha256
    return f"corrupt: sha256 {sha256(path)}, {size} bytes; expected {expected}"


def in_words(size: int | None) -> str:
    """A number of bytes in words."""
    if size is None:
        return "size not known"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e3:.1f} kB"


# The files of a model

def locate(cfg: SingSettings) -> ModelFiles:
    """Paths of all files that --model needs to sing; missing ones are downloaded, unless --offline.

    Raises: UserError for a file that does not exist or cannot be downloaded.
    """
    preset, places = plan(cfg)
    found = {part: fetch(place, cfg.offline) if isinstance(place, str) else place
             for part, place in places.items()}
    return ModelFiles(preset, **found, trust_vae=cfg.trust_vae)


def plan(cfg: SingSettings) -> tuple[Preset, dict[str, Path | str | None]]:
    """A model's preset, and for each part of ModelFiles its path, or the key of ASSETS to fetch.

    Raises: UserError for a file that is not there.
    """
    preset, weights = choose_model(cfg.model)
    if cfg.phonemizer is not None and not os.path.isfile(cfg.phonemizer):
        raise UserError(f"--phonemizer {cfg.phonemizer}: there is no such file")
    beside = {name: weights.with_name(name) for name in (PHONEMIZER, STYLES)
              if isinstance(weights, Path) and weights.with_name(name).is_file()}
    return preset, {"weights": weights, "phonemizer": cfg.phonemizer or beside.get(PHONEMIZER, "phonemizer"),
                    "codec": choose_codec(cfg, preset, weights), "styles": beside.get(STYLES)}


def choose_model(name: str) -> tuple[Preset, Path | str]:
    """The preset and the weights, or the key of ASSETS, that --model names. Raises: UserError."""
    if name == "jam-0.5":
        return PRESETS[name], name
    with reading(f"--model {name}"):                         # a name can be too long for a file
        path = find(Path("weights/baby" if name == "baby" else name))
    if path.is_dir():
        for file in (WEIGHTS, CONFIG):
            if not (path / file).is_file():
                raise UserError(f"--model {name}: there is no {file} in this folder")
        return preset_from_json(path / CONFIG), weights_in(path)
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(f"--model {name}: expected baby, jam-0.5, a .safetensors file, or a folder with "
                        f"{WEIGHTS} and {CONFIG}")
    config = path.with_name(CONFIG)
    ours = config.is_file() and "codec" in read_json(config)             # JAM's own config.json has no codec
    return preset_from_json(config) if ours else PRESETS["jam-0.5"], path


def weights_in(folder: Path) -> Path:
    """The weights in a model's folder; of a checkpoint the averaged ones, which sing better."""
    averaged = folder / AVERAGED
    return averaged if averaged.is_file() else folder / WEIGHTS


def choose_codec(cfg: SingSettings, preset: Preset, weights: Path | str) -> Path | str:
    """The decoder that --vae names, or that lies beside the weights: its path, or the key of ASSETS to fetch.

    Raises: UserError.
    """
    if preset.codec.kind == "sung":
        if cfg.vae is not None:
            raise UserError(f"--vae {cfg.vae}: --model {cfg.model} has its own decoder; leave it out")
        path = Path(weights).with_name(CODEC)
        if not path.is_file():
            raise UserError(f"--model {cfg.model}: there is no {CODEC} beside its weights")
        return path
    if cfg.vae is None or cfg.vae in DECODERS:
        return cfg.vae or DECODERS[0]
    if not os.path.isfile(cfg.vae):
        raise UserError(f"--vae {cfg.vae}: expected {', '.join(DECODERS)}, or a file")
    return Path(cfg.vae)


def own_file(given: Path | None, preset: str, name: str) -> Path | None:
    """The file that is given, else the file of this name in the preset's folder, else None."""
    path = find(Path("weights", preset, name))
    return given or (path if path.is_file() else None)


def encoder_folders(cfg: SingSettings | EvaluateConfig) -> tuple[Path, Path, Path]:
    """Folders of MuQ-MuLan, MuQ and XLM-R: in --style-encoder, else fetched, unless --offline.

    Raises: UserError for a file that does not exist or cannot be downloaded.
    """
    folders = {}
    for name in ENCODER:
        asset = ASSETS[name]
        path = (cfg.style_encoder / asset.repo.split("/")[1] / asset.file if cfg.style_encoder
                else fetch(name, cfg.offline))
        if not os.path.isfile(path):
            raise UserError(f"--style-encoder {cfg.style_encoder}: there is no {path}")
        folders[asset.repo] = path.parent
    return tuple(folders.values())


# The doctor

def doctor(cfg: SampleConfig) -> bool:
    """Print every asset and its state, versions, devices, and what --model lacks; download nothing.

    Reads each asset on this machine for its checksum. Returns: whether --model has all that it needs.
    """
    advice = {}                                              # what to do about each asset
    print("assets")
    for name, asset in ASSETS.items():
        if path := cached(name):
            wrong = fault(asset, path, True)
            advice[name] = wrong and f"{wrong}; {repair(path)}"
            verdict = "differs" if wrong else "ok" if asset.sha256 else f"not known, computed {sha256(path)}"
            state = f"present, {path}, {in_words(path.stat().st_size)}, sha256 {verdict}"
        else:
            first = f"{access(asset)}; it is then" if asset.gated else "missing; it is"
            advice[name] = f"{first} fetched when first needed, unless --offline; or {by_hand(asset)}"
            state = f"missing, {in_words(asset.bytes)}"
        print(f"  {name:14}  {state}\n{'':18}{asset.source}; licence: {asset.licence}")
    print("versions")
    print(f"  {'python':16}{sys.version.split()[0]}")
    for name in LIBRARIES:
        try:
            print(f"  {name:16}{importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name:16}not installed")
    print(f"devices\n  cpu: {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        print(f"  cuda:{i}: {gpu.name}, {gpu.total_memory / 2 ** 30:.1f} GiB")
    if torch.backends.mps.is_available():
        print("  mps")
    try:
        preset, places = plan(cfg)
        needed = [place for place in places.values() if isinstance(place, str)]
        if (cfg.negative_style or preset.negative_style) == "vocal":
            needed.append("vocal")
        endings = {Path(weighted(style, os.path.isfile)[0]).suffix.lower() for style in cfg.style or ()}
        if preset.style_encoder != "none" and cfg.style_encoder:
            encoder_folders(cfg)                             # all of them are there, or it raises
        elif preset.style_encoder != "none" and (cfg.style_text or cfg.manifest or endings & {*READABLE}):
            needed += ENCODER
        lacks = [f"{name}: {advice[name]}" for name in needed if advice[name]]
    except UserError as e:
        needed, lacks = [], [str(e)]
    print(f"--model {cfg.model}", *(lacks or ["nothing is missing"]), sep="\n  ")
    if needed and ENCODER[0] not in needed:
        print(f"  {', '.join(ENCODER)}: only for --style with a sound file and for --style-text")
    return not lacks
