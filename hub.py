"""Where every file of a model comes from: this repository, a path of the user, or the network.

Read ASSETS, then `fetch` (local first, then one download, checked), `plan` (which files a --model needs),
`locate` and `encoder_folders` (their paths), `doctor` (what of it is here).
"""

import functools
import hashlib
import http.client
import importlib.metadata
import importlib.util
import os
import platform
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from audio import READABLE
from cli import find, preset_from_json, read_json, replacing
from config import AVERAGED, CONFIG, PHONEMIZER, PRESETS, STYLES, WEIGHTS, Preset, SampleConfig, UserError
from style import weighted

TIMEOUT_S = 30                                               # of a plain url; the hub's library has its own
JAM = "non-commercial, songs too: Project Jamify licence + Stability AI Community Licence"
MUQ, XLMR = "OpenMuQ/MuQ-large-msd-iter", "FacebookAI/xlm-roberta-base"
JAMIFY = "https://github.com/declare-lab/jamify/raw/main/public"


@dataclass(frozen=True)
class Asset:
    """One file of somebody else's, and what is known of it."""
    what: str
    repo: str                            # owner/name on the hub, or the url of the file's folder
    file: str
    flag: str                            # of sample.py, by which a local copy is passed; "": there is none
    licence: str = "see its page"
    revision: str = "main"               # of a hub repository; 40 hex digits where it is pinned
    bytes: int | None = None             # None: not known
    sha256: str | None = None            # None: not known
    gated: bool = False                  # needs an accepted licence and a token
    check_always: bool = False           # check sha256 each time, not only after a download

    @property
    def source(self) -> str:
        """Repository, revision and file, or the url."""
        if self.repo.startswith("http"):
            return f"{self.repo}/{self.file}"
        return f"{self.repo}@{self.revision[:8]}/{self.file}"


# Sizes and sums were read from the files' pages or computed; what is not known is None.
ASSETS = {
    "jam-0.5": Asset("weights of JAM-0.5", "declare-lab/jam-0.5", "jam-0_5.safetensors", "--model", JAM),
    "diffrhythm": Asset(
        "decoder of DiffRhythm", "ASLP-lab/DiffRhythm-vae", "vae_model.pt", "--vae",
        "see its page; fine-tuned from Stable Audio's (Stability AI Community Licence)",
        "74e2afacfd91dd1b96662c96dcef763c1258768b"),
    "stable-audio": Asset(
        "autoencoder of Stable Audio Open", "stabilityai/stable-audio-open-1.0",
        "vae/diffusion_pytorch_model.safetensors", "--vae", "Stability AI Community Licence", gated=True),
    "phonemizer": Asset(                                     # a pickle
        "English phonemizer", "NRC-CNRC/en_us_cmudict_ipa_forward_g2p", "en_us_cmudict_ipa_forward.pt",
        "--phonemizer", revision="05f9e2f78b12f4f8852e4f8b3f77dc7e01749293", check_always=True,
        sha256="ee18c945608c0f2a52a4dc3edb21546a161911bde86be19052ff9895cec2483f"),
    # Later revisions carry a model.safetensors that lacks tensors.
    "mulan": Asset(
        "style encoder MuQ-MuLan", "OpenMuQ/MuQ-MuLan-large", "pytorch_model.bin", "--style-encoder",
        "CC-BY-NC 4.0", "2e01c796b71dca71b45251384c04cd7b237c9020", 2653954401,
        "d42ae3f7cb9b66759ee0089ddc70e2f28b130c2d8ba621457358272d32dd0444"),
    "mulan-config": Asset(
        "sizes of MuQ-MuLan", "OpenMuQ/MuQ-MuLan-large", "config.json", "--style-encoder", "CC-BY-NC 4.0",
        "2e01c796b71dca71b45251384c04cd7b237c9020"),
    "muq-config": Asset(
        "sizes of MuQ", MUQ, "config.json", "--style-encoder", "CC-BY-NC 4.0",
        "0562a57814f6f8bbd9fdea0a25921a2fce1a841a"),
    "xlmr-config": Asset(
        "sizes of XLM-R", XLMR, "config.json", "--style-encoder", "MIT",
        "e73636d4f797dec63c3081bb6ed5c7b0bb3f2089"),
    "xlmr-tokenizer": Asset(
        "tokenizer of XLM-R", XLMR, "tokenizer.json", "--style-encoder", "MIT",
        "e73636d4f797dec63c3081bb6ed5c7b0bb3f2089"),
    "vocal": Asset(
        "negative style of JAM", JAMIFY, "vocal.npy", "--negative-style", bytes=2176, check_always=True,
        sha256="6cb7d74eb7a8eda12acb8247b21d373928301db8a8cb0db480d341799fed3ce5"),
    "silence": Asset(
        "latent frame of silence", JAMIFY, "silience_latent.pt", "", bytes=111713, check_always=True,
        sha256="a0e3fd3cfc226482b8d944b7dba2e2bb8af7848308bea8fd4f6e6b03e88ca87a"),
}
ENCODER = ("mulan", "mulan-config", "muq-config", "xlmr-config", "xlmr-tokenizer")
DECODERS = ("diffrhythm", "stable-audio")
LIBRARIES = ("torch", "torchaudio", "transformers", "huggingface_hub", "muq", "deep-phonemizer",
             "safetensors", "soundfile", "numpy")


