"""The studio's page as a real browser shows it, with the real server and the embedded model behind it."""

import contextlib
import http.cookiejar
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from browser import browsing, find_browser
from conftest import ROOT

from support.audio import read_wave

SONG = "[Verse]\nThe night is cold and clear\nI hear the river sing\n\n[Chorus]\nSo stay with me"
READY = "!!document.querySelector('#style option')"
WORDS = "[...document.querySelectorAll('.block')].map(block => block.firstChild.textContent).join(' ')"
BLOCK = "document.querySelectorAll('.block')[{}]"
TIMES = "['start', 'end'].map(name => Number(word.elements[name].value))"
SINGS = "document.querySelector('#sing').textContent"
TAKES = "document.querySelectorAll('#takes .name').length"
PLAYS = "!document.querySelector('#audio').paused"
NEWS = "document.querySelector('#news').textContent"
STATE = "fetch('/api/state').then(answer => answer.json())"
WIDE = "document.documentElement.scrollWidth <= innerWidth"


class Server:
    """A studio that runs: its address, and a person's requests beside the page's."""

    def __init__(self, folder, port=0):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "studio", "--project", folder / "project", "--port", str(port)], cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        self.root = self.url.partition("?")[0]
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), cookies)
        self.opener.open(self.url).close()

    def get(self, path):
        with self.opener.open(self.root + path) as answer:
            return answer.read()

    def state(self):
        return json.loads(self.get("api/state"))

    def wave(self, take, folder):
        path = folder / f"{take}.wav"
        path.write_bytes(self.get(f"api/takes/{take}/audio"))
        return read_wave(path)

    def end(self):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def server(tmp_path):
    started = Server(tmp_path)
    try:
        yield started
    finally:
        started.end()


@pytest.fixture
def browser():
    if find_browser() is None:
        pytest.skip("no chromium or chrome on this machine: the page is not tried in a browser")
    with browsing() as started:
        yield started


@contextlib.contextmanager
def sung(browser, takes, key="Ctrl+Enter"):
    """What is done in the block, then a key, makes so many takes, of which the last one plays."""
    yield
    browser.key(key)
    browser.wait(f"{TAKES} === {takes} && {SINGS} === 'All sung' && {PLAYS}", 120)
    browser.wait(f"{STATE}.then(state => state.document.take === '{takes}')")
    browser.wait("document.querySelector('#job').hidden")


def write(browser, text=SONG):
    """Put a text into the field of the lyrics, as pasted."""
    browser.click("document.querySelector('#lyrics')")
    browser.call("Input.insertText", text=text)
    browser.wait(f"document.querySelectorAll('.block').length >= {len(text.splitlines())}")


MODULE = "import('/static/words.js').then(m => {{ const doc = {doc}; return {call}; }})"
DOC = {"take": None, "style": "alto", "lines": [
    {"section": "A", "backing": False, "style": None, "words": [
        {"word": "one", "start": 0.5, "end": 1.0, "phoneme": None},
        {"word": "two", "start": 1.0, "end": 1.2, "phoneme": "t"}]},
    {"section": "A", "backing": True, "style": "tenor", "words": [
        {"word": "three", "start": 2.0, "end": 3.0, "phoneme": None}]}]}


