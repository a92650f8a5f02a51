"""Songs are sung one after another by one thread; progress is told, and a song can be cancelled.

Read `Jobs` (the queue and its thread), then `Singer`: `steps` (what is sung by whom) and `sing`.
"""

import dataclasses
import functools
import itertools
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from config import SampleConfig, UserError
from lyrics import formats
from lyrics.plan import TAIL_S
from lyrics.voices import answers
from sample import Model, sing_song
from songs.asked import validate
from studio.document import is_seed, is_span, is_take, lyrics_of, number, or_null
from studio.project import Project
from support.audio import length_s
from support.cli import flag_of, parse
from support.files import describe, read_json, write_text

MOST_QUEUED, MOST_BEST_OF = 8, 16
# What a page may ask for beside the document: the take of before and seconds of it, and how it is sung.
ASKED = {"take": or_null(is_take), "span": or_null(is_span), "seed": or_null(is_seed),
         "variation": or_null(number(0, 1)),
         "best_of": or_null(lambda value: type(value) is int and 1 <= value <= MOST_BEST_OF)}


class Cancelled(Exception):
    """Nobody wants the song any more that is being sung."""


@dataclasses.dataclass
class Job:
    """A song that is to be sung, is being sung, or was."""
    document: dict                   # as it was when the song was asked for
    asked: dict                      # values of ASKED
    id: str = ""
    state: str = "queued"            # then singing; then done, failed or cancelled
    stage: str = ""                  # sampling, decoding
    done: int = 0                    # steps of the stage...
    of: int = 0                      # ...of so many
    error: str = ""                  # one line
    take: str | None = None          # that it has become
    unwanted: bool = False           # cancelled, but still being sung

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

    def add(self, job: Job) -> None:
        """Queue a song. Raises: UserError if too many wait already."""
        with self.changed:
            if len(self.waiting) >= MOST_QUEUED:
                raise UserError(f"{MOST_QUEUED} songs wait already")
            self.count += 1
            job.id = str(self.count)
            self.waiting.append(job)
            self.show(job)
            self.changed.notify()

    def cancel(self, name: str) -> None:
        """Cancel a job: at once if it waits, else before its next step. Raises: UserError."""
        with self.changed:
            job = next((job for job in (self.last, *self.waiting) if job and job.id == name), None)
            if job is None:
                raise UserError(f"job {name}: is over, or never was")
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
            except (UserError, OSError) as e:                # OSError: a full disk
                job.state, job.error = "failed", describe(e)
            except Exception as e:
                job.state, job.error = "failed", f"error: {describe(e)}"
                traceback.print_exc()
            if job.take:
                self.tell({"type": "state"})
            self.show(job)

    def bar(self, job: Job, items: Iterable, desc: str, unit: str) -> Iterator:
        """Report each step of a job. Raises: Cancelled, between two steps."""
        items = list(items)
        for i in range(len(items) + 1):                      # the last time, all are done
            if job.unwanted:
                raise Cancelled
            job.stage, job.done, job.of = desc, i, len(items)
            self.show(job)
            yield from items[i:i + 1]