@dataclass(frozen=True)
class ModelFiles:
    """Paths of all that a model needs to sing, and the preset that its weights fit."""
    preset: Preset
    weights: Path
    phonemizer: Path
    codec: Path | None                   # weights of the decoder; None: computed without any
    styles: Path | None                  # styles that the model names


# Fetching

def fetch(name: str, offline: bool = False) -> Path:
    """The local path of an asset, which is downloaded if it is not here.

    Args: name, a key of ASSETS; offline, download nothing (as HF_HUB_OFFLINE=1 says, too).
    Raises: UserError if it cannot be had, or is not the file that it should be.
    """
    asset, path = ASSETS[name], cached(name)
    if path is not None:
        if wrong := fault(asset, path, asset.check_always):
            raise UserError(f"{path}: {wrong}; {anew(path)}")
        return path
    try:
        import huggingface_hub
    except ImportError:
        raise refusal(asset, "huggingface_hub is not installed (pip install 'huggingface_hub<2')") from None
    if offline or huggingface_hub.is_offline_mode():
        raise refusal(asset, "not on this machine, and --offline or HF_HUB_OFFLINE forbids to fetch it")
    return download_url(asset) if asset.repo.startswith("http") else download_hub(asset)


def cached(name: str) -> Path | None:
    """The local path of an asset, or None if it is not here. Never touches the network."""
    asset = ASSETS[name]
    if asset.repo.startswith("http"):
        path = own_cache() / asset.file
        return path if path.is_file() else None
    if importlib.util.find_spec("huggingface_hub") is None:  # nothing was fetched without it
        return None
    import huggingface_hub
    # hf_hub_download(local_files_only=True) would ask the hub for a list of agents, once a day.
    path = huggingface_hub.try_to_load_from_cache(asset.repo, asset.file, revision=asset.revision)
    return Path(path) if isinstance(path, str) else None     # there is a third answer: known not to exist


def download_hub(asset: Asset) -> Path:
    """Download a file of a hub repository into the hub's cache. Raises: UserError."""
    import httpx
    import huggingface_hub
    # All that a download led to: some of these are no OSError (httpx.ConnectError, hf_xet's RuntimeError, a
    # proxy setting that is none: ValueError, or a SOCKS proxy without its library: ImportError).
    errors = (OSError, RuntimeError, ValueError, ImportError, httpx.HTTPError, httpx.InvalidURL)
    url = huggingface_hub.hf_hub_url(asset.repo, asset.file, revision=asset.revision)
    try:
        # One request, which is not retried: without network the download alone would try for 23 s.
        about = huggingface_hub.get_hf_file_metadata(url)
        announce(asset, about.size, f" (commit {about.commit_hash})")
        path = Path(huggingface_hub.hf_hub_download(asset.repo, asset.file, revision=asset.revision))
    except errors as e:
        raise refusal(asset, explain(asset, e)) from None
    if wrong := fault(asset, path, True):
        path.resolve().unlink()                              # the link that stays behind counts as missing
        raise refusal(asset, f"{wrong}; the broken copy was deleted, try again")
    return path


def download_url(asset: Asset) -> Path:
    """Download a plain url into this project's own cache. Raises: UserError."""
    path = own_cache() / asset.file
    announce(asset, asset.bytes)
    try:
        with urllib.request.urlopen(asset.source, timeout=TIMEOUT_S) as response:
            content = response.read(10 ** 7)                 # far more than any of these files has
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
            if wrong := fault(asset, temporary, True):
                raise UserError(wrong)
    except (OSError, http.client.HTTPException, UserError) as e:
        raise refusal(asset, explain(asset, e)) from None
    print(f"{path}: sha256 {asset.sha256 or sha256(path)}", file=sys.stderr)
    return path


def announce(asset: Asset, size: int | None, commit: str = "") -> None:
    print(f"fetching the {asset.what} from {asset.source}{commit}, {describe(size)}; licence: "
          f"{asset.licence}", file=sys.stderr)


def refusal(asset: Asset, why: str) -> UserError:
    """The error for an asset that cannot be had, with the way round the network."""
    return UserError(f"{asset.what} ({asset.source}): {why}; or {way_round(asset)}")