def test_words_change_as_asked(browser, server):
    """The functions that change a document, then the page in short: typed words, a nudge, undo."""
    def times(call):
        found = browser.value(MODULE.format(doc=json.dumps(DOC), call=f"m.flat(({call}).lines)"))
        return [(word["word"], word["start"], word["end"]) for word in found]

    browser.open(server.url, 1920, ready=READY)
    one, two, three = [("one", 0.5, 1.0), ("two", 1.0, 1.2), ("three", 2.0, 3.0)]
    assert times("m.moved(doc, 2, 2.504)") == [one, two, ("three", 2.5, 3.5)]
    assert times("m.moved(doc, 2, 0)") == [one, ("two", 1.0, 1.05), ("three", 1.05, 2.05)]     # it gives way
    assert times("m.moved(doc, 1, 1.7)") == [one, ("two", 1.7, 1.9), three]
    assert times("m.edged(doc, 0, 'end', 1.1)") == [("one", 0.5, 1.1), ("two", 1.1, 1.2), three]
    assert times("m.edged(doc, 0, 'end', 0)") == [("one", 0.5, 0.52), two, three]
    assert times("m.edged(doc, 2, 'start', -1)") == [one, ("two", 1.0, 1.05), ("three", 1.05, 3.0)]
    assert times("m.split(doc, 2, 2.4)")[2:] == [("th", 2.0, 2.4), ("ree", 2.4, 3.0)]
    assert times("m.joined(doc, 0)") == [("onetwo", 0.5, 1.2), three]
    assert times("m.retimed(doc, 0, [[1, 1.1], [1.5, 2]])") == [
        ("one", 1, 1.1), ("two", 1.5, 2), ("three", 2.8, 3.8)]
    for call, expected in [
            ("m.joined(doc, 1)", None), ("m.replaced(doc, 2).lines.length", 1),
            ("m.plain(doc.lines)", "[A]\none two\n(three)"),
            ("m.changes(m.moved(doc, 2, 2.5), doc).count", 1),
            ("m.changes(m.replaced(doc, 0), doc).count", 1),
            ("[...m.changes({...doc, style: 'bass'}, doc).words]", [0, 1])]:
        assert browser.value(MODULE.format(doc=json.dumps(DOC), call=call)) == expected, call

    write(browser)
    assert browser.value(WORDS) == "The night is cold and clear I hear the river sing So stay with me"
    browser.click(BLOCK.format(10))
    browser.wait("word.elements.word.value === 'sing'")
    start, end = browser.value(TIMES)
    browser.key("Ctrl+ArrowRight")
    browser.key("Ctrl+Shift+ArrowRight")
    browser.key("Alt+ArrowUp")
    browser.wait(f"{TIMES}.join() === '{start + 0.06:.4g},{end + 0.07:.4g}'")
    browser.key("Ctrl+z")
    browser.key("Ctrl+z")
    browser.wait(f"{TIMES}[0] === {start} && {TIMES}[1] === {end}")
    assert not browser.errors


def test_the_page_is_all_here():
    """No address of another place, nothing inline that the policy would stop, no text that becomes HTML."""
    for path in (*(ROOT / "studio" / "page").iterdir(), ROOT / "songs" / "timeline.js"):
        text = path.read_text(encoding="utf-8")
        foreign = r"https?:|//[a-z]|url\(|@import| on\w+=\"|style="
        assert not re.search(rf"{foreign}|innerHTML|insertAdjacentHTML|\beval\b", text), path
        assert len(text.splitlines()) <= 400 and max(map(len, text.splitlines())) <= 110, path
        assert path.suffix != ".js" or text.startswith("// "), path


@pytest.mark.slow
def test_a_dragged_word_is_sung_elsewhere_and_nothing_else(browser, server, tmp_path):
    """The word is where it was dragged to, and each sample that is not near it is the same."""
    browser.open(server.url, 1920, ready=READY)
    with sung(browser, 1):
        write(browser)
    browser.click("document.querySelector('#play')")
    browser.wait(f"!({PLAYS})")
    block = BLOCK.format(10)
    browser.click(block)
    browser.wait("word.elements.word.value === 'sing'")
    (start, end), words = browser.value(TIMES), browser.value(WORDS)
    with sung(browser, 2):
        browser.drag(block, 60)
        browser.wait(f"{SINGS} === 'Sing 1 changed word'")
        assert browser.value(f"{block}.classList.contains('changed')")
    state = server.state()
    before, take = state["takes"]
    moved = take["lines"][1]["words"][-1]["start"] - start
    assert (before["kind"], take["kind"], take["before"]) == ("song", "edit", before["id"])
    assert 0.2 < moved < 0.4
    (old, rate), (new, _) = (server.wave(each["id"], tmp_path) for each in (before, take))

    def level(wave, a, b):
        return wave[:, round(a * rate):round(b * rate)].square().mean().sqrt().item()
    assert level(old, start, start + 0.2) > 5 * level(new, start, start + 0.2)
    assert level(new, end, end + moved - 0.05) > 5 * level(old, end + 0.1, end + moved)
    kept = torch.ones(min(old.shape[1], new.shape[1]), dtype=torch.bool)
    for a, b in take["spans"]:
        kept[max(0, round((a - 0.12) * rate)):round((b + 0.12) * rate)] = False
    assert kept.float().mean() > 0.6
    assert torch.equal(old[:, :len(kept)][:, kept], new[:, :len(kept)][:, kept])

    # It plays from before the word; the take before is a key away, at the same place.
    assert browser.value("audio.currentTime") < start + 0.5
    browser.key("c")
    browser.wait("!other.paused && audio.paused")
    assert abs(browser.value("other.currentTime - audio.currentTime")) < 0.5
    browser.key("c")
    # Undo: first the take of before, then the word.
    browser.key("Ctrl+z")
    browser.wait(f"{SINGS} === 'Sing 1 changed word'")
    browser.key("Ctrl+z")
    browser.wait(f"{SINGS} === 'All sung'")
    browser.wait(f"{STATE}.then(state => state.document.take === '{before['id']}')")
    assert browser.value(WORDS) == words and not browser.errors


