"""The studio's server, as pages and others meet it: who may ask, and what is answered."""

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from mutagen import id3

from config import UserError
from studio.__main__ import main
from support.audio import write_wave

TEXT = "[Verse]\nGood morning sunny world\nAnd good night"


class Client:
    """A browser that has opened the printed address, or one that pretends to."""

    def __init__(self, address: str):
        self.port, self.token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)\n", address).groups()

    def open(self, method: str, path: str, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", int(self.port), timeout=60)
        own = {"Cookie": f"studio-{self.port}={self.token}", "Content-Type": "application/json"}
        own |= dict(headers)
        body = json.dumps(body) if isinstance(body, (dict, list)) else body
        connection.request(method, path, body, {name: text for name, text in own.items() if text is not None})
        return connection.getresponse()

    def ask(self, method: str, path: str, body=None, **headers) -> tuple[int, object]:
        headers = {name.replace("_", "-"): text for name, text in headers.items()}
        answer = self.open(method, path, body, headers)
        content = answer.read()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(content) if is_json else content

    def get(self, path: str):
        status, value = self.ask("GET", path)
        assert status == 200, value
        return value

    def post(self, path: str, **body):
        status, value = self.ask("POST", path, body)
        assert status == 200, value
        return value

    def state(self) -> dict:
        return self.get("/api/state")

    def write(self, text: str = TEXT, **changes) -> tuple[dict, int]:
        """Put a document of a text. Returns: it and its revision."""
        state = self.state()
        document = self.post("/api/lyrics", document=state["document"] | {"lines": []}, text=text)["document"]
        document |= {"title": "", "artist": "", "style": "female", "duration": None, "take": None} | changes
        status, value = self.ask("PUT", "/api/document",
                                 {"revision": state["revision"], "document": document})
        assert status == 200, value
        return document, value["revision"]

    def sing(self, revision: int, **asked) -> dict:
        return self.post("/api/sing", revision=revision, **{
            "take": None, "span": None, "seed": None, "variation": None, "best_of": 1} | asked)["job"]

    def events(self):
        """Events, from now on."""
        answer = self.open("GET", "/api/events")
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        answer.readline()
        return (json.loads(line[6:]) for line in answer if line.startswith(b"data: "))

    def sung(self, revision: int, **asked) -> dict:
        """Sing, and wait. Returns: the job."""
        events = self.events()
        name = self.sing(revision, **asked)["id"]
        return next(event["job"] for event in events if event["type"] == "job" and event["job"]["id"] == name
                    and event["job"]["state"] not in ("queued", "singing"))


def start(folder, model) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "studio", "--project", folder, "--model", model], cwd=ROOT,
                            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def studio(tmp_path_factory, tiny_folder):
    with start(tmp_path_factory.mktemp("studio") / "project", tiny_folder) as server:
        try:
            yield Client(server.stdout.readline())
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 130 and "Traceback" not in server.stderr.read()
        finally:
            server.kill()


# Who may ask

def test_a_page_is_opened_with_the_token_and_then_with_a_cookie(studio):
    answer = studio.open("GET", f"/?token={studio.token}", headers={"Cookie": None})
    cookie = answer.headers["Set-Cookie"]
    assert answer.status == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert studio.open("GET", "/", headers={"Cookie": cookie.partition(";")[0]}).status == 200


@pytest.mark.parametrize("status, headers", [
    (403, {"Cookie": None}), (403, {"Cookie": "studio-1=x"}), (403, {"Cookie": "studio-{port}=x"}),
    (421, {"Host": "evil.example"}), (421, {"Host": "evil.example:{port}"}), (421, {"Host": "127.0.0.1"}),
    (403, {"Origin": "http://evil.example"}), (403, {"Origin": "null"}), (403, {"Origin": "https://{host}"}),
    (403, {"Origin": "http://localhost:{port}"}), (403, {"Sec-Fetch-Site": "cross-site"}),
    (403, {"Sec-Fetch-Site": "same-site"})])
