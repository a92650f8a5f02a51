"""A page on this machine on which a song is written, sung, and changed word by word.

    python -m studio
    python -m studio --project songs/first --port 8765

It prints the address to open. Only who has that address can use it, and only from this machine.
"""

import dataclasses
import importlib.util
import secrets
import socket
from pathlib import Path

from config import DTYPES, Settings, SingSettings, UserError, one_of, within
from support.cli import first, parse, run


@dataclasses.dataclass(frozen=True)
class StudioConfig(Settings):
    """Write, sing and change songs on a page."""
    # studio
    project: Path = Path("project")             # folder of the song: its words and its takes; made if it is
                                                #   not there
    port: int = within(0, 0, 65535)             # of the address, on this machine only; 0: any free one
    # singing
    model: str = SingSettings.model             # baby, jam-0.5, a .safetensors file, or a folder that holds
                                                #   model.safetensors
    style: tuple[str, ...] | None = None        # a singer to choose: a style that the model names, a sound
                                                #   file or a saved vector; repeat for more; default: all that
                                                #   the model names
    lexicon: Path | None = None                 # your own pronunciations: lines of a word and its IPA or
                                                #   ARPAbet
    device: str = "auto"                        # auto (CUDA, then MPS, then CPU), or a torch device
    dtype: str = one_of("auto", ("auto", *DTYPES))           # of the network: float32, bfloat16 or float16;
                                                #   auto: bfloat16 where the device computes in it
    threads: int | None = within(None, 1, 1024) # of the CPU; default: all
    compile: bool = False                       # torch.compile the network's blocks: a minute at the start,
                                                #   faster steps
    # files
    vae: str | None = None                      # decoder: diffrhythm, stable-audio, or a local file; default:
                                                #   diffrhythm, if the model needs one
    trust_vae: bool = False                     # let a TorchScript decoder run code of its own
    phonemizer: Path | None = None              # a DeepPhonemizer checkpoint; default: the model's own
    style_encoder: Path | None = None           # folder of MuQ-MuLan-large, MuQ-large-msd-iter and
                                                #   xlm-roberta-base; default: the hub's
    offline: bool = False                       # download nothing


def main(argv: list[str] | None = None) -> None:
    """Serve until Ctrl-C."""
    cfg = parse(StudioConfig, __doc__, argv, name="python -m studio")
    for library in ("starlette", "uvicorn"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{library} is not installed: pip install -r requirements-studio.txt")
    import uvicorn

    from studio.server import Studio

    class Server(uvicorn.Server):
        """Ends streams of events before it waits for all answers to end."""

        def handle_exit(self, *signal: object) -> None:
            studio.close()
            super().handle_exit(*signal)

    shared = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
    del shared["project"], shared["port"]
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", cfg.port))
            listening.listen()
        except OSError as e:
            raise UserError(f"--port {cfg.port}: {e.strerror}") from None
        port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
        studio = Studio(cfg.project, shared)
        try:
            server = Server(uvicorn.Config(studio.app(port, token), log_level="error", access_log=False,
                                           ws="none", lifespan="off", server_header=False,
                                           proxy_headers=False, timeout_graceful_shutdown=5))
            print(f"http://127.0.0.1:{port}/?token={token}", flush=True)
            server.run(sockets=[listening])
        finally:
            studio.close()


if __name__ == "__main__":
    first(lambda: parse(StudioConfig, __doc__, name="python -m studio"))
    run(main)