@pytest.mark.slow
def test_all_by_keys(browser, server):
    """From nothing to a song that is sung, changed and sung again, without a mouse."""
    browser.open(server.url, 1920, ready=READY)
    for _ in range(20):
        if browser.value("document.activeElement.id") == "lyrics":
            break
        browser.key("Tab")
    with sung(browser, 1):
        browser.type("good morn\nto you")
        browser.wait("document.querySelectorAll('.block').length === 4")
    for _ in range(20):
        if browser.value("document.activeElement.className").startswith("block"):
            break
        browser.key("Tab")
    browser.key(" ")
    browser.wait(f"!({PLAYS})")
    browser.key("Home")
    browser.key("ArrowRight")
    browser.wait("document.activeElement.textContent.startsWith('morn')")
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert browser.value("document.activeElement.getAttribute('aria-label')").startswith("morn, 0:00.")
    browser.key("Enter")
    browser.type("ing")
    browser.wait("document.activeElement.name === 'word'")
    browser.key("Enter")
    browser.wait("document.activeElement.textContent.startsWith('ing')")
    browser.key("p")
    browser.type("\u026a\u014b")
    browser.key("Enter")
    browser.key("Alt+Shift+ArrowDown")
    browser.wait(f"{SINGS} === 'Sing 1 changed word'")
    with sung(browser, 2):
        pass
    [_, word], _ = (line["words"] for line in server.state()["takes"][-1]["lines"])
    assert (word["word"], word["phoneme"]) == ("ing", "\u026a\u014b")
    browser.key("?")
    browser.wait("help.open")
    browser.key("Escape")
    browser.wait("!help.open")
    assert not browser.errors


def begin_long_song(browser, server):
    """Sing what takes some seconds."""
    browser.open(server.url, 1920, ready=READY)
    write(browser, "\n".join(["So stay with me to~night and I will hear the river sing"] * 6))
    browser.key("Ctrl+Enter")


@pytest.mark.slow
def test_reload_while_it_sings(browser, server):
    """The running job, the words and their history are there again; then the take is."""
    begin_long_song(browser, server)
    browser.wait("!document.querySelector('#job').hidden && document.querySelector('progress').value > 0", 60)
    browser.call("Page.reload")
    browser.wait(f"document.readyState === 'complete' && {READY} && !!document.querySelector('.block')")
    browser.wait("!document.querySelector('#job').hidden")
    assert "Singing" in browser.value("document.querySelector('#job span').textContent")
    browser.wait(f"{TAKES} === 1", 120)
    browser.wait(f"{SINGS} === 'All sung'")
    browser.click("document.querySelector('[data-do=undo]')")
    browser.wait(f"{SINGS} === 'Sing'")
    browser.click("document.querySelector('[data-do=undo]')")
    browser.wait("!document.querySelector('.block')")
    assert browser.value("document.querySelector('#lyrics').value") == "" and not browser.errors