class Singer:
    """Sings jobs into takes of a project. Args: settings of sample.py that all songs share, by name."""

    def __init__(self, project: Project, settings: dict):
        self.project, self.settings = project, settings
        self.model = functools.lru_cache(maxsize=1)(Model)

    def steps(self, job: Job) -> list[dict]:
        """The settings of each step of a job: what the song's singer sings, then the lines of each other.

        Raises: UserError for a take that cannot be sung again, or if there is nothing to sing.
        """
        document, asked = job.document, job.asked
        singers = [line["style"] or document["style"] for line in document["lines"]]
        if asked["take"] is None:
            if asked["span"] or asked["variation"] is not None:
                raise UserError("a span and a variation are those of a take; say of which")
            steps, again = [{"style": (document["style"],)}], [name != document["style"] for name in singers]
        else:
            steps, again = self.changes(job, singers)
        lines = [row for row in zip(document["lines"], singers, again, answers(lyrics_of(document)))
                 if row[0]["words"] and row[2] and row[3]]
        for name in dict.fromkeys(singer for _, singer, *_ in lines):
            spans = (span_text(extent(line)) for line, singer, *_ in lines if singer == name)
            steps.append({"style": (name,), "span": tuple(spans)})
        if not steps:
            raise UserError(f"nothing differs from take {asked['take']}; mark what is to be sung again")
        return steps

    def changes(self, job: Job, singers: list[str]) -> tuple[list[dict], list[bool]]:
        """The step that sings changed words of a take, if there are any; which lines others sing after it.

        It has one singer, if all lines with changes have the same; else those who sang there before.

        Args: singers, of each line.
        """
        lines, span = job.document["lines"], job.asked["span"]
        before = self.project.takes.get(job.asked["take"])
        if before is None or before["kind"] == "recording":
            raise UserError(f"take {job.asked['take']}: expected one that was sung here")
        if span and span[1] > before["duration"]:
            raise UserError(f"span {span}: expected seconds up to {before['duration']:.2f}, the take's end")
        changed = [(word["start"], word["end"]) for word in (
            *differing(lines, before["lines"]), *differing(before["lines"], lines))] + [span] * bool(span)
        touched = [any(overlap(extent(line), part) > 0 for part in changed) for line in lines]
        found = {*itertools.compress(singers, touched)}
        singer = found.pop() if len(found) == 1 else None
        again = []
        for line, own, new in zip(lines, singers, touched):
            seconds, had = max(((overlap(extent(line), extent(old)), old["style"] or before["style"])
                                for old in before["lines"]), default=(0.0, ""))
            again.append(had != own if seconds > 0 else new and singer != own)
        step = {"style": singer and (singer,), "span": (span_text(span),) if span else None}
        return [step] * bool(changed or job.asked["variation"] is not None), again

    def sing(self, job: Job, bar: Callable) -> str:
        """Sing a job. Returns: the take's name. Raises: UserError; what `bar` raises."""
        document, asked, spans, outside = job.document, job.asked, [], 0.0
        before = self.project.takes.get(asked["take"])
        account = self.project.file(asked["take"], "wav.json") if before else None
        with self.project.work() as work, self.project.new_take() as (name, about):
            lyrics = work / "lyrics.json"
            title = document["title"] or about["name"]
            write_text(lyrics, formats.write(lyrics_of(document | {"title": title}), "jam"))
            for i, step in enumerate(self.steps(job)):
                folder = work / str(i)
                folder.mkdir()
                account = self.step(self.given(job, before) | step | {
                    "edit": account, "lyrics": lyrics, "out": folder / f"{name}.wav"}, bar)
                found = read_json(account)
                if "edit" in found:
                    spans, outside = spans + found["edit"]["spans"], max(outside, found["edit"]["outside"])
            for path in folder.glob(f"{name}.*"):
                path.replace(self.project.file(name, path.name.partition(".")[2]))
            about |= {"kind": "edit" if before else "song", "before": asked["take"],
                      "seed": found["request"]["seed"], "style": document["style"],
                      "duration": length_s(self.project.file(name, "wav")), "lines": document["lines"],
                      "spans": joined(spans) if before else []}
            about["note"] = note(about, before, outside)
        return name

    def given(self, job: Job, before: dict | None) -> dict:
        """The settings of all steps of a job, None for those of the take before or of the model."""
        document, seed, length = job.document, job.asked["seed"], job.document["duration"]
        if before is None:
            seed = document["seed"] if seed is None else seed
        elif seed is None and job.asked["variation"] is not None:
            seed = before["seed"] + 1
        end = max((extent(line)[1] for line in document["lines"]), default=0.0)
        if before and length is None and end > before["duration"]:
            length = end + TAIL_S
        return self.settings | {"page": False, "seed": seed, "duration": length,
                                "variation": job.asked["variation"], "best_of": job.asked["best_of"]}

    def step(self, settings: dict, bar: Callable) -> Path:
        """Sing a song as the command line does. Returns: its account."""
        cfg = parse(SampleConfig, "", flags(settings))
        validate(cfg)
        try:
            return sing_song(cfg, bar, self.model, lambda line: None)        # pages are told
        except UserError as e:                               # its page knows no such file
            raise UserError(str(e).replace(f"{cfg.lyrics}: ", "")) from None


def flags(settings: dict) -> list[str]:
    """The flags of a command line that gives these settings; None gives none."""
    return [f"{flag_of(name)}={each}" for name, value in settings.items() if value is not None
            for each in (value if isinstance(value, tuple) else [value])]


def note(take: dict, before: dict | None, outside: float) -> str:
    """What a take is, in words. Args: outside, how far it differs from `before` outside of its spans."""
    if before is None:
        return f"{sum(len(line['words']) for line in take['lines'])} words in {take['duration']:.2f} s"
    count, seconds = len(differing(take["lines"], before["lines"])), sum(b - a for a, b in take["spans"])
    words = f"{count} word{'s' * (count != 1)} changed, " if count else ""
    return f"{words}{seconds:.2f} s sung again; outside: " + (
        "identical" if outside == 0 else f"differs by {outside:.1e} at most")


def differing(lines: list[dict], others: list[dict]) -> list[dict]:
    """The words of lines that others do not have at the same times with the same sounds."""
    there = {tuple(word.values()) for line in others for word in line["words"]}
    return [word for line in lines for word in line["words"] if tuple(word.values()) not in there]


def extent(line: dict) -> tuple[float, float]:
    """From when to when a line is sung."""
    return (min((word["start"] for word in line["words"]), default=0.0),
            max((word["end"] for word in line["words"]), default=0.0))


def span_text(span: Iterable[float]) -> str:
    """Seconds as --span takes them."""
    return "-".join(f"{time:.3f}" for time in span)


def overlap(a: Iterable[float], b: Iterable[float]) -> float:
    """How long two spans are in common; below 0, how far apart they are."""
    (begin, end), (other_begin, other_end) = a, b
    return min(end, other_end) - max(begin, other_begin)


def joined(spans: list[list[float]]) -> list[list[float]]:
    """Spans in order, those that touch as one."""
    found: list[list[float]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([begin, end])
    return found