def test_others_are_refused(studio, status, headers):
    headers = {name: text and text.format(port=studio.port, host=f"127.0.0.1:{studio.port}")
               for name, text in headers.items()}
    revision = studio.state()["revision"]
    body = {"revision": revision, "document": studio.state()["document"] | {"title": "stolen"}}
    for method, path in (("GET", "/api/state"), ("PUT", "/api/document"), ("GET", "/static/style.css")):
        answer = studio.open(method, path, body if method == "PUT" else None, headers)
        assert answer.status == status and [*json.load(answer)] == ["error"]
    assert studio.state()["revision"] == revision


def test_the_own_page_may_ask(studio):
    for host in (f"127.0.0.1:{studio.port}", f"localhost:{studio.port}"):
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert studio.open("GET", "/api/state", headers=headers).status == 200


def test_every_answer_has_the_headers_that_keep_it_here(studio):
    for path in ("/", "/api/state", "/nothing", f"/?token={studio.token}"):
        for headers in ({}, {"Cookie": None}):
            found = studio.open("GET", path, headers=headers).headers
            policy = found["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
            assert found["X-Content-Type-Options"] == "nosniff" and found["Cache-Control"] == "no-store"
            assert found["Cross-Origin-Resource-Policy"] == "same-origin"
            assert found["Referrer-Policy"] == "no-referrer" and "Access-Control-Allow-Origin" not in found


@pytest.mark.parametrize("path", [
    "/static/../server.py", "/static/%2e%2e%2fserver.py", "/static/..%5cserver.py", "/static//etc/passwd",
    "/static/%2fetc%2fpasswd", "/static/server.py", "/static/", "/static/index.html%00.js", "/project.json",
    "/api/takes/../project/audio", "/api/takes/..%2fproject/audio", "/api/takes/1.wav/audio",
    "/api/takes/999999/audio", "/api/takes/%00/peaks", "/api/export/wav?take=../1", "/api/export/exe?take=1",
    "/api/export/..%2fwav?take=1", "/api/nothing"])
def test_no_path_is_opened(studio, path):
    status, value = studio.ask("GET", path)
    assert status == 404 and [*value] == ["error"] and "Traceback" not in value["error"]


def test_methods_and_bodies_that_are_not_known(studio):
    assert studio.ask("POST", "/api/state")[0] == studio.ask("GET", "/api/sing")[0] == 405
    assert studio.ask("PUT", "/api/document", "{}", Content_Type="text/plain")[0] == 415
    for body in ("", "{", b"\xff", "[" * 100_000, "NaN"):
        assert studio.ask("POST", "/api/check", body)[0] in (400, 422)
    assert studio.ask("POST", "/api/check", {"document": {}, "more": 1})[0] == 422
    assert studio.ask("POST", "/api/cancel", {"job": "99"}) == (
        422, {"error": "job 99: is over, or never was"})


def test_large_bodies_are_refused(studio):
    assert studio.ask("POST", "/api/lyrics", b" " * (3 << 20))[0] == 413
    assert studio.ask("POST", "/api/import?name=a.lrc", b" " * (2 << 20))[0] == 413
    status, value = studio.ask("POST", "/api/import?name=a.lrc", iter([b" " * (1 << 20)] * 3))
    assert status == 413 and value["error"].endswith("expected 1048576 at most")
    many = studio.state()["document"] | {"lines": [{
        "section": "", "backing": False, "style": None,
        "words": [{"word": "la", "start": 1, "end": 2, "phoneme": None}] * 5001}]}
    assert studio.ask("POST", "/api/check", {"document": many}) == (
        422, {"error": "document: more than 5000 words"})
    many["lines"][0]["words"] = [{"word": "la", "start": 0, "end": 3600, "phoneme": None}] * 3
    assert studio.ask("POST", "/api/check", {"document": many}) == (
        422, {"error": "document: its words last more than 7200 s together"})
    document = studio.state()["document"]
    assert studio.ask("POST", "/api/lyrics", {"document": document, "text": "a " * 5001}) == (
        422, {"error": "text: 5001 words; expected 5000 at most"})


def test_a_request_that_breaks_off_is_no_fault(studio):
    """The fixture looks for what the server then prints."""
    for line in (f"PUT /api/document HTTP/1.1\r\nHost: 127.0.0.1:{studio.port}\r\nContent-Length: 9\r\n"
                 f"Content-Type: application/json\r\nCookie: studio-{studio.port}={studio.token}\r\n\r\n{{",
                 "GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", int(studio.port))) as connection:
            connection.sendall(line.encode())
    assert studio.state()


