"""The demo: its parts put together and launched. `python app.py` serves 127.0.0.1:7860."""

import argparse
import importlib.util
import logging
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
# Read when torch is imported: docs/decisions/0032-threads-that-do-not-wait-long.md
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
with suppress(ImportError):
    import spaces  # noqa: F401 - before anything can touch CUDA, as ZeroGPU asks

import gradio as gr

from baselines import registry, tiny
from baselines.memory import Shelf
from pure.pipeline import PurePipeline
from study.room import Room
from ui import compare_tab, components, numbers_tab, restore_tab, results_tab, study_tab
from ui.boundary import Model, compile_ahead
from ui.settings import Settings

CACHE_SECONDS = (1800, 3600)  # how often uploads and results are looked at, and how old they get


def compose(
    model: Model, bench: compare_tab.Bench, settings: Settings, room: Room | None = None
) -> gr.Blocks:
    """The page around a model and the methods it is compared with: one line a tab.

    `room` is that of the study; without one it is made from the settings.
    """
    room = room or Room(settings.study)
    with gr.Blocks(title="PURE", analytics_enabled=False, delete_cache=CACHE_SECONDS) as page:
        gr.HTML(components.header(model.name, model.note), elem_id="head")
        with gr.Tabs() as tabs:
            with gr.Tab("Restore", id="restore"):
                restore_tab.build(model, settings)
            with gr.Tab("Compare", id=compare_tab.TAB):
                compare_tab.build(bench, settings, page=page, tabs=tabs)
            with gr.Tab("Numbers", id="numbers"):
                numbers_tab.build(compare_tab.GALLERY, settings.results)
            with gr.Tab("Study", id=study_tab.TAB):
                study_tab.build(room, page=page, tabs=tabs)
            with gr.Tab("Results", id=results_tab.TAB) as tab:
                results_tab.build(room, tab)
    return page.queue(max_size=settings.queue_size)


def launch_options(settings: Settings) -> dict[str, Any]:
    """What `launch` is given, here and in the tests."""
    return {
        "theme": components.theme(),
        "css": components.CSS,
        "max_file_size": settings.max_file_mb * 1_000_000,
        "show_error": False,
        "run_history": False,
        "footer_links": ["api"],
        "enable_monitoring": False,
        "ssr_mode": False,
    }


def tiny_bench(folder: Path, settings: Settings) -> compare_tab.Bench:
    """The methods with random weights where weights come apart, written to a folder first."""
    for name in tiny.WRITERS:
        tiny.write(name, folder)
    methods = registry.discover(weights=folder)
    return compare_tab.Bench(methods, Shelf(settings.methods_gib * 2**30, device=settings.device))


def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def main(arguments: list[str] | None = None) -> None:
    """Serve the demo."""
    parser = argparse.ArgumentParser(prog="python app.py", description=__doc__)
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="try the diffusion methods with small random weights, made on the spot",
    )
    options = parser.parse_args(arguments)
    if options.tiny and (missing := [name for name in ("diffusers", "timm") if not _there(name)]):
        parser.error(
            f"--tiny needs {' and '.join(missing)}: pip install -r requirements-baselines.txt"
        )
    logging.basicConfig(level=logging.INFO)
    room.prepare()
    try:
        if not options.tiny:
            demo.launch(**launch_options(settings))
            return
        with TemporaryDirectory() as folder:
            page = compose(model, tiny_bench(Path(folder), settings), settings, room)
            page.launch(**launch_options(settings))
    finally:
        room.close()


settings = Settings.from_environment()
pipeline = PurePipeline.from_pretrained(settings.checkpoint, device=settings.device)
shelf = Shelf(settings.methods_gib * 2**30, device=settings.device)
if settings.ahead:
    compile_ahead(pipeline)
model = Model(pipeline, device=settings.device)
methods = registry.discover(weights=settings.weights, offload=settings.offload)
room = Room(settings.study)
demo = compose(model, compare_tab.Bench(methods, shelf), settings, room)

if __name__ == "__main__":
    main()
