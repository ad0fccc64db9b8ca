"""The captions' page, in a real browser."""

import http.server
import io
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cli.clips import BEACH, s16le, said, words
from tests.cli.process import COMMAND, PATIENCE_S, environment, wait_until
from tests.seeing.browser import Browser
from tests.seeing.test_captions import START, Captions, captions

TALK = "ask not what your country can do for you ask what you can do for your country"


def test_words_appear_while_they_are_spoken(browser: Browser, tmp_path: Path) -> None:
    voxpipe = subprocess.Popen(
        [*COMMAND, "--daemon", "never"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    assert voxpipe.stdin is not None
    assert voxpipe.stdout is not None
    with captions(tmp_path, "-", stdin=voxpipe.stdout.fileno()) as process:
        page = browser.open(process.url)
        audio = s16le(BEACH)
        shown = 0
        for share in (0.5, 0.75, 1.0):
            # 1. so much has been spoken, and the next word not yet
            n_bytes = int(len(audio) * share) // 2 * 2
            voxpipe.stdin.write(audio[shown:n_bytes])
            voxpipe.stdin.flush()
            shown = n_bytes
            n_words = {0.5: 6, 0.75: 11}.get(share, 0)
            # 2. what was said by then is on the page
            wait_until(lambda n=n_words: words(page.text())[:n] == said(BEACH)[:n], page.text)  # type: ignore[misc]
        voxpipe.stdin.close()
        wait_until(lambda: words(page.text()) == said(BEACH), page.text)
        assert voxpipe.wait(PATIENCE_S) == 0
        assert page.evaluate("document.querySelectorAll('.row').length") == 3
    voxpipe.stdout.close()


def say(process: Captions, stream: str, text: str) -> None:
    """A whole text, word by word."""
    process.write({**START, "stream": stream})
    for number, word in enumerate(text.split()):
        event = {
            "type": "delta",
            "stream": stream,
            "text": f" {word}",
            "start": 0.4 * number,
            "end": 0.4 * number + 0.4,
        }
        process.write(event)


def test_the_address_says_how_it_looks(browser: Browser, tmp_path: Path) -> None:
    with captions(tmp_path, "-") as process:
        say(process, "stage", TALK)
        say(process, "hall", "another voice")
        page = browser.open(process.url + "?stream=stage&columns=20&lines=2")
        wait_until(lambda: page.rows() == ["you ask what you can", "do for your country"], page.text)
        page = browser.open(process.url + "?stream=stage&stream=hall&lines=9&columns=30")
        rows = ["ask not what your country can", "do for you ask what you can do", "for your country", "another voice"]
        wait_until(lambda: page.rows() == rows, page.text)
        names = (
            "[...document.querySelectorAll('.name')].filter((one) => one.offsetHeight).map((one) => one.textContent)"
        )
        assert page.evaluate(names) == ["stage", "hall"]
        page = browser.open(process.url + "?stream=nobody")
        wait_until(lambda: page.evaluate("document.getElementById('state').hidden"))
        assert page.rows() == []
        page = browser.open(process.url + "?stream=stage&clear=0.5")
        say(process, "stage", "soon gone")
        wait_until(lambda: "soon gone" in page.text(), page.text)
        wait_until(lambda: page.rows() == [], page.text)


def test_it_fits_every_window_and_obs_sees_through_it(browser: Browser, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    with captions(tmp_path, "-") as process:
        say(process, "stage", TALK)
        for width, height in ((1920, 1080), (1280, 200), (400, 800)):
            page = browser.open(process.url + "?transparent&columns=32", width=width, height=height)
            wait_until(lambda page=page: len(page.rows()) == 3, page.text)  # type: ignore[misc]
            boxes = "[...document.querySelectorAll('.row')].map((row) => row.getBoundingClientRect().toJSON())"
            for box in page.evaluate(boxes):
                assert 0 <= box["top"] < box["bottom"] <= height
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            shot = image.open(io.BytesIO(page.screenshot(transparent=True))).convert("RGBA")
            alpha = shot.getchannel("A").getextrema()
            assert alpha == (0, 255)
            assert shot.getpixel((width // 2, 2))[3] == 0
        page = browser.open(process.url)
        assert image.open(io.BytesIO(page.screenshot())).convert("RGB").getpixel((2, 2)) == (0x0E, 0x10, 0x14)


def test_text_is_text(browser: Browser, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=document.title='owned'> </script><script>document.title='owned'</script> &amp; \"'"
    with captions(tmp_path, "-") as process:
        page = browser.open(process.url + "?columns=200")
        say(process, "<b>name</b>", hostile)
        say(process, "other", "words")
        wait_until(lambda: hostile in page.rows(), page.text)
        assert page.evaluate("document.title") == "voxpipe captions"
        assert page.evaluate("document.querySelectorAll('main img, main script, main b').length") == 0


def test_scripts_without_spaces_and_from_right_to_left(browser: Browser, tmp_path: Path) -> None:
    with captions(tmp_path, "-") as process:
        page = browser.open(process.url + "?columns=10")
        process.write(START)
        for piece in ("大家", "好，", "欢", "迎来到「今", "天」的节目"):  # ten columns are five characters
            process.say("one", piece)
        wait_until(lambda: page.rows() == ["大家好，欢", "迎来到「今", "天」的节目"], page.text)
        process.say("one", "。")  # stays with what it belongs to
        wait_until(lambda: page.rows() == ["迎来到「今", "天」的节", "目。"], page.text)
        process.write({**START, "stream": "two"})
        process.say("two", " مرحبا بكم")
        direction = "getComputedStyle([...document.querySelectorAll('.row')].at(-1)).direction"
        wait_until(lambda: page.evaluate(direction) == "rtl")


def test_it_goes_on_by_itself(browser: Browser, tmp_path: Path) -> None:
    with captions(tmp_path, "-") as first:
        page = browser.open(first.url)
        say(first, "one", "before the end")
        wait_until(lambda: page.rows() == ["before the end"], page.text)
        first.process.kill()
        wait_until(lambda: page.evaluate("document.getElementById('state').textContent") == "waiting for voxpipe")
        assert page.rows() == ["before the end"]
        with captions(tmp_path, "-", "--listen", f"127.0.0.1:{first.address[1]}") as second:
            assert second.url == first.url
            say(second, "one", "after it")
            wait_until(lambda: page.rows() == ["after it"], page.text)
            assert page.evaluate("document.getElementById('state').hidden")


class Website(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>evil</title>")

    def log_message(self, format: str, *args: object) -> None:
        pass


READ_IT = """
(async () => {
  const results = [];
  for (const path of ["", "events", "captions.js"]) {
    try { results.push(await (await fetch("URL" + path)).text()); } catch (error) { results.push("refused"); }
  }
  results.push(await new Promise((resolve) => {
    const source = new EventSource("URLevents");
    source.onmessage = (event) => resolve(event.data);
    source.onerror = () => resolve("refused");
  }));
  results.push(await new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.onload = () => {
      let text = "refused";
      try { text = frame.contentDocument.body.textContent } catch (error) {}
      resolve(text || "refused");
    };
    frame.src = "URL";
    document.body.append(frame);
  }));
  return results;
})()
"""


def test_another_website_cannot_read_it(browser: Browser, tmp_path: Path) -> None:
    """Even one that knows the secret address, also when its own name points here (DNS rebinding)."""
    website = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Website)
    threading.Thread(target=website.serve_forever, daemon=True).start()
    with captions(tmp_path, "-") as process:
        say(process, "one", "a secret")
        page = browser.open(f"http://127.0.0.1:{website.server_port}/")
        assert page.evaluate(READ_IT.replace("URL", process.url)) == ["refused"] * 5
        parts = urlsplit(process.url)
        page = browser.open(f"http://rebound.example:{parts.port}{parts.path}")  # see browser.py
        assert "voxpipe answers to the names of this machine only" in page.evaluate("document.body.textContent")
        page = browser.open(process.url)  # and who may, can
        wait_until(lambda: page.rows() == ["a secret"], page.text)
    website.shutdown()
    website.server_close()