# The document

def test_a_document_is_kept_and_another_page_is_told(studio):
    document, revision = studio.write(title="Мир \u2028 <b>", style="male")
    state = studio.state()
    assert (state["document"], state["revision"]) == (document, revision)
    events = studio.events()
    status, value = studio.ask("PUT", "/api/document",
                               {"revision": revision, "document": document | {"bpm": 90}})
    assert (status, value) == (200, {"revision": revision + 1}) and next(events) == {"type": "state"}
    status, value = studio.ask("PUT", "/api/document", {"revision": revision, "document": document})
    assert status == 409 and value["revision"] == revision + 1 and value["document"]["bpm"] == 90
    for bad, error in (({"bpm": 0}, "document: bpm 0: expected a number from 20 to 400"),
                       ({"style": "bass"}, "document: style bass: expected one of female, male")):
        status, value = studio.ask("PUT", "/api/document",
                                   {"revision": revision + 1, "document": document | bad})
        assert (status, value) == (422, {"error": error})
    assert studio.state()["revision"] == revision + 1


def test_words_that_stay_keep_their_times(studio):
    document, _ = studio.write()
    text = TEXT.replace("sunny", "rainy")
    changed = studio.post("/api/lyrics", document=document, text=text)["document"]
    before, after = ([word for line in each["lines"] for word in line["words"]]
                     for each in (document, changed))
    assert [word["word"] for word in after] == text.split()[1:]
    assert [word | {"word": ""} for word in after] == [word | {"word": ""} for word in before]
    timed = studio.post("/api/lyrics", document=document, text="[00:07.00]Hello <00:08.00>you")["document"]
    assert [word["start"] for word in timed["lines"][0]["words"]] == [7.0, 8.0]


def test_what_will_be_sung_is_shown(studio):
    document, _ = studio.write("Good xyzzy\n(ooh)")
    document["lines"][1]["words"][0] |= {"start": 0.6, "end": 0.7}
    document["lines"][0]["words"][1]["phoneme"] = "L AH1 V"
    found = studio.post("/api/check", document=document)
    assert found["phonemes"][:2] == ["ɡʊd", "lʌv"]
    assert [text for text, *_ in found["sounds"][0]] == ["ɡ", "ʊ", "d"]
    word = document["lines"][0]["words"][0]
    starts, ends = zip(*(times for _, *times in found["sounds"][0]))
    assert starts[1:] == ends[:-1] and abs(starts[0] - word["start"]) < 0.01 and ends[-1] <= word["end"]
    assert {"level": "note", "where": "line 2", "text": "not sung: another line sounds here"
            } in found["problems"]
    document["lines"][0]["words"][1]["phoneme"] = "ж"
    [problem] = [found for found in studio.post("/api/check", document=document)["problems"]
                 if found["level"] == "error"]
    assert problem["where"] == 'line 1, word 2 "xyzzy"' and "phoneme ж is unknown" in problem["text"]


def test_lyrics_and_recordings_come_in(studio):
    status, value = studio.ask("POST", "/api/import?name=My%20song.lrc",
                               b"[ti:Mine]\n[00:01.00]Hello <00:02.00>you")
    assert status == 200 and value["document"]["title"] == "Mine"
    assert [word["word"] for word in value["document"]["lines"][0]["words"]] == ["Hello", "you"]
    for name, body, error in (("a.srt", b"1\n00:00:05,000 --> 00:00:01,000\nx", "a.srt: "),
                              ("a.json", b"{", "a.json: "),
                              ("a.exe", b"x", "a.exe: unknown ending"), ("", b"x", ": unknown ending"),
                              ("a.m4a", b"\xff", "a.m4a: unknown ending"), ("a.lrc", b"", "a.lrc: holds no"),
                              ("a.mp3", b"not a sound", "a.mp3: "), ("a.wav", b"", "a.wav: ")):
        status, value = studio.ask("POST", f"/api/import?name={name}", body)
        assert status == 422 and value["error"].startswith(error) and ".work" not in value["error"]


