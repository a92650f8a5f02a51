"""songs/page.py as a real browser shows it, songs/picture.py, songs/tags.py."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browsing, find_browser

from config import SampleConfig, UserError
from lyrics.timing import Line, Lyrics, Word
from sample import validate
from songs import page as page_module
from songs.page import page, peaks
from songs.picture import labels, picture, spectrogram_db
from songs.tags import plain, tag
from support.audio import read_wave, write_wave

RATE = 16000
WORDS = (("one", 0.2, 0.45), ("two", 0.45, 0.6), ("lo~ve~", 0.6, 1.1), ("four", 1.4, 1.7), ("ooh", 1.55, 1.8),
         ("fi-ve", 1.8, 2.0), ("six", 2.0, 2.5))
NASTY = ("</script><script>window.hacked=1</script>", "<!--<script>", "<img/src=x/onerror=hacked=1>",
         "'\"&amp;&lt;", "a\u2028b\u2029c", "\U0001f3a4\u202e\u5531", "\\u003c@data@", "\ud83d", "]]>`${1}")


def song(words=WORDS, breaks=(3, 4, 5), **kinds):
    """Lyrics of words (text, start, end), a new line before each of `breaks`; the third line is backing."""
    words = [Word(*word) for word in words]
    bounds = [0, *[i for i in breaks if i < len(words)], len(words)]
    lines = [Line(tuple(words[a:b]), section="Chorus" if i > 2 else "Verse", backing=i == 2)
             for i, (a, b) in enumerate(zip(bounds, bounds[1:]))]
    return Lyrics(tuple(lines), **kinds)


def tone(seconds, channels=1, rate=RATE):
    """A wave (channels, N) of a quiet tone and a little noise."""
    time = torch.arange(round(seconds * rate)) / rate
    noise = 0.01 * torch.randn(channels, len(time), generator=torch.Generator().manual_seed(0))
    return 0.3 * torch.sin(2 * torch.pi * 440 * time) + noise


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Write a page of a song beside its sound; its URL."""
    folder = tmp_path_factory.mktemp("site")

    def write(lyrics=None, seconds=3.0, title="A song", name="song.wav", sound=True):
        wave, path = tone(seconds), folder / name
        write_wave(path, wave, RATE, path)
        text = page(lyrics or song(), path, title, wave, RATE)
        if not sound:
            path.unlink()
        (folder / "page.html").write_text(text, encoding="ascii")
        return (folder / "page.html").as_uri()
    return write


@pytest.fixture(scope="module")
def browser():
    """A real browser, where there is one: these tests need Debian's package `chromium`, or Chrome."""
    if find_browser() is None:
        pytest.skip("no chromium or chrome on this machine: the page is not tried in a browser")
    with browsing() as started:
        yield started


LIT = "[...document.querySelectorAll('[aria-current=true]')].map(e => e.textContent).join(' ')"
LIT_TILES = "[...document.querySelectorAll('.tile.lit')].map(e => e.textContent).join(' ')"
WORD = "document.querySelectorAll('.word')[{}]"
TILE = "document.querySelectorAll('.tile')[{}]"
TIME = "audio.currentTime"


def lit_at(seconds):
    return " ".join(text.replace("~", "") for text, start, end in WORDS if start <= seconds < end)


def test_words_light_while_they_are_sung(browser, site):
    """Real sound plays; in every frame the words of that moment are lit, two at once where two are sung."""
    browser.open(site())
    assert browser.value(LIT) == "" and browser.value("document.title") == "A song"
    browser.value("window.seen = []; (function look() { seen.push([" + f"{TIME}, {LIT}, {LIT_TILES}" + "]);"
                  "requestAnimationFrame(look); })()")
    browser.click("play")
    browser.wait("audio.ended")
    seen = browser.value("seen")
    assert not browser.errors
    assert len({word for _, word, _ in seen}) > 5            # a slow machine shows fewer frames
    for (before, *_), (t, word, tile) in zip(seen, seen[1:]):
        assert word == tile
        assert word in {lit_at(s) for s in np.arange(min(before, t) - 0.02, t + 0.02, 0.005)}, t
    assert browser.value("play.getAttribute('aria-label')") == "Play"


