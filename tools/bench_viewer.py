"""Measure how quickly the viewer answers: eight pictures of 2048 × 2048 in a real browser.

Serves a page of its own, drives the system's Chromium without a window, and moves and zooms the
pictures for a while. Two times are told: what the script's own work for one step takes, and how far
apart the frames of the screen were. Without a graphics card the browser draws on the CPU, which is
the worst case. Needs the packages of requirements-dev.txt.
"""

import argparse
import json
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE, PICTURES = 2048, 8
STEPS = 120  # of each kind
WINDOW = (1280, 900)

# Runs in the page: one step a frame. Work is the time from the start of a frame until the script is
# through with it; the browser's own drawing after that shows in how far apart the frames are.
MEASURE = """async ({steps, kind}) => {
  const stage = document.querySelector('.viewer .stage');
  const key = (name) => stage.dispatchEvent(
    new KeyboardEvent('keydown', {key: name, bubbles: true, cancelable: true}));
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const actions = {
    pan: (i) => key(['ArrowRight', 'ArrowDown', 'ArrowLeft', 'ArrowUp'][Math.floor(i / 3) % 4]),
    zoom: (i) => key(Math.floor(i / 5) % 2 ? '-' : '+'),
    flip: (i) => { stage.dispatchEvent(new KeyboardEvent(
      i % 2 ? 'keyup' : 'keydown', {key: ' ', bubbles: true, cancelable: true})); },
  };
  const work = [], apart = [];
  for (let i = 0; i < 5; i += 1) { actions[kind](i); await frame(); await frame(); }
  let last = await frame();
  for (let i = 0; i < steps; i += 1) {
    const start = performance.now();
    actions[kind](i);  // asks for a drawing in the next frame, before the promise below
    const now = await frame();
    work.push(performance.now() - Math.max(start, now));
    apart.push(now - last);
    last = now;
  }
  return {work, apart};
}"""

SERVER = """
import sys
from pathlib import Path
import gradio as gr
from ui.viewer import Picture, Scene, viewer
files = sorted(Path(sys.argv[1]).glob("*.png"))
with gr.Blocks(analytics_enabled=False) as page:
    viewer(Scene(tuple(Picture(file, file.stem) for file in files), key="bench"))
page.launch(server_port=int(sys.argv[2]), ssr_mode=False, quiet=True)
"""


def picture(side: int, seed: int) -> Image.Image:
    """Waves and noise: nothing a codec or a cache could make light of."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = 0.5 + 0.4 * np.sin(40 * x * (seed + 1) + 25 * y)
    noise = np.random.default_rng(seed).normal(0, 0.05, (side, side, 3))
    return Image.fromarray(((waves[..., None] + noise).clip(0, 1) * 255).astype(np.uint8))


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and largest, in milliseconds."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 2),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 2),
        "largest": round(ordered[-1], 2),
    }


def measure(url: str, chromium: str, *, steps: int = STEPS) -> dict[str, Any]:
    """Open the page and time every kind of step; milliseconds by layout and step."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - a test dependency

    results: dict[str, Any] = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
        page.goto(url)
        page.wait_for_function(
            "document.querySelectorAll('.viewer canvas').length > 1 && "
            "[...document.querySelectorAll('.viewer .note')].every(n => !n.textContent)",
            timeout=240_000,
        )
        for mode in ("grid", "swipe"):
            page.click(f".viewer [data-mode={mode}]")
            page.focus(".viewer .stage")
            for place, key in (("fit", "f"), ("one to one", "o")):
                page.keyboard.press(key)
                for kind in ("pan", "zoom", "flip"):
                    if place == "fit" and kind == "pan":
                        continue  # there is nowhere to go
                    times = page.evaluate(MEASURE, {"steps": steps, "kind": kind})
                    results[f"{mode}, {place}, {kind}"] = {
                        "work_ms": quantiles(times["work"]),
                        "apart_ms": quantiles(times["apart"]),
                    }
                    page.keyboard.press(key)
        results["browser"] = browser.version
        browser.close()
    return results


def main() -> None:
    """Print the times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=SIDE, help="of a picture, in pixels")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="2 to 8")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each kind")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        parser.error("there is no Chromium; on Debian: apt-get install chromium")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.pictures):
            picture(arguments.side, number).save(Path(folder) / f"{number}.png", compress_level=1)
        # a process of its own: Gradio belongs to ui/, and its threads would be measured too
        server = subprocess.Popen([sys.executable, "-c", SERVER, folder, str(port)])
        try:
            _wait_for(port)
            results = measure(f"http://127.0.0.1:{port}/", chromium, steps=arguments.steps)
        finally:
            server.terminate()
            server.wait()
    results |= {
        "pictures": arguments.pictures,
        "side": arguments.side,
        "machine": platform.machine(),
    }
    sys.stdout.write(json.dumps(results, indent=1) + "\n")


def _wait_for(port: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens at port {port} after {seconds:.0f} s")


if __name__ == "__main__":
    main()