def test_a_recording_with_words_that_cannot_be_used_comes_without_them(studio, tmp_path):
    path = tmp_path / "a.mp3"
    write_wave(path, torch.zeros(1, 24000), 24000, path)
    tags = id3.ID3()
    tags.add(id3.SYLT(lang="eng", format=2, type=1, text=[("b", 3000), ("a", 1000), ("\nc", 2000)]))
    tags.save(path)
    document, _ = studio.write()
    status, value = studio.ask("POST", "/api/import?name=%3Cb%3E%0A.mp3", path.read_bytes())
    assert status == 200 and value["document"] == document
    [take] = [take for take in studio.state()["takes"] if take["id"] == value["take"]]
    assert take["name"] == "<b>.mp3" and take["note"].startswith("without its words: text: line ")


# Songs

def test_a_song_is_sung_told_of_heard_and_taken_away(studio):
    document, revision = studio.write(title="Day", artist="Me")
    events = studio.events()
    job = studio.sing(revision, seed=7)
    seen = []
    while not seen or seen[-1]["state"] in ("queued", "singing"):
        event = next(events)
        seen += [event["job"]] if event["type"] == "job" else []
    assert seen[0] == job and seen[-1]["state"] == "done" and seen[-1]["error"] == ""
    assert [found["stage"] for found in seen if found["stage"]] == sorted(
        (found["stage"] for found in seen if found["stage"]), reverse=True)
    assert {(found["done"], found["of"]) for found in seen if found["stage"] == "sampling"} == {
        (0, 2), (1, 2), (2, 2)}
    take = studio.state()["takes"][-1]
    assert take["id"] == seen[-1]["take"]
    assert (take["kind"], take["seed"], take["style"]) == ("song", 7, "female")
    assert take["lines"] == document["lines"] and take["note"] == f"7 words in {take['duration']:.2f} s"
    path = f"/api/takes/{take['id']}"

    whole = studio.get(f"{path}/audio")
    part = studio.open("GET", f"{path}/audio", headers={"Range": "bytes=100-199"})
    assert whole[:4] == b"RIFF" and part.status == 206 and part.read() == whole[100:200]
    assert studio.open("GET", f"{path}/audio", headers={"Range": f"bytes={len(whole)}-"}).status == 416
    peaks = studio.get(f"{path}/peaks")
    assert peaks["rate"] == 100 and len(peaks["peaks"]) == round(100 * take["duration"])
    assert studio.get(f"{path}/spectrogram")[:4] == b"\x89PNG"

    for kind, begins in (("wav", b"RIFF"), ("mp3", b"ID3"), ("flac", b"fLaC"), ("ogg", b"OggS"),
                         ("lrc", b"[ti:Day]"), ("ass", b"[Script Info]"),
                         ("ultrastar", b"#TITLE:Day\n#ARTIST:Me"), ("textgrid", b"File type"),
                         ("page", b"<!DOCTYPE html>"), ("account", b"{")):
        answer = studio.open("GET", f"/api/export/{kind}?take={take['id']}")
        assert answer.headers["Content-Disposition"].startswith("attachment; filename*=utf-8''Me%20-%20Day.")
        content = answer.read()
        assert content.startswith(begins)
        if kind == "mp3":                                    # comes back with its words
            status, value = studio.ask("POST", "/api/import?name=day.mp3", content)
            assert status == 200 and [len(line["words"]) for line in value["document"]["lines"]] == [4, 3]
    [recording] = [found for found in studio.state()["takes"] if found["id"] == value["take"]]
    assert (recording["kind"], recording["name"]) == ("recording", "day.mp3")
    assert studio.ask("GET", f"/api/export/account?take={value['take']}")[0] == 422
    assert studio.ask("POST", "/api/sing", {"revision": revision, "take": value["take"]})[0] == 422

    assert studio.post(path, name="First", starred=True) == {}
    assert studio.ask("POST", path, {"name": 3})[0] == 422
    [found] = [found for found in studio.state()["takes"] if found["id"] == take["id"]]
    assert (found["name"], found["starred"]) == ("First", True)
    _, revision = studio.write(take=take["id"])
    assert studio.ask("DELETE", path) == (409, {"error": f"take {take['id']} is shown"})
    studio.write()
    assert studio.ask("DELETE", path) == (200, {}) and studio.ask("DELETE", path)[0] == 404


