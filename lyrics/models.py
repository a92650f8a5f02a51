"""The published speech models that lyrics/align.py listens with, and its settings.

They stand here because a command line is read before torch is imported, which takes seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from config import Settings, one_of, within
from support.files import read_json


class Source(NamedTuple):
    """A published model of torchaudio.pipelines, which downloads the weights itself."""
    name: str
    url: str                             # of its weights
    folder: str                          # of torch.hub.get_dir(), where torchaudio puts them
    size: str                            # of its parameters; the file's is not published
    licence: str                         # as torchaudio's documentation says
    options: dict                        # of get_model

    @property
    def bundle(self):
        """torchaudio's own description of it."""
        import torchaudio
        return getattr(torchaudio.pipelines, self.name)

    @property
    def path(self) -> Path:
        """The local copy of its weights."""
        import torch
        return Path(torch.hub.get_dir(), self.folder, self.url.rpartition("/")[2])


MODELS = {name: Source(**row) for name, row in read_json(Path(__file__).with_name("models.json")).items()}
LISTENERS = {name: MODELS[name] for name in ("mms", "wav2vec2")}
SEPARATOR = MODELS["separator"]


@dataclass(frozen=True)
class AlignSettings(Settings):
    """Find the times of the words in a recording."""
    model: str = one_of("mms", LISTENERS)       # mms (1,130 languages, non-commercial) or wav2vec2 (English
                                                #   speech)
    separate: bool = True                       # take the voice out of the mix first; false for a voice
                                                #   alone
    margin: float = within(1.0, 0)              # seconds by which lines may miss their own times, where they
                                                #   have some
    device: str = "auto"                        # auto (CUDA, then MPS, then CPU), or a torch device
    offline: bool = False                       # use what is on this machine only