def test_seeking_lights_the_word_at_once(browser, site):
    """Paused, too; exactly at a word's start it is this word's turn, not that of the one before."""
    browser.open(site())
    for seconds in (0.0, 0.2, 0.3, 0.45, 0.6, 1.09, 1.2, 1.4, 1.6, 1.75, 2.0, 2.6):
        browser.value(f"seek({seconds})")
        assert (browser.value(LIT), browser.value("audio.paused")) == (lit_at(seconds), True)
    assert browser.value("document.querySelector('p.now').textContent") == "fi-ve six"
    browser.value("seek(1.2)")                               # between two lines, the next one is read
    assert browser.value("document.querySelector('p.now').textContent") == "four"


def test_clicks_jump(browser, site):
    """A click on a word in the lines or under the wave goes to its start, one on the wave to its own time."""
    browser.open(site())
    browser.click(WORD.format(2))
    assert (browser.value(TIME), browser.value(LIT)) == (pytest.approx(0.6), "love")
    browser.click(TILE.format(5))
    assert (browser.value(TIME), browser.value(LIT)) == (pytest.approx(1.8), "fi-ve")
    browser.click("document.querySelector('canvas')", 0.25)
    assert browser.value(TIME) == pytest.approx(0.75, abs=0.01)
    browser.click("document.querySelector('#seek')", 0.5)
    assert browser.value(TIME) == pytest.approx(1.5, abs=0.03)
    assert browser.value(WORD.format(2) + ".title") == "0:00.60 \u2013 0:01.10"


def test_keys(browser, site):
    """Arrows go by words and lines, Home and End to the ends; the focus goes along, the page stays."""
    browser.open(site(), height=300)
    for key, seconds in [("End", 2.0), ("Home", 0.2), ("ArrowRight", 0.45), ("ArrowRight", 0.6),
                         ("ArrowLeft", 0.45), ("ArrowDown", 1.4), ("ArrowDown", 1.55), ("ArrowDown", 1.8),
                         ("ArrowRight", 2.0), ("ArrowUp", 1.55), ("ArrowUp", 1.4), ("ArrowUp", 0.2),
                         ("ArrowUp", 0.2), ("ArrowLeft", 0.0), ("ArrowLeft", 0.0), ("ArrowDown", 0.2)]:
        browser.key(key)
        assert browser.value(TIME) == pytest.approx(seconds), key
    assert browser.value("[document.documentElement.scrollHeight > 400, scrollY]") == [True, 0]
    browser.value("seek(1.2)")                               # a pause after "love"
    browser.key("ArrowLeft")
    assert browser.value(TIME) == pytest.approx(0.6)
    browser.key("Tab")                                       # one word is in the tab order, then the button
    assert browser.value("document.activeElement.textContent") == "love"
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.key("ArrowRight")
    assert browser.value("document.activeElement.textContent") == "four"
    browser.key("Tab")
    assert browser.value("document.activeElement.id") == "play"


def test_space_plays_and_pauses_once(browser, site):
    """On a focused button the browser clicks it as well: the song would stop at once, or jump."""
    browser.open(site())
    for focus in ("document.body", "play", WORD.format(3)):
        browser.value(f"seek(0); {focus}.focus()")
        browser.key(" ")
        browser.wait(f"!audio.paused && {TIME} > 0.05")
        assert browser.value("play.getAttribute('aria-label')") == "Pause"
        browser.key(" ")
        assert browser.value("audio.paused") and browser.value(TIME) < 1.4
    browser.key("Enter")                                     # on the word
    assert browser.value(TIME) == pytest.approx(1.4)