def test_a_song_that_cannot_be_sung_says_why(studio):
    document, revision = studio.write()
    assert studio.ask("POST", "/api/sing", {"revision": revision - 1})[0] == 409
    for asked in ({"seed": -1}, {"seed": 1.5}, {"span": [2, 1]}, {"span": [1, 2]}, {"variation": 0.5},
                  {"variation": 2}, {"best_of": 0}, {"take": "999"}, {"take": "../1"}, {"more": 1}):
        assert studio.ask("POST", "/api/sing", {"revision": revision} | asked)[0] == 422
    takes = studio.state()["takes"]
    document, revision = studio.write("Good ж")
    job = studio.sung(revision)
    assert job["state"] == "failed" and job["error"].startswith('word 2 "ж": ') and "\n" not in job["error"]
    assert studio.state()["takes"] == takes


def test_songs_wait_and_are_cancelled_and_a_page_that_comes_later_sees_it(studio):
    _, revision = studio.write(duration=100.0)
    takes = studio.state()["takes"]
    events = studio.events()
    first, second = studio.sing(revision), studio.sing(revision)
    next(event for event in events if event["type"] == "job" and event["job"]["stage"] == "sampling")
    state = studio.state()                                   # as a page that is loaded now
    assert (state["job"]["id"], state["job"]["state"]) == (first["id"], "singing")
    assert [job["id"] for job in state["queue"]] == [second["id"]]
    studio.post("/api/cancel", job=second["id"])
    for _ in range(8):
        studio.sing(revision)
    assert studio.ask("POST", "/api/sing", {"revision": revision}) == (422, {"error": "8 songs wait already"})
    for job in studio.state()["queue"]:
        studio.post("/api/cancel", job=job["id"])
    studio.post("/api/cancel", job=first["id"])
    last = next(event["job"] for event in events
                if event["type"] == "job" and event["job"]["id"] == first["id"]
                and event["job"]["state"] != "singing")
    assert (last["state"], last["take"]) == ("cancelled", None) and last["done"] < last["of"]
    state = studio.state()
    assert state["queue"] == [] and state["takes"] == takes


# The process

@pytest.mark.slow
def test_a_killed_server_leaves_a_project_that_another_opens(tmp_path, tiny_folder):
    folder = tmp_path / "project"
    with start(folder, tiny_folder) as server:
        client = Client(server.stdout.readline())
        _, revision = client.write()
        take = client.sung(revision)["take"]
        with start(folder, tiny_folder) as other:
            error = other.communicate(timeout=60)[1]
            assert other.returncode == 2 and error.startswith(f"error: {folder}: another run is at work here")
        document, revision = client.write(duration=100.0, take=take)
        events = client.events()
        client.sing(revision)
        next(event for event in events if event["type"] == "job" and event["job"]["stage"] == "sampling")
        server.kill()
    with start(folder, tiny_folder) as server:
        try:
            state = Client(server.stdout.readline()).state()
            assert (state["document"], state["revision"]) == (document, revision)
            assert [found["id"] for found in state["takes"]] == [take] and state["job"] is None
            assert {path.name.partition(".")[0] for path in (folder / "takes").iterdir()} == {take}
            assert sorted(path.name for path in folder.iterdir()) == [".lock", "project.json", "takes"]
        finally:
            server.kill()


@pytest.mark.slow
def test_ctrl_c_cancels_a_song_and_a_port_in_use_is_told(tmp_path, tiny_folder):
    with start(tmp_path / "project", tiny_folder) as server:
        client = Client(server.stdout.readline())
        done = subprocess.run([sys.executable, "-m", "studio", "--port", client.port, "--project",
                               tmp_path / "other"], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: --port {client.port}: Address already in use\n"
        _, revision = client.write(duration=100.0)
        events = client.events()
        client.sing(revision)
        next(event for event in events if event["type"] == "job" and event["job"]["stage"] == "sampling")
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130 and "Traceback" not in server.stderr.read()
        with socket.socket() as closed:
            assert closed.connect_ex(("127.0.0.1", int(client.port))) != 0
    assert not [*(tmp_path / "project" / "takes").iterdir()]


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="starlette is not installed: pip install -r requirements-studio.txt"):
        main([])
