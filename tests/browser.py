"""A headless Chromium to try pages in, driven through its DevTools protocol on a pipe: no package needed.

It may use no network but this machine: names resolve to nothing.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE_S = 20.0
KEYS = {"Backspace": 8, "Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37,
        "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Delete": 46, "F2": 113}
MODIFIERS = {"Alt": 1, "Ctrl": 2, "Meta": 4, "Shift": 8}
SOUND_IS_THERE = "document.querySelector('audio')?.readyState === 4"


def find_browser():
    """The path of a Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """A page, and others beside it (`tab`).

    Keys and clicks are what a person's are to it: trusted events at places on the screen.
    """

    def __init__(self, send, receive):
        self.send, self.receive, self.count, self.rest, self.session = send, receive, 0, b"", None
        self.errors = []                 # what the console would show in red

    def call(self, method, **params):
        """Call a method of the protocol; its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(answer["params"]))
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self):
        while b"\0" not in self.rest:
            assert select.select([self.receive], [], [], PATIENCE_S)[0], "the browser does not answer"
            part = os.read(self.receive, 1 << 20)
            assert part, "the browser has ended"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def tab(self):
        """Open another tab, which all that follows is about; its session; `front` comes back to it."""
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self.session

    def front(self, session):
        """Come back to a tab."""
        self.session = session
        self.call("Page.bringToFront")

    def open(self, url, width=1000, height=800, dark=False, phone=False, ready=SOUND_IS_THERE):
        """Load a page and wait until an expression is true in it: that its sound is there."""
        if self.session is None:
            self.tab()
        self.show(width, height, dark, phone)
        self.errors.clear()
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && {ready}")

    def show(self, width, height, dark=False, phone=False):
        """Give the page a screen."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=2 if phone else 1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"}])

    def value(self, script):
        """The value of an expression in the page, or what its promise becomes."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, script, seconds=PATIENCE_S):
        """Wait until an expression is true in the page."""
        until = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < until, f"{script}: not within {seconds} s; {self.errors}"
            time.sleep(0.01)

    def key(self, keys, hold_s=0.0):
        """Press a key: "Enter", "a", "Ctrl+Shift+z"."""
        *held, key = keys.split("+") if len(keys) > 1 else [keys]
        about = {"key": key, "code": "Space" if key == " " else key,
                 "windowsVirtualKeyCode": KEYS.get(key) or (ord(key.upper()) if key.isalnum() else 0),
                 "modifiers": sum(MODIFIERS[name] for name in held)}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 and held in ([], ["Shift"]) else "")
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        time.sleep(hold_s)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text):
        """Type a text, letter by letter."""
        for letter in text:
            self.key("Enter" if letter == "\n" else letter)

    def place(self, script, x=0.5):
        """Where the element that an expression gives is on the screen, at x of its width."""
        return self.value("(e => { e.scrollIntoView({block: 'nearest'}); "
                          "const b = e.getBoundingClientRect(); "
                          f"return [b.left + {x} * b.width, b.top + b.height / 2]; }})({script})")

    def mouse(self, kind, x, y):
        """Move the mouse, press or release its button: kind "Moved", "Pressed", "Released"."""
        about = {"button": "left", "buttons": int(kind == "Pressed"), "clickCount": 1}
        about = {} if kind == "Moved" else about
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **about)

    def click(self, script, x=0.5):
        """Click on the element that an expression gives, at x of its width."""
        for kind in ("Moved", "Pressed", "Released"):
            self.mouse(kind, *self.place(script, x))

    def drag(self, script, by, x=0.5, steps=5):
        """Drag the element that an expression gives, held at x of its width, by some pixels to the right."""
        left, top = self.place(script, x)
        self.mouse("Moved", left, top)
        self.mouse("Pressed", left, top)
        for k in range(1, steps + 1):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + by * k / steps, y=top,
                      button="left", buttons=1)
        self.mouse("Released", left + by, top)

    def picture(self):
        """What the screen shows, as the bytes of a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def browsing():
    """A browser that ends with the block."""
    command, send, answer = (find_browser(), *map(list, (os.pipe(), os.pipe())))
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The protocol comes in by 3 and goes out by 4; of two new pipes, 3 is never the last end.
        places = (f"import os, sys; os.dup2({send[0]}, 3); os.dup2({answer[1]}, 4); "
                  "os.execv(sys.argv[1], sys.argv[1:])")
        process = subprocess.Popen(
            [sys.executable, "-c", places, command, "--headless=new", *root, "--remote-debugging-pipe",
             "--disable-gpu", "--mute-audio", "--disable-dev-shm-usage",
             "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-first-run",
             f"--user-data-dir={profile}"],
            pass_fds=(send[0], answer[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(send[0])
        os.close(answer[1])
        try:
            yield Browser(send[1], answer[0])
        finally:
            process.kill()
            process.wait()
            os.close(send[1])
            os.close(answer[0])