CONTRAST = """(() => {
  const light = colour => {
    const [r, g, b] = colour.match(/\\d+/g).map(c => c / 255).map(
      c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = light(getComputedStyle(document.getElementById("lines")).backgroundColor);
  const names = [".lines p.now", ".lines p:not(.now)", ".sung", ".tile.lit", ".tile:not(.lit)", "footer"];
  return [back, ...names.map(name => {
    const front = light(getComputedStyle(document.querySelector(name)).color);
    return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
  })];
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("phone", [False, True])
def test_themes_and_widths(browser, site, dark, phone):
    """All text can be read in both themes (WCAG AA); a phone shows the page without scrolling sideways."""
    words = [(f"word{i}", 0.2 * i, 0.2 * i + 0.1) for i in range(100)] + [("o" * 90, 20, 20.5)]
    browser.open(site(song(words, (3, 30, 60, 90)), 21.0, "t" * 80), 390 if phone else 1100, 800, dark, phone)
    browser.value("seek(6.2)")
    back, *contrasts = browser.value(CONTRAST)
    assert (back < 0.1) if dark else (back > 0.9)
    assert min(contrasts) > 4.5
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    # The place that plays is in sight, in the lines and on the wave, which is longer than the screen.
    assert browser.value("scroll.scrollWidth > scroll.clientWidth")
    for panel, inside in (("scroll", ".tile.lit"), ("lines", "[aria-current]")):
        assert browser.value(f"""(() => {{
            const outer = document.getElementById("{panel}").getBoundingClientRect();
            const box = document.querySelector("{inside}").getBoundingClientRect();
            return box.left >= outer.left && box.right <= outer.right && box.top >= outer.top
                   && box.bottom <= outer.bottom; }})()""")
    # Words that come fast stand below each other, never on each other.
    boxes = browser.value("""[...document.querySelectorAll(".tile")].slice(0, 40).map(tile => {
        const range = document.createRange(); range.selectNodeContents(tile);
        const box = range.getBoundingClientRect(); return [box.left, box.right, tile.offsetTop]; })""")
    assert len({top for *_, top in boxes}) > 1
    assert all(right <= left for i, (_, right, top) in enumerate(boxes)
               for left, _, other in boxes[i + 1:] if top == other)


def test_nasty_words_are_only_text(browser, site):
    """A word that is HTML or script must not be one; half a letter of JSON must not break the page."""
    words = [(text, 0.1 * i, 0.1 * i + 0.1) for i, text in enumerate(NASTY)]
    expected = [text.replace("\ud83d", "?") for text in NASTY]
    for nasty in NASTY:
        browser.open(site(song(words, artist=nasty), title=nasty))
        clean = nasty.replace("\ud83d", "?")
        assert browser.value("document.querySelector('h1').textContent") == clean
        assert browser.value("document.querySelector('.artist').textContent") == clean
        assert browser.value("[...document.querySelectorAll('.word')].map(e => e.textContent)") == expected
        assert browser.value("[typeof hacked, document.images.length, document.scripts.length]") == [
            "undefined", 0, 2]
        assert not browser.errors


def test_the_page_can_reach_nothing(browser, site):
    """Should a word ever become HTML after all: no script of its own, no request, no frame, no form."""
    browser.open(site())
    browser.value("""window.stopped = []; addEventListener("securitypolicyviolation",
        event => stopped.push(event.effectiveDirective));
        fetch("http://127.0.0.1:9/").catch(() => {});
        for (const text of ["<img src='http://127.0.0.1:9/'>", "<iframe src='http://127.0.0.1:9/'></iframe>",
                            "<b style='color: red' onclick='hacked = 1'>x</b>"])
          document.body.insertAdjacentHTML("beforeend", text);
        document.querySelector("b").click();
        const own = document.createElement("script");
        own.textContent = "hacked = 1";
        document.body.append(own);""")
    wanted = {"connect-src", "img-src", "frame-src", "style-src-attr", "script-src-attr", "script-src-elem"}
    browser.wait(f"{json.dumps(sorted(wanted))}.every(kind => stopped.includes(kind))")
    assert browser.value("typeof hacked") == "undefined"


def test_a_large_song_lies_beside_its_page(browser, site, monkeypatch):
    """Its name may hold what means something in a URL; where it is missing, the page says so."""
    monkeypatch.setattr(page_module, "EMBED_BYTES", 1000)
    name = "50% of #1 'caf\u00e9'?.wav"
    browser.open(site(name=name))
    assert browser.value("audio.duration") == pytest.approx(3.0, abs=0.01) and not browser.errors
    browser.call("Page.navigate", url=site(name=name, sound=False))
    browser.wait("document.getElementById('error')?.hidden === false")
    assert name in browser.value("document.getElementById('error').textContent")


class Parts(HTMLParser):
    """The elements of a page with their attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script":
            self.scripts.append(data)


def page_parts(tmp_path, lyrics, seconds=1.0, title="t", channels=1):
    path = tmp_path / "a.wav"
    write_wave(path, tone(seconds, channels), RATE, path)
    text = page(lyrics, path, title, tone(seconds, channels), RATE)
    return text, Parts(text), path


def test_page_holds_its_words_and_nothing_foreign(tmp_path):
    """Without a browser: nasty words change no element of the page, and it is ASCII, the same each time."""
    lyrics = song([(text, 0.1 * i, 0.1 * i + 0.1) for i, text in enumerate(NASTY)], artist=NASTY[0])
    text, parts, _ = page_parts(tmp_path, lyrics, title=NASTY[0])
    _, harmless, _ = page_parts(tmp_path, song())
    assert text.isascii() and text == page_parts(tmp_path, lyrics, title=NASTY[0])[0]
    assert [name for name, _ in parts.elements] == [name for name, _ in harmless.elements]
    data = json.loads(parts.scripts[0])
    assert [word[0] for line in data["lines"] for word in line["words"]] == [
        text.replace("\ud83d", "?") for text in NASTY]
    assert [line["backing"] for line in data["lines"]] == [False, False, True, False]


