"""The server: who may ask, and what is answered.

Read `Guard` (what every request has to pass), then `Studio` (an answer to each route, in the order of
`Studio.routes`). All answers but files are JSON; a mistake is {"error": "one line"}.
"""

import asyncio
import functools
import json
import secrets
import urllib.parse
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from config import SampleConfig, UserError
from lyrics import formats
from lyrics.formats.shared import UNPRINTABLE
from lyrics.pronounce import reader
from phonemes import SymbolTable
from songs.page import peaks
from songs.picture import strip
from studio.document import (LONGEST_S, LONGEST_TEXT, MOST_SEED, MOST_WORDS, checked, is_bool, is_text,
                             or_null, report)
from studio.exchange import EXPORTS, exported, recording, words_in
from studio.jobs import ASKED, MOST_BEST_OF, MOST_QUEUED, Job, Jobs, Singer
from studio.project import Project, Stale
from studio.typed import kind_of_text, with_lyrics
from style import named_styles
from support.audio import READABLE, read_wave
from support.files import ROOT, describe, json_of
from support.hub import locate

MOST_JSON, MOST_TEXT, MOST_SOUND = 1 << 20, 1 << 20, 64 << 20        # bytes
LONGEST_ERROR = 1000           # letters
PEAKS_PER_S = 100
WIDEST, FINEST = 16_000, 100.0               # of a spectrogram: pixels, columns a second
PAGE = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
                               "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
                               "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store"}


def refusal(status: int, why: str) -> JSONResponse:
    """An answer that is an error."""
    return JSONResponse({"error": why[:LONGEST_ERROR]}, status)


def sent(path: Path | None, **how: object) -> Response:
    """An answer that is a file."""
    return FileResponse(path, **how) if path and path.is_file() else refusal(404, "there is no such file")


class Guard:
    """Lets only this machine's user pass: by the host's name, the page that asks, and a token.

    A page of another site can send requests to 127.0.0.1, and can give its own name that address. The token
    is in the printed address, then in a cookie that such a page's requests do not carry.
    """

    def __init__(self, app: Callable, port: int, token: str):
        self.app, self.token, self.cookie = app, token, f"studio-{port}"
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        query = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"))
        opened = self.is_token(query.get("token", [""])[0])

        async def sending(message: dict) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    own[name] = value
                if opened:
                    own["Set-Cookie"] = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await send(message)

        await (self.refused(scope, headers, opened) or self.app)(scope, receive, sending)

    def refused(self, scope: dict, headers: Headers, opened: bool) -> JSONResponse | None:
        """The answer to a request that does not pass."""
        host = headers.get("host", "")
        if host not in self.hosts:
            return refusal(421, f"this is not {host[:80]}; open the address that the studio printed")
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return refusal(403, "a page of another origin asks")
        entry = scope["path"] == "/" and scope["method"] == "GET"
        if not entry and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return refusal(403, "a page of another site asks")
        cookie = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
        if not (entry and opened) and not self.is_token(cookie):
            return refusal(403, "open the address that the studio printed")
        return None

    def is_token(self, text: str) -> bool:
        """Whether a text is the token."""
        return secrets.compare_digest(text.encode(), self.token.encode())


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request. Raises: HTTPException 413 for more than `most` bytes."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= most:                                     # the rest is read, so that the answer arrives
            parts.append(part)
        elif size > 4 * MOST_SOUND:
            break
    if size > most:
        raise HTTPException(413, f"{size} bytes; expected {most} at most")
    return b"".join(parts)


