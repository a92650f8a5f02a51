"""Songs are sung one after another by one thread; progress is told, and a song can be cancelled.

Read `Jobs` (the queue and its thread), then `Singer.sing` (what one job does, step by step).
"""

import dataclasses
import functools
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator

import torch

from config import SampleConfig, UserError
from lyrics import formats
from sample import Model, Prompts, resolve, validate
from songs.files import check_outputs, outputs_of, request_of, write
from songs.manifest import Song
from songs.page import peaks  # noqa: F401
from studio.document import lyrics_of
from studio.project import Project
from support.audio import length_s
from support.files import describe, write_text
from support.hub import ModelFiles
from support.processes import pick_device

MOST_QUEUED = 8


class Cancelled(Exception):
    """Somebody no longer wants the song that is being sung."""


class Full(Exception):
    """Too many songs wait already."""


@dataclasses.dataclass
class Job:
    """A song that is to be sung, is being sung, or was."""
    id: str
    document: dict                   # as it was when it was asked for
    asked: dict                      # how: take, span, seed, variation, best_of
    state: str = "queued"            # then singing; then done, failed or cancelled
    stage: str = ""                  # sampling, decoding
    done: int = 0                    # of its steps
    of: int = 0
    error: str = ""                  # one line
    take: str | None = None          # that it has become
    unwanted: bool = False

    def shown(self) -> dict:
        """What pages are told."""
        return {name: getattr(self, name) for name in ("id", "state", "stage", "done", "of", "error", "take")}


class Jobs:
    """A queue of songs and the thread that sings them.

    Args: work, called in that thread with a job and `bar`, which wraps each list of its steps; it returns the
        take's name; tell, called with each event, in any thread.
    """

    def __init__(self, work: Callable[[Job, Callable], str], tell: Callable[[dict], None]):
        self.work, self.tell = work, tell
        self.changed, self.waiting, self.closed = threading.Condition(), deque(), False
        self.last: Job | None = None                         # that is sung, or was
        self.count = 0
        self.thread = threading.Thread(target=self.run, name="singer")
        self.thread.start()

    def add(self, document: dict, asked: dict) -> Job:
        """Queue a song. Raises: Full."""
        with self.changed:
            if len(self.waiting) >= MOST_QUEUED:
                raise Full
            self.count += 1
            job = Job(str(self.count), document, asked)
            self.waiting.append(job)
            self.changed.notify()
        self.show(job)
        return job

    def cancel(self, name: str) -> None:
        """Cancel a job: at once if it waits, else before its next step. Raises: KeyError if there is none."""
        with self.changed:
            job = next((job for job in (self.last, *self.waiting) if job and job.id == name), None)
            if job is None:
                raise KeyError(name)
            job.unwanted = True
            if job in self.waiting:
                self.waiting.remove(job)
                job.state = "cancelled"
        self.show(job)

    def close(self) -> None:
        """Cancel everything; the thread ends."""
        with self.changed:
            self.closed = True
            for job in (self.last, *self.waiting):
                if job:
                    job.unwanted = True
            self.changed.notify()

    def state(self) -> dict:
        """The job that is sung or was sung last, and those that wait."""
        with self.changed:
            return {"job": self.last and self.last.shown(), "queue": [job.shown() for job in self.waiting]}

    def needs(self, take: str) -> bool:
        """Whether a job that is not done begins with this take."""
        with self.changed:
            return any(job.asked["take"] == take for job in (self.last, *self.waiting)
                       if job and job.state in ("queued", "singing"))

    def show(self, job: Job) -> None:
        """Tell how far a job is."""
        self.tell({"type": "job", "job": job.shown()})

    def run(self) -> None:
        """What the thread does."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if self.closed:
                    return
                job = self.last = self.waiting.popleft()
                job.state = "singing"
            self.show(job)
            try:
                job.take = self.work(job, functools.partial(self.bar, job))
                job.state = "done"
            except Cancelled:
                job.state = "cancelled"
            except UserError as e:
                job.state, job.error = "failed", str(e)
            except Exception as e:
                job.state, job.error = "failed", f"error: {describe(e)}"
                traceback.print_exc()
            if job.take:
                self.tell({"type": "state"})
            self.show(job)

    def bar(self, job: Job, items, desc: str, unit: str) -> Iterator:
        """Report each step of a job. Raises: Cancelled, between two steps."""
        items = list(items)
        for i, item in enumerate([*items, None]):
            job.stage, job.done, job.of = desc, i, len(items)
            if job.unwanted:
                raise Cancelled
            self.show(job)
            if i < len(items):
                yield item


class Singer:
    """Sings jobs into takes of a project. Args: cfg, the settings that all songs share."""

    def __init__(self, project: Project, cfg: SampleConfig, files: ModelFiles):
        self.project, self.cfg, self.files = project, cfg, files
        self.model = functools.lru_cache(maxsize=1)(Model)

    def sing(self, job: Job, bar: Callable) -> str:
        """Sing a job. Returns: the take. Raises: UserError; what `bar` raises."""
        document = job.document
        seed = document["seed"] if job.asked["seed"] is None else job.asked["seed"]
        with self.project.work() as work, self.project.new_take() as (name, about):
            lyrics = work / "lyrics.json"
            write_text(lyrics, formats.write(lyrics_of(document), "jam"))
            cfg = dataclasses.replace(self.cfg, lyrics=lyrics, style=(document["style"],), seed=seed, page=False,
                                      duration=document["duration"], out=self.project.sound(name))
            sing_song(cfg, bar, self.model)
            about |= {"seed": seed, "style": document["style"], "duration": length_s(self.project.sound(name)),
                      "lines": document["lines"]}
        return name


def sing_song(cfg, bar, load):
    from support.hub import locate
    validate(cfg)
    song = Song("", cfg.lyrics, cfg.style or (), (), cfg.duration, cfg.seed)
    check_outputs(song, cfg)
    device, files = pick_device(cfg.device), locate(cfg)
    cfg = resolve(cfg, files.preset, device)
    torch.set_num_threads(cfg.threads)
    request = request_of(song, 0, files, cfg)
    [outputs] = outputs_of(song, cfg)
    prompt = Prompts(files, cfg, device).make(song)
    model = load(files, device, cfg.dtype, cfg.compile)
    from sample import Take, master
    latents = model.latents(prompt, cfg.seed, cfg, lambda steps: bar(steps, "sampling", "step"))
    wave = model.codec.decode(latents, lambda parts: bar(parts, "decoding", "part"))[0]
    rate = files.preset.codec.sample_rate_hz
    wave = master(wave, rate, round(prompt.duration_s * rate))
    write(Take(latents[0], wave, {}), prompt, request, cfg, outputs)
    return outputs