def test_page_names_no_other_place(tmp_path):
    """A page must work without a network: no address in its template, and a policy that forbids them all."""
    _, parts, _ = page_parts(tmp_path, song())
    policy = next(attrs["content"] for name, attrs in parts.elements if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    template = Path(page_module.__file__).with_name("page.html").read_text()
    assert not re.search(r"https?:|//[a-z]|url\(|@import", template)


def test_sound_is_in_the_page_up_to_8_mb(tmp_path, monkeypatch):
    """A page of hundreds of megabytes would open nowhere."""
    lyrics = song()
    path = tmp_path / "a b.wav"
    for size, start in [(8_000_000, "data:audio/wav;base64,AAAA"), (8_000_001, "a%20b.wav")]:
        path.write_bytes(bytes(size))
        text = page(lyrics, path, "t", tone(1), RATE)
        source = next(attrs["src"] for name, attrs in Parts(text).elements if name == "audio")
        assert source.startswith(start) and ("media-src data:" in text) == (size == 8_000_000)


@pytest.mark.parametrize("call", [
    lambda lyrics, path: page(lyrics, path, "t", tone(1), RATE),
    lambda lyrics, path: picture(path.with_suffix(".png"), tone(1), RATE, lyrics),
    lambda lyrics, path: tag(path, lyrics, "t", seed=0, model="m")])
def test_words_without_times_are_a_mistake(tmp_path, call):
    """None as a time would fail somewhere inside."""
    write_wave(tmp_path / "a.wav", tone(1), RATE, tmp_path / "a.wav")
    lyrics = Lyrics((Line((Word("a", 0.0, 0.5), Word("b", 0.5))),))
    with pytest.raises(UserError, match='word 2 "b": has no times'):
        call(lyrics, tmp_path / "a.wav")
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("name, fragment", [("missing.wav", "No such file"), ("song.txt", "unknown ending")])
def test_files_that_are_none(tmp_path, name, fragment):
    for call in (lambda path: page(song(), path, "t", tone(1), RATE),
                 lambda path: tag(path, song(), "t", seed=0, model="m")):
        with pytest.raises(UserError, match=fragment):
            call(tmp_path / name)


def test_peaks_are_those_of_any_channel():
    """A mean of the channels hides what one of them plays; the last part of a second would be lost."""
    wave = torch.zeros(2, RATE + 10)
    wave[1, 401] = -0.5                                      # 1/40 s has 400 samples
    wave[0, -1] = 2.0
    found = peaks(wave, RATE)
    assert len(found) == 41 and found[1] == 50 and found[-1] == 100 and sum(found) == 150
    assert peaks(torch.ones(1, 1), RATE) == [100]
    assert len(peaks(torch.zeros(1, 44100), 44100)) == 40 and not any(peaks(torch.zeros(1, 44100), 44100))
    assert peaks(torch.ones(1, 11025), 11025) == [100] * 40            # 275.6 samples each


@pytest.mark.parametrize("seconds, words, channels", [
    (1 / RATE, (), 1), (3, (), 2), (12.0, WORDS, 1), (12.1, WORDS, 1), (2.0, WORDS, 2),
    (5, [("caf\u00e9", 0, 0.5), ("\u5531\U0001f3a4", 0.5, 0.5), ("\ud83d", 4, 5), ("o" * 300, 4, 5)], 1)])
def test_pictures_of_all_kinds(tmp_path, seconds, words, channels):
    """One sample, no words, words that the song or the font lacks: a picture of rows, the same each time."""
    from PIL import Image
    lyrics, wave = song(words), tone(seconds, channels)
    picture(tmp_path / "a.png", wave, RATE, lyrics)
    picture(tmp_path / "b.png", wave, RATE, lyrics)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        rows = 2 if seconds > 12 else 1
        assert image.width == 1200 and 224 * rows < image.height <= 20 + 278 * rows
    assert len(list(tmp_path.iterdir())) == 2


def test_picture_shows_the_bounds_and_the_pitch(tmp_path):
    """Bounds drawn elsewhere, rows upside down or shifted would mislead those who look for a fault."""
    from PIL import Image
    wave = torch.zeros(1, 10 * RATE)
    wave[:, 5 * RATE:] = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(5 * RATE) / RATE)
    picture(tmp_path / "a.png", wave, RATE, song([("a", 2.5, 7.5)]))
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    top, bottom = 20 + 18, 20 + 18 + 192
    rows = pixels[top:bottom]
    white = [x for x in range(40, 1160) if (rows[:, x] == 255).all()]
    assert white == [40 + 280, 40 + 840]                     # 112 pixels a second
    level = rows.sum(2)
    assert level[:, 41:310].max() < 80 < 500 < level[:, 610:830].max(0).min()
    pitch = level[:, 700].argmax()
    assert 192 * 0.7 < pitch < 192 * 0.95                    # 440 Hz is low