@pytest.mark.slow
def test_cancelled(browser, server):
    """It ends soon, leaves no take, and the next one can be sung."""
    begin_long_song(browser, server)
    browser.wait("!document.querySelector('#job').hidden", 60)
    browser.click("document.querySelector('[data-do=cancel]')")
    browser.wait(f"document.querySelector('#job').hidden && {NEWS} === 'Cancelled.'", 30)
    assert browser.value(TAKES) == 0 and browser.value(SINGS) == "Sing" and not browser.errors


def enter(browser, name, text):
    """Write a text into a field of the bar."""
    browser.click(f"document.querySelector('#{name}')")
    browser.value(f"document.querySelector('#{name}').select()")
    browser.call("Input.insertText", text=text)
    browser.key("Enter")


@pytest.mark.slow
def test_two_tabs(browser, server):
    """What one changes, the other shows; of two changes at once, none is lost, and the page says so."""
    browser.open(server.url, 1920, ready=READY)
    write(browser, "one two three")
    first, second = browser.session, browser.tab()
    browser.open(server.url, ready=f"{READY} && {WORDS} === 'one two three'")
    browser.front(first)
    enter(browser, "title", "From the first")
    browser.front(second)
    browser.wait(f"title.value === 'From the first' && {NEWS} === 'Changed in another tab.'")
    # Now at once: this tab's change goes out when the server already has the other's.
    browser.value("window.go = new Promise(done => { const ask = fetch; window.fetch = async (...all) => {"
                  "if (all[1]?.method === 'PUT') await new Promise(free => { window.free = free; done(); });"
                  "return ask(...all); }; }); 0")
    enter(browser, "artist", "Mine")
    browser.value("go")
    browser.front(first)
    enter(browser, "artist", "Theirs")
    browser.wait(f"{STATE}.then(state => state.document.artist === 'Theirs')")
    browser.front(second)
    browser.value("free()")
    browser.wait(f"artist.value === 'Theirs' && {NEWS}.includes('at the same time')")
    browser.click("document.querySelector('[data-do=undo]')")
    browser.wait("artist.value === 'Mine'")
    browser.value("free()")


@pytest.mark.slow
def test_the_connection_is_lost(browser, tmp_path):
    """The page says so, keeps what is typed, and says what to do when the studio is another one."""
    server = Server(tmp_path)
    try:
        browser.open(server.url, 1920, ready=READY)
        write(browser, "one two three")
        browser.wait(f"{STATE}.then(state => state.document.lines.length === 1)")
    finally:
        server.end()
    browser.wait(f"{NEWS}.startsWith('Connection lost')")
    port = server.root.rstrip("/").rpartition(":")[2]
    again = Server(tmp_path, port)
    try:
        browser.wait(f"{NEWS}.startsWith('The studio was started anew')", 30)
        assert browser.value(WORDS) == "one two three"
        browser.open(again.url, ready=f"{READY} && {WORDS} === 'one two three'")
    finally:
        again.end()


@pytest.mark.slow
def test_tapped_rhythm(browser, server):
    """Space gives words their times, the rest moves along, one step of the history takes it back."""
    browser.open(server.url, 1920, ready=READY)
    write(browser)
    browser.click(BLOCK.format(1))
    browser.wait(f"{STATE}.then(state => state.document.lines.length === 3)")
    before = browser.value(f"{STATE}.then(state => JSON.stringify(state.document.lines))")
    browser.key("t")
    browser.wait("!tapping.hidden")
    time.sleep(2.6)
    for _ in range(3):
        browser.key(" ", hold_s=0.15)
        time.sleep(0.2)
    browser.key("Escape")
    browser.wait("tapping.hidden")
    browser.wait(f"{STATE}.then(state => JSON.stringify(state.document.lines) !== {json.dumps(before)})")
    old, new = ([word for line in lines for word in line["words"]]
                for lines in (json.loads(before), server.state()["document"]["lines"]))
    assert new[0] == old[0]
    for word in new[1:4]:
        assert 0.1 < word["end"] - word["start"] < 0.4
    assert all(0.25 < b["start"] - a["start"] < 0.8 for a, b in zip(new[1:3], new[2:4]))
    shift = new[3]["end"] - old[3]["end"]
    assert all(abs(b["start"] - a["start"] - shift) < 0.011 for a, b in zip(old[4:], new[4:]))
    browser.key("Ctrl+z")
    browser.wait(f"{STATE}.then(state => JSON.stringify(state.document.lines) === {json.dumps(before)})")
    assert not browser.errors