def way_round(asset: Asset) -> str:
    return f"pass a local copy with {asset.flag}" if asset.flag else f"put it at {own_cache() / asset.file}"


def anew(path: Path) -> str:
    # The hub's file is a link; were the link alone deleted, the same broken file would come back.
    return f"delete {path.resolve()} and it is fetched anew"


def explain(asset: Asset, error: Exception) -> str:
    """Why a download failed, in one line."""
    from huggingface_hub import errors
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__                              # the library wraps what happened
    # The hub hides a gated repository from who is not logged in.
    if (isinstance(error, errors.GatedRepoError)
            or asset.gated and isinstance(error, errors.RepositoryNotFoundError)):
        return gate(asset)
    for kind, text in ((errors.RepositoryNotFoundError, "there is no such repository, or it is private"),
                       (errors.RevisionNotFoundError, f"there is no revision {asset.revision}"),
                       (errors.EntryNotFoundError, "there is no such file")):
        if isinstance(error, kind):
            return text
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


def gate(asset: Asset) -> str:
    return f"accept the licence at https://huggingface.co/{asset.repo} and log in with `hf auth login`"


def own_cache() -> Path:
    """The folder of what does not come from the hub."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jam-pytorch"


def sha256(path: Path) -> str:
    """The checksum of a file, in hex, which is read once while it is the same. Raises: UserError."""
    try:
        about = path.stat()
        return digest_of(path, about.st_size, about.st_mtime_ns)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None


@functools.cache
def digest_of(path: Path, size: int, changed_ns: int) -> str:
    """As `sha256`; size and time of change are only the cache's."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2 ** 20):
            digest.update(chunk)
    return digest.hexdigest()


def fault(asset: Asset, path: Path, thorough: bool) -> str | None:
    """How a file differs from what is known of the asset, or None. Reads the file only if thorough."""
    size = path.stat().st_size
    if asset.bytes in (None, size) and not (thorough and asset.sha256):
        return None
    found = sha256(path)
    if asset.bytes in (None, size) and asset.sha256 in (None, found):
        return None
    return (f"broken: sha256 {found}, {size} bytes; expected {asset.sha256}"
            + f", {asset.bytes} bytes" * bool(asset.bytes))


# The files of a model

def locate(cfg: SampleConfig) -> ModelFiles:
    """Paths of all that --model needs to sing; what is not here is downloaded, unless --offline.

    Raises: UserError for a file that is not there or cannot be had.
    """
    preset, parts = plan(cfg)
    return ModelFiles(preset, **{part: fetch(at, cfg.offline) if isinstance(at, str) else at
                                 for part, at in parts.items()})


def plan(cfg: SampleConfig) -> tuple[Preset, dict[str, Path | str | None]]:
    """A model's preset, and for each part of ModelFiles its path, or the key of ASSETS to fetch.

    Raises: UserError for a file that is not there.
    """
    preset, weights = choose_model(cfg)
    if cfg.phonemizer is not None and not os.path.isfile(cfg.phonemizer):
        raise UserError(f"--phonemizer {cfg.phonemizer}: there is no such file")
    return preset, {"weights": weights,
                    "phonemizer": cfg.phonemizer or beside(weights, PHONEMIZER) or "phonemizer",
                    "codec": choose_codec(cfg, preset), "styles": beside(weights, STYLES)}


def beside(weights: Path | str, name: str) -> Path | None:
    """The file of that name in the folder of the user's weights, if it is there."""
    path = weights.with_name(name) if isinstance(weights, Path) else None
    return path if path and path.is_file() else None


def weights_in(folder: Path) -> Path:
    """The weights in a model's folder; of a checkpoint the averaged ones, which sing better."""
    averaged = folder / AVERAGED
    return averaged if averaged.is_file() else folder / WEIGHTS


def choose_model(cfg: SampleConfig) -> tuple[Preset, Path | str]:
    """The preset and weights that --model names. Raises: UserError."""
    if cfg.model == "jam-0.5":
        return PRESETS["jam-0.5"], "jam-0.5"
    try:
        path = find(Path("weights/baby" if cfg.model == "baby" else cfg.model))
    except OSError as e:                                     # a name that no file can have
        raise UserError(f"--model {cfg.model}: {e.strerror}") from None
    if path.is_dir():
        for name in (WEIGHTS, CONFIG):
            if not (path / name).is_file():
                raise UserError(f"--model {cfg.model}: there is no {name} in this folder")
        return preset_from_json(path / CONFIG), weights_in(path)
    if path.suffix == ".safetensors" and path.is_file():
        config = beside(path, CONFIG)
        own = config is not None and "codec" in read_json(config)        # the hub's own files know no codec
        return preset_from_json(config) if own else PRESETS["jam-0.5"], path
    raise UserError(f"--model {cfg.model}: expected baby, jam-0.5, a .safetensors file, or a folder with "
                    f"{WEIGHTS} and {CONFIG}")