def test_spectrogram_level():
    """The picture's range hangs on it: 0 dB is a sine at full scale, silence is far below."""
    time = torch.arange(RATE) / RATE
    loud = spectrogram_db(torch.sin(2 * torch.pi * 440 * time).repeat(2, 1), RATE, 50.0)
    assert loud.shape == (96, 50) and loud[:, 25].max().item() == pytest.approx(-3, abs=3)
    assert spectrogram_db(torch.zeros(1, RATE), RATE, 50.0).max() < -150


def test_words_in_each_others_way_go_up():
    """Texts on each other cannot be read; one without room is left out."""
    class Font:
        """Letters are one pixel wide; `labels` adds 3 before a text, and 4 behind it."""
        getlength = staticmethod(len)

    def placed(*spans):
        return [(text, lane) for text, _, _, lane in labels(
            [("o" * (end - start - 7), start, start + 1) for start, end in spans], Font)]
    assert placed((0, 10), (5, 20), (8, 16), (16, 24), (20, 27), (24, 40)) == [
        ("ooo", 0), ("o" * 8, 1), ("o", 2), ("o", 0), ("", 1), ("o" * 9, 0)]
    assert [lane for _, lane in placed(*[(0, 10)] * 5)] == [0, 1, 2]


def test_a_whole_song_stays_small(tmp_path):
    """232 s of stereo: rows of 12 s, not one strip of tens of thousands of pixels; a page of bounded size."""
    from PIL import Image
    rate = 44100
    words = [(f"w{i}", 0.4 * i, 0.4 * i + 0.3) for i in range(570)]
    wave = (0.1 * torch.randn(1, 232 * rate, generator=torch.Generator().manual_seed(0))).expand(2, -1)
    lyrics = song(words, range(0, 570, 8)[1:])
    picture(tmp_path / "a.png", wave, rate, lyrics)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1200 and image.height == 20 + 20 * (2 * 18 + 192 + 32)
    assert (tmp_path / "a.png").stat().st_size < 6e6
    (tmp_path / "a.mp3").write_bytes(bytes(9_000_000))
    assert len(page(lyrics, tmp_path / "a.mp3", "t", wave, rate)) < 100_000


def test_pictures_of_hours_are_bounded(tmp_path):
    from PIL import Image
    picture(tmp_path / "a.png", torch.zeros(1, 2 * 3600 * 200), 200, song())
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1200 and image.height <= 6692


def test_lyrics_as_people_write_them():
    """Tags and players show this text: no signs for the singer, sections once."""
    assert plain(song()) == "[Verse]\none two love\nfour\n(ooh)\n\n[Chorus]\nfi-ve six"
    pause = Line((), 1.0, 2.0, section="Break")
    assert plain(Lyrics((pause, Line((Word("~", 2, 3),))))) == "[Break]\n\n~"
    assert plain(Lyrics(())) == ""


@pytest.fixture
def tagged(tmp_path):
    """A tagged file of a kind: its path, its wave before, its bytes before."""
    def make(kind, lyrics=None, channels=1, **texts):
        path = tmp_path / f"song.{kind}"
        write_wave(path, tone(2.7, channels), RATE, path)
        before = read_wave(path)[0], path.read_bytes()
        tag(path, song(artist="An \u00c4rtist") if lyrics is None else lyrics, "T\u00eftle \U0001f3a4",
            **({"seed": 7, "model": "baby", "comment": "made by hand"} | texts))
        return path, *before
    return make


