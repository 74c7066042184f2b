"""The demo: its parts put together and launched. `python app.py` serves 127.0.0.1:7860."""

import logging
import os
from contextlib import suppress
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
with suppress(ImportError):
    import spaces  # noqa: F401 - before anything can touch CUDA, as ZeroGPU asks

import gradio as gr

from baselines import registry
from baselines.memory import Shelf
from pure.pipeline import PurePipeline
from study.room import Room
from ui import compare_tab, components, numbers_tab, restore_tab, study_tab
from ui.boundary import Model
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


def main() -> None:
    """Serve the demo."""
    logging.basicConfig(level=logging.INFO)
    room.prepare()
    try:
        demo.launch(**launch_options(settings))
    finally:
        room.close()


settings = Settings.from_environment()
pipeline = PurePipeline.from_pretrained(settings.checkpoint, device=settings.device)
shelf = Shelf(settings.methods_gib * 2**30, device=settings.device)
room = Room(settings.study)
demo = compose(
    Model(pipeline, device=settings.device),
    compare_tab.Bench(registry.discover(), shelf),
    settings,
    room,
)

if __name__ == "__main__":
    main()