def choose_codec(cfg: SampleConfig, preset: Preset) -> Path | str | None:
    """The decoder that --vae names for a model. Raises: UserError."""
    if preset.codec.kind == "mel":
        if cfg.vae is not None:
            raise UserError(f"--vae {cfg.vae}: --model {cfg.model} needs no decoder; leave it out")
        return None
    if cfg.vae is None or cfg.vae in DECODERS:
        return cfg.vae or DECODERS[0]
    if not os.path.isfile(cfg.vae):
        raise UserError(f"--vae {cfg.vae}: expected {', '.join(DECODERS)}, or a file")
    return Path(cfg.vae)


def encoder_folders(cfg: SampleConfig) -> tuple[Path, Path, Path]:
    """Folders of MuQ-MuLan, MuQ and XLM-R: inside of --style-encoder, or fetched, unless --offline.

    Raises: UserError for a file that is not there or cannot be had.
    """
    parts = {name: fetch(at, cfg.offline) if isinstance(at, str) else at
             for name, at in encoder_plan(cfg).items()}
    return parts["mulan"].parent, parts["muq-config"].parent, parts["xlmr-config"].parent


def encoder_plan(cfg: SampleConfig) -> dict[str, Path | str]:
    """For each file of the style encoder its path, or the key of ASSETS to fetch."""
    if cfg.style_encoder is None:
        return {name: name for name in ENCODER}
    assets = {name: ASSETS[name] for name in ENCODER}
    parts = {name: cfg.style_encoder / a.repo.split("/")[1] / a.file for name, a in assets.items()}
    for path in parts.values():
        if not os.path.isfile(path):
            raise UserError(f"--style-encoder {cfg.style_encoder}: there is no {path}")
    return parts


# What is here

def doctor(cfg: SampleConfig) -> bool:
    """Print every asset and its state, versions, devices, and what --model lacks; download nothing.

    Reads each asset that is here, for its checksum. Returns: whether --model can sing as it is.
    """
    states = {name: state(name) for name in ASSETS}
    print("assets")
    for name, asset in ASSETS.items():
        print(f"  {name:14}  {states[name][0]}\n{'':18}{asset.source}; licence: {asset.licence}")
    print("versions")
    print(f"  {'python':16}{platform.python_version()}")
    for name in LIBRARIES:
        try:
            print(f"  {name:16}{importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name:16}not installed")
    print("devices", *devices(), sep="\n  ")
    try:
        names = needs(cfg)
        lacks = [f"{name}: {states[name][1]}" for name in names if states[name][1]]
    except UserError as e:
        names, lacks = [], [str(e)]
    print(f"--model {cfg.model}", *(lacks or ["nothing is missing"]), sep="\n  ")
    if names and ENCODER[0] not in names:
        print(f"  {', '.join(ENCODER)}: only for --style with a sound file and for --style-text")
    return not lacks


def state(name: str) -> tuple[str, str | None]:
    """Of an asset: path, size and checksum; and what is to be done about it, None for nothing."""
    asset, path = ASSETS[name], cached(name)
    if path is None:
        first = f"{gate(asset)}; it is then" if asset.gated else "missing; it is"
        return (f"missing, {describe(asset.bytes)}",
                f"{first} fetched when first needed, unless --offline; or {way_round(asset)}")
    wrong, about = fault(asset, path, True), f"present, {path}, {describe(path.stat().st_size)}, sha256"
    if wrong:
        return f"{about} differs", f"{wrong}; {anew(path)}"
    return f"{about} {'ok' if asset.sha256 else f'not known, computed {sha256(path)}'}", None


def needs(cfg: SampleConfig) -> list[str]:
    """The assets without which --model, with the other flags, cannot sing. Raises: UserError, as `plan`."""
    preset, parts = plan(cfg)
    at = [*parts.values(), "vocal" if (cfg.negative_style or preset.negative_style) == "vocal" else None]
    if preset.style_encoder != "none":
        endings = {Path(weighted(style, os.path.isfile)[0]).suffix.lower() for style in cfg.style or ()}
        if cfg.style_text or cfg.style_encoder or cfg.manifest or endings & {*READABLE}:
            at += encoder_plan(cfg).values()
    return [name for name in at if isinstance(name, str)]


def devices() -> list[str]:
    """What torch can compute on."""
    import torch
    lines = [f"cpu: {torch.get_num_threads()} threads"]
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        lines.append(f"cuda:{i}: {about.name}, {about.total_memory / 2 ** 30:.1f} GiB")
    return lines + ["mps"] * torch.backends.mps.is_available()


def describe(size: int | None) -> str:
    """A number of bytes in words."""
    if size is None:
        return "size not known"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e3:.1f} kB"