@pytest.mark.parametrize("kind", ["mp3", "wav", "flac", "ogg"])
@pytest.mark.parametrize("channels", [1, 2])
def test_tags_leave_the_samples(tagged, kind, channels):
    """Not one sample more, less or other, also by our own reader, which looks for cut-off ends."""
    path, wave, _ = tagged(kind, channels=channels)
    after, rate = read_wave(path)
    assert rate == RATE and torch.equal(wave, after)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["flac", "ogg"])
def test_vorbis_comments_read_back(tagged, kind):
    import mutagen
    tags = mutagen.File(tagged(kind)[0]).tags
    assert {name: tags[name] for name in ("title", "artist", "lyrics", "seed", "model", "comment",
                                          "ai_generated")} == {
        "title": ["T\u00eftle \U0001f3a4"], "artist": ["An \u00c4rtist"], "lyrics": [plain(song())],
        "seed": ["7"], "model": ["baby"], "comment": ["made by hand"], "ai_generated": ["true"]}
    assert len(tags) == 7


@pytest.mark.parametrize("kind", ["mp3", "wav"])
def test_id3_reads_back(tagged, kind):
    """Times in milliseconds, one entry a word in the order of singing, breaks before the line they begin."""
    import mutagen
    path, *_ = tagged(kind)
    tags = mutagen.File(path).tags
    assert tags.version == (2, 4, 0)
    assert (str(tags["TIT2"]), str(tags["TPE1"])) == ("T\u00eftle \U0001f3a4", "An \u00c4rtist")
    assert str(tags["USLT::eng"]) == plain(song()) and str(tags["COMM::eng"]) == "made by hand"
    assert {frame.desc: str(frame) for frame in tags.getall("TXXX")} == {
        "SEED": "7", "MODEL": "baby", "AI_GENERATED": "true"}
    timed = tags["SYLT::eng"]
    assert (timed.format, timed.type) == (2, 1)
    assert timed.text == [("one", 200), (" two", 450), (" love", 600), ("\nfour", 1400), ("\nooh", 1550),
                          ("\nfi-ve", 1800), (" six", 2000)]
    assert len(tags) == 8


@pytest.mark.parametrize("kind", ["mp3", "wav", "flac", "ogg"])
def test_tagging_again_replaces(tagged, kind):
    """Equal input makes equal files, and nothing of earlier tags is left, not even as space."""
    import mutagen
    path, _, plain_bytes = tagged(kind)
    once = path.read_bytes()
    path.write_bytes(plain_bytes)
    tag(path, song(artist="An \u00c4rtist"), "T\u00eftle \U0001f3a4", seed=7, model="baby",
        comment="made by hand")
    assert path.read_bytes() == once
    tags = dict(mutagen.File(path).tags)
    tag(path, song(artist="x" * 5000), "other", seed=8, model="other")
    tag(path, song(artist="An \u00c4rtist"), "T\u00eftle \U0001f3a4", seed=7, model="baby",
        comment="made by hand")
    assert dict(mutagen.File(path).tags) == tags
    assert kind == "ogg" or path.read_bytes() == once        # its pages are cut otherwise


@pytest.mark.parametrize("kind", ["mp3", "wav", "flac", "ogg"])
def test_songs_without_words_or_artist(tagged, kind):
    """Empty frames are shown as blank fields; half a letter of JSON must not end the run, 0 not the text."""
    import mutagen
    tags = mutagen.File(tagged(kind, Lyrics(()), comment="")[0]).tags
    names = {name.upper().split(":")[0] for name in tags.keys()}
    assert not names & {"ARTIST", "TPE1", "LYRICS", "USLT", "SYLT", "COMMENT", "COMM"}
    tags = mutagen.File(tagged(kind, song([("\ud83da\0b", 0, 1), ("c", 1, 2)]), comment="\ud83d")[0]).tags
    if kind in ("mp3", "wav"):
        assert tags["SYLT::eng"].text == [("?a\ufffdb", 0), (" c", 1000)]


@pytest.mark.parametrize("kind", ["mp3", "wav", "flac", "ogg"])
def test_broken_files_are_named_and_left(tmp_path, kind):
    """A half-written file in place of the song would be worse than no tags."""
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"RIFF nothing of the kind" * 9)
    with pytest.raises(UserError, match="cannot be tagged"):
        tag(path, song(), "t", seed=0, model="m")
    assert path.read_bytes() == b"RIFF nothing of the kind" * 9 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("library", ["mutagen", "PIL"])
def test_without_a_library(monkeypatch, library):
    """An import error after the song was sung, instead of a line that names what is missing."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"{library} is not installed: pip install"):
        validate(SampleConfig())
