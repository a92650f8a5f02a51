"""A headless Chromium to try pages in, driven through its DevTools protocol on a pipe: no package needed.

It may use no network: all names resolve to nothing.
"""

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
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38,
        "ArrowRight": 39, "ArrowDown": 40}


def find_browser():
    """The path of a Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page. Keys and clicks are what a person's are to it: trusted events at places on the screen."""

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

    def open(self, url, width=1000, height=800, dark=False, phone=False):
        """Load a page and wait until its sound is there."""
        if self.session is None:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=2 if phone else 1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"}])
        self.errors.clear()
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.querySelector('audio')?.readyState === 4")

    def value(self, script):
        """The value of an expression in the page."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, script, seconds=PATIENCE_S):
        """Wait until an expression is true in the page."""
        until = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < until, f"{script}: not within {seconds} s; {self.errors}"
            time.sleep(0.01)

    def key(self, key):
        about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        text = {" ": " ", "Enter": "\r"}.get(key, "")
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, script, x=0.5):
        """Click on the element that an expression gives, at x of its width."""
        box = self.value("(e => { e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect(); "
                         f"return [b.left + {x} * b.width, b.top + b.height / 2]; }})({script})")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1],
                      **({"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}))


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
             "--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run", f"--user-data-dir={profile}"],
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
