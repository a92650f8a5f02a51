"""The queue of songs, and what is sung by whom, without a server."""

import copy
import threading
import time

import pytest
from conftest import BABY

from config import PHONEMIZER, UserError
from lyrics import formats
from lyrics.pronounce import reader
from studio.document import empty
from studio.jobs import Job, Jobs, Singer
from studio.project import Project
from studio.typed import with_lyrics
from support import files
from support.audio import read_wave

NOTHING = {"take": None, "span": None, "seed": None, "variation": None, "best_of": None}


def until(holds) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_song_is_cancelled_before_its_next_step_and_mistakes_are_one_line(capfd):
    told, stepped, step, go = [], [], threading.Semaphore(0), threading.Semaphore(0)

    def work(job, bar):
        if isinstance(job.asked["seed"], Exception):
            raise job.asked["seed"]
        for i in bar(range(5), desc="sampling", unit="step"):
            stepped.append((job.id, i))
            step.release()
            go.acquire()
        return "1"

    queue = Jobs(work, told.append)
    songs = [Job({}, {"seed": seed, "take": take}) for seed, take in (
        (1, "5"), (2, None), (UserError("no"), None), (KeyError("x"), None), (3, None))]
    try:
        for song in songs:
            queue.add(song)
        step.acquire()
        assert queue.needs("5") and not queue.needs("6")
        queue.cancel(songs[0].id)
        queue.cancel(songs[4].id)
        go.release(6)
        until(lambda: songs[3].state == "failed")
        assert [(song.state, song.error, song.take) for song in songs] == [
            ("cancelled", "", None), ("done", "", "1"), ("failed", "no", None),
            ("failed", "error: KeyError: 'x'", None), ("cancelled", "", None)]
        assert stepped == [("1", 0), *(("2", i) for i in range(5))] and not queue.needs("5")
        assert [(event["job"]["done"], event["job"]["of"]) for event in told if event["type"] == "job" and
                (event["job"]["id"], event["job"]["stage"]) == ("2", "sampling")] == [
                    *((i, 5) for i in range(6)), (5, 5)]
    finally:
        go.release(99)
        queue.close()
        queue.thread.join(20)
    assert not queue.thread.is_alive() and capfd.readouterr().err.count("Traceback") == 1


# What is sung

@pytest.fixture(scope="module")
def singer(tmp_path_factory, tiny_folder):
    project = Project(tmp_path_factory.mktemp("jobs"), ["female", "male"])
    yield Singer(project, {"model": tiny_folder, "style": None})
    files.release()


@pytest.fixture(scope="module")
def document():
    text = "Good morning sunny world\nAnd good night moon\nSleep well"
    return with_lyrics(empty("female"), formats.parse(text, "text", "text"), reader(BABY / PHONEMIZER))


def changed(document: dict, line: int, number: int | None = None, **changes) -> dict:
    """A document with a changed line, or word of it."""
    document = copy.deepcopy(document)
    place = document["lines"][line] if number is None else document["lines"][line]["words"][number]
    place.update(changes)
    return document


def sing(singer: Singer, document: dict, **asked) -> dict:
    """The take of a document."""
    stages = []

    def bar(items, desc, unit):
        stages.append(desc)
        return items

    take = singer.project.takes[singer.sing(Job(document, NOTHING | asked), bar)]
    return take | {"stages": stages, "wave": read_wave(singer.project.file(take["id"], "wav"))[0][0]}


def unlike(take: dict, other: dict) -> list[float]:
    """Where two takes begin and cease to differ, in seconds."""
    differ = (take["wave"] != other["wave"]).nonzero()[:, 0].tolist()
    return [differ[0] / 24000, differ[-1] / 24000] if differ else []


def test_a_word_that_changes_is_sung_again_and_nothing_else(singer, document):
    first = sing(singer, document, seed=3)
    again = sing(singer, changed(document, 0, 1, word="evening"), take=first["id"])
    [[begin, end]] = again["spans"]
    assert (again["kind"], again["before"], again["seed"]) == ("edit", first["id"], 3)
    assert 0.6 < begin < 0.8 < 1.4 < end < 1.6
    assert begin <= min(unlike(first, again)) < max(unlike(first, again)) <= end
    assert again["note"] == f"1 word changed, {end - begin:.2f} s sung again; outside: identical"
    moved = sing(singer, changed(document, 2, 1, end=8.0), take=again["id"])
    assert moved["duration"] == 8.5 and len(moved["spans"]) == 2
    with pytest.raises(UserError, match="nothing differs from take"):
        sing(singer, document, take=first["id"])
    part = sing(singer, document, take=first["id"], span=[3.0, 3.5], variation=0.5)
    assert part["seed"] == 4 and part["note"] == "0.70 s sung again; outside: identical"
    assert 2.8 < min(unlike(first, part)) and max(unlike(first, part)) < 3.7


def test_each_singer_sings_its_own_lines(singer, document):
    duet = changed(document, 1, style="male")
    alone, both = sing(singer, document), sing(singer, duet)
    assert both["spans"] == [] and both["stages"].count("sampling") == 2
    assert 2.7 < min(unlike(alone, both)) < max(unlike(alone, both)) < 4.9
    sung = sing(singer, duet, take=alone["id"])              # the same from an edit
    assert unlike(both, sung) == [] and sung["stages"].count("sampling") == 1
    for now, steps in (
            (changed(duet, 1, 2, word="day"), [{"style": ("male",), "span": None}]),     # who sings the line
            (changed(changed(duet, 1, 2, word="day"), 0, 0, word="Bad"), [{"style": None, "span": None}]),
            (document, [{"style": ("female",), "span": ("2.900-4.700",)}])):
        assert singer.steps(Job(now, NOTHING | {"take": sung["id"]})) == steps


def test_a_line_that_is_not_sung_has_no_singer(singer, document):
    other = changed(document, 1, style="male", backing=True)
    other["lines"][1]["words"] = [{"word": "ooh", "start": 0.6, "end": 1.0, "phoneme": None}]
    assert singer.steps(Job(other, NOTHING)) == [{"style": ("female",)}]


def test_a_song_that_fails_leaves_nothing(singer, document):
    before = sorted(path.name for path in singer.project.folder.rglob("*"))
    with pytest.raises(UserError, match="cannot be read"):
        sing(singer, changed(document, 0, 0, word="\u0436"))

    def bar(items, desc, unit):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        singer.sing(Job(document, NOTHING), bar)
    assert sorted(path.name for path in singer.project.folder.rglob("*")) == before