CONTRAST = """(() => {
  const rgba = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(
    c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4).reduce(
    (sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = node => {                                   // colours lie on each other, some are glass
    const layers = [];
    for (; node; node = node.parentElement) layers.push(rgba(getComputedStyle(node).backgroundColor));
    return layers.reverse().reduce((below, [r, g, b, a = 1]) =>
      [r, g, b].map((c, k) => c * a + below[k] * (1 - a)), [255, 255, 255]);
  };
  return ["h2", "#lyrics", "label", ".block span", ".block .sounds", ".block.changed span", "#clock", "#sing",
          "#takes .name", "#takes .note", "#problems button", "#of", "#news"].map(name => {
    const node = document.querySelector(name), front = light(rgba(getComputedStyle(node).color));
    const back = light(behind(node));
    return [name, (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05)];
  });
})()"""


@pytest.mark.slow
def test_themes_and_widths(browser, server):
    """All text can be read in both themes (WCAG AA), and no width of screen scrolls sideways."""
    browser.open(server.url, 1920, ready=READY)
    with sung(browser, 1):
        write(browser, f"{SONG}\n{'o' * 90} xqz")
    browser.click(BLOCK.format(2))
    browser.key("Ctrl+ArrowRight")
    browser.wait("!!document.querySelector('.block.changed')")
    browser.wait("!!document.querySelector('#problems li')")
    for dark in (False, True):
        for width in (390, 1000, 1920):
            browser.show(width, 800, dark, width == 390)
            browser.wait(WIDE)
            for name, contrast in browser.value(CONTRAST):
                assert contrast > 4.5, (name, dark, width)
    assert not browser.errors


PACE = """new Promise(done => {
  const times = [], scroll = document.querySelector('#scroll');
  let last = performance.now();
  (function step() {
    %s;
    requestAnimationFrame(() => {
      const now = performance.now();
      times.push(now - last);
      last = now;
      if (times.length < 30) step(); else done(times.sort((a, b) => a - b)[15]);
    });
  })();
})"""
LONG = """(async () => {
  const {document: doc, revision} = await STATE;
  doc.lines = Array.from({length: 625}, (_, line) => ({section: "Verse", backing: false, style: null,
    words: Array.from({length: 8}, (_, k) => ({word: "la" + k, start: Math.round(96 * line + 12 * k) / 100,
      end: Math.round(96 * line + 12 * k + 11) / 100, phoneme: "la"}))}));
  await fetch("/api/document", {method: "PUT", headers: {"Content-Type": "application/json"},
    body: JSON.stringify({revision, document: doc})});
})()""".replace("STATE", STATE)


@pytest.mark.slow
def test_five_thousand_words_stay_fluid(browser, server):
    """Ten minutes: few elements, and frames that a hand feels as smooth, even on a slow machine."""
    browser.open(server.url, 1920, 1080, ready=READY)
    browser.value(LONG)
    browser.wait("document.querySelectorAll('.block').length > 20", 60)
    browser.wait("!!document.querySelector('#problems li')", 60)
    assert browser.value(PACE % "scroll.scrollLeft += 90") < 50
    browser.key("0")
    browser.wait("document.querySelectorAll('.block').length === 0")
    browser.key("Home")
    for step in ("zoomIn", "zoomOut"):
        assert browser.value(PACE % f"document.querySelector('[data-do={step}]').click()") < 50
    nudge = "{key: 'ArrowRight', ctrlKey: true, bubbles: true}"
    assert browser.value(PACE % f"document.body.dispatchEvent(new KeyboardEvent('keydown', {nudge}))") < 80
    assert browser.value("document.querySelectorAll('.block').length") < 600 and not browser.errors