async def json_in(request: Request, **known: Callable[[object], bool]) -> list:
    """The values of a JSON object in a request, in the order of `known`. Raises: HTTPException, UserError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected Content-Type: application/json")
    body = await body_of(request, MOST_JSON + MOST_TEXT)
    try:
        value = json_of(body.decode(), "request")
    except UnicodeDecodeError:
        raise HTTPException(400, "expected UTF-8") from None
    except UserError as e:
        raise HTTPException(400, str(e)) from None
    if not isinstance(value, dict) or not value.keys() <= known.keys():
        raise UserError(f"request: expected an object of {', '.join(known)}")
    for name, accepts in known.items():
        if not accepts(value.get(name)):
            raise UserError(f"request: {name} {repr(value.get(name))[:40]}: not as expected")
    return [value.get(name) for name in known]


def anything(value: object) -> bool:
    """Accepts any value."""
    return True


class Studio:
    """A project, its singer, and the pages that look on.

    Args: folder of the project; settings of sample.py that all songs share; `style` names the singers.
    Raises: UserError for a model or a project that cannot be used.
    """

    def __init__(self, folder: Path, settings: dict):
        cfg = SampleConfig(**settings)
        self.files = locate(cfg)
        self.styles = list(cfg.style or named_styles(self.files.styles))
        if not self.styles:
            raise UserError(f"--model {cfg.model}: names no singers; give some with --style")
        self.project = Project(folder, self.styles)
        self.reader = reader(self.files.phonemizer, cfg.lexicon)
        self.table = SymbolTable(self.reader.symbols)
        self.rate_hz = self.files.preset.codec.sample_rate_hz
        self.cfg, self.pages, self.loop = cfg, set(), None
        self.singer = Singer(self.project, settings | {"style": None})
        self.jobs = Jobs(self.singer.sing, self.tell)
        self.static = {path.name: path for path in (*PAGE.glob("*.js"), *PAGE.glob("*.css"),
                                                    ROOT / "songs" / "timeline.js")}
        self.drawn = functools.lru_cache(maxsize=8)(self.draw)

    def app(self, port: int, token: str) -> Callable:
        """The application, for an ASGI server."""
        mistakes = {UserError: lambda request, e: refusal(422, str(e)),
                    HTTPException: lambda request, e: refusal(e.status_code, e.detail),
                    OSError: lambda request, e: refusal(500, f"error: {describe(e)}"),     # a full disk
                    ClientDisconnect: lambda request, e: refusal(400, "the request is not whole"),
                    Exception: lambda request, e: refusal(500, f"error: {describe(e)}")}
        return Guard(Starlette(routes=self.routes(), exception_handlers=mistakes), port, token)

    def routes(self) -> list[Route]:
        """The answer to each address."""
        return [Route("/", self.page), Route("/static/{name}", self.file),
                Route("/api/state", self.state),
                Route("/api/document", self.put, methods=["PUT"]),
                Route("/api/lyrics", self.lyrics, methods=["POST"]),
                Route("/api/check", self.check, methods=["POST"]),
                Route("/api/import", self.bring, methods=["POST"]),
                Route("/api/sing", self.sing, methods=["POST"]),
                Route("/api/cancel", self.cancel, methods=["POST"]),
                Route("/api/events", self.events),
                Route("/api/export/{kind}", self.export),
                Route("/api/takes/{name}", self.rename, methods=["POST"]),
                Route("/api/takes/{name}", self.remove, methods=["DELETE"]),
                Route("/api/takes/{name}/audio", self.audio),
                Route("/api/takes/{name}/peaks", self.peaks),
                Route("/api/takes/{name}/spectrogram", self.spectrogram)]

    # The page and what it shows

    def page(self, request: Request) -> Response:
        """The page."""
        return FileResponse(PAGE / "index.html")

    def file(self, request: Request) -> Response:
        """One of the page's files."""
        return sent(self.static.get(request.path_params["name"]))

    def state(self, request: Request) -> Response:
        """Everything that a page shows but sound."""
        return JSONResponse({
            **self.project.state(), **self.jobs.state(), "styles": self.styles, "model": self.cfg.model,
            "sounds_of": self.reader.symbols, "exports": EXPORTS, "limits": {
                "document": MOST_JSON, "text": MOST_TEXT, "sound": MOST_SOUND, "words": MOST_WORDS,
                "seconds": LONGEST_S, "seed": MOST_SEED, "queue": MOST_QUEUED, "best_of": MOST_BEST_OF}})

    def tell(self, event: dict) -> None:
        """Send an event to all pages; from any thread."""
        if self.loop and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.spread, event)

    def spread(self, event: dict | None) -> None:
        """Send an event to all pages; None ends their streams."""
        for page in self.pages:
            page.put_nowait(event)

    async def events(self, request: Request) -> Response:
        """Events as they happen."""
        page, self.loop = asyncio.Queue(), asyncio.get_running_loop()
        self.pages.add(page)

        async def stream() -> AsyncIterator[str]:
            try:
                yield ": open\n\n"
                while (event := await page.get()) is not None:
                    yield f"data: {json.dumps(event)}\n\n"
            finally:
                self.pages.discard(page)

        return StreamingResponse(stream(), media_type="text/event-stream")

    # The document

    def stale(self) -> Response:
        """The answer to a page that did not know of a change."""
        state = self.project.state()
        return JSONResponse({"error": "another page has changed the document", "document": state["document"],
                             "revision": state["revision"]}, 409)

    async def put(self, request: Request) -> Response:
        """Replace the document."""
        revision, document = await json_in(request, revision=anything, document=anything)
        document = checked(document, self.styles)
        try:
            revision = await run_in_threadpool(self.project.change, document, revision)
        except Stale:
            return self.stale()
        self.spread({"type": "state"})
        return JSONResponse({"revision": revision})

    async def lyrics(self, request: Request) -> Response:
        """A document with the words of a text."""
        document, text = await json_in(request, document=anything, text=lambda x: isinstance(x, str))
        document = checked(document, self.styles)

        def made() -> dict:
            new = formats.parse(text, kind_of_text(text), "text")
            return {"document": checked(with_lyrics(document, new, self.reader), self.styles)}
        return JSONResponse(await run_in_threadpool(made))

    async def check(self, request: Request) -> Response:
        """What of a document cannot be sung, and its sounds."""
        [document] = await json_in(request, document=anything)
        document = checked(document, self.styles)
        return JSONResponse(await run_in_threadpool(report, document, self.reader, self.table,
                                                    self.files.preset))

    async def bring(self, request: Request) -> Response:
        """A document with the words of a file; of a sound file, also a take."""
        name = UNPRINTABLE.sub("", request.query_params.get("name", ""))[-LONGEST_TEXT:]
        suffix = Path(name).suffix.lower()
        sound, known = suffix in READABLE, (*READABLE, ".json", ".txt", *formats.ENDINGS)
        if suffix not in known:
            raise UserError(f"{name}: unknown ending; expected {', '.join(known)}")
        body = await body_of(request, MOST_SOUND if sound else MOST_TEXT)

        def made() -> dict:
            with self.project.work() as work:
                path = work / f"import{suffix}"
                path.write_bytes(body)
                try:
                    return self.brought(path, name)
                except UserError as e:
                    raise UserError(str(e).replace(str(path), name)) from None
        answer = await run_in_threadpool(made)
        if sound:
            self.spread({"type": "state"})
        return JSONResponse(answer)

    def brought(self, path: Path, name: str) -> dict:
        """The answer to a file of this name. A sound comes without its words if they cannot be used."""
        document, sound, note = self.project.state()["document"], path.suffix in READABLE, ""
        try:
            words = words_in(path) if sound else formats.read(path)
            if words and not words.words:
                raise UserError(f"{path}: holds no words")
            if words:
                document = checked(with_lyrics(document, words, self.reader), self.styles)
        except UserError as e:
            if not sound:
                raise
            note = f"without its words: {e}".replace(str(path), name)[:LONGEST_TEXT]
        take = {"take": recording(self.project, path, name, self.rate_hz, note)} if sound else {}
        return {"document": document, **take}

    # Songs

    async def sing(self, request: Request) -> Response:
        """Queue a song of the document as it is now."""
        revision, *asked = await json_in(request, revision=anything, **ASKED)
        state = self.project.state()
        if revision != state["revision"]:
            return self.stale()
        job = Job(state["document"], dict(zip(ASKED, asked)))
        await run_in_threadpool(self.singer.steps, job)      # a mistake is told at once
        self.jobs.add(job)
        return JSONResponse({"job": job.shown()})

    async def cancel(self, request: Request) -> Response:
        """Cancel a song."""
        [job] = await json_in(request, job=is_text)
        self.jobs.cancel(job)
        return JSONResponse({})

    # Takes

    def take(self, name: str | None) -> dict:
        """A take by its name. Raises: HTTPException 404."""
        found = self.project.takes.get(name)
        if found is None:
            raise HTTPException(404, "there is no such take")
        return found

    async def rename(self, request: Request) -> Response:
        """Change a take's name, or star it."""
        about = await json_in(request, name=or_null(is_text), starred=or_null(is_bool))
        about = {key: value for key, value in zip(("name", "starred"), about) if value is not None}

        def changed() -> None:
            with self.project.lock:
                self.project.describe(self.take(request.path_params["name"])["id"], about)
        await run_in_threadpool(changed)
        self.spread({"type": "state"})
        return JSONResponse({})

    def remove(self, request: Request) -> Response:
        """Remove a take that nothing needs."""
        with self.project.lock:
            name = self.take(request.path_params["name"])["id"]
            if self.project.document["take"] == name:
                return refusal(409, f"take {name} is shown")
            if self.jobs.needs(name):
                return refusal(409, f"a song that is to be sung begins with take {name}")
            self.project.remove(name)
        self.tell({"type": "state"})
        return JSONResponse({})

    def export(self, request: Request) -> Response:
        """A file of a take."""
        kind, take = request.path_params["kind"], self.take(request.query_params.get("take"))
        if kind not in EXPORTS:
            return refusal(404, f"expected one of {', '.join(EXPORTS)}")
        with self.project.work() as work:
            path = exported(self.project, kind, take, Path(self.cfg.model).name, work)
            name = urllib.parse.quote(path.name)
            return Response(path.read_bytes(), media_type="application/octet-stream",
                            headers={"Content-Disposition": f"attachment; filename*=utf-8''{name}"})

    def audio(self, request: Request) -> Response:
        """A take's sound; a page asks for parts of it."""
        name = self.take(request.path_params["name"])["id"]
        return sent(self.project.file(name, "wav"), media_type="audio/wav")

    def peaks(self, request: Request) -> Response:
        """How loud a take is."""
        return JSONResponse(self.drawn(self.take(request.path_params["name"])["id"])[0])

    def spectrogram(self, request: Request) -> Response:
        """A picture of a take."""
        return Response(self.drawn(self.take(request.path_params["name"])["id"])[1], media_type="image/png")

    def draw(self, name: str) -> tuple[dict, bytes]:
        """Peaks and spectrogram of a take."""
        wave, rate_hz = read_wave(self.project.file(name, "wav"))
        picture = strip(wave, rate_hz, min(FINEST, WIDEST * rate_hz / wave.shape[1]))
        return {"rate": PEAKS_PER_S, "peaks": peaks(wave, rate_hz, PEAKS_PER_S)}, picture

    def close(self) -> None:
        """Cancel songs and end the streams of events, so that the server can end."""
        self.jobs.close()
        self.tell(None)
