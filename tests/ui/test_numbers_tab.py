import json

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from evaluation import report, scores
from evaluation.report import Table
from tests.ui.fake_methods import fake
from ui import compare_tab, gallery, numbers_tab
from ui.numbers_tab import axes, caption, pictures, sources


@pytest.fixture
def results(tmp_path):
    """A set of two pictures with references, two methods, scored."""
    rng = np.random.default_rng(0)
    lq, gt = tmp_path / "in" / "lq", tmp_path / "in" / "gt"
    lq.mkdir(parents=True), gt.mkdir()
    for name in ("bee", "cat"):
        small = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
        small.save(lq / f"{name}.png")
        small.resize((12, 8), Image.Resampling.BICUBIC).save(gt / f"{name}.png")
    folder = tmp_path / "results" / "pets"
    for kind, source in (("lq", lq), ("gt", gt)):
        (folder / kind).mkdir(parents=True)
        for file in source.iterdir():
            (folder / kind / file.name).write_bytes(file.read_bytes())
    for method in (fake("plain"), fake("other")):
        (folder / method.name).mkdir()
        restorer = method.load("cpu")
        for file in lq.iterdir():
            with Image.open(file) as image:
                restored = restorer.restore(image.convert("RGB"), seed=0).image
            restored.save(folder / method.name / file.name)
            card = {"title": method.title, "family": "other", "scale": 2, "details": {}}
            path = folder / method.name / file.with_suffix(".json").name
            path.write_text(json.dumps(card))
    scores.score(folder, [report.table()["psnr_y"]])
    return tmp_path / "results"


def test_the_shipped_gallery_is_a_set_whose_means_are_those_of_its_pictures(tmp_path):
    [source] = sources(compare_tab.GALLERY, tmp_path / "nothing").values()
    index = json.loads((compare_tab.GALLERY / gallery.INDEX).read_text())
    with_reference = [scene for scene in index["scenes"] if scene["gt"]]
    assert source.summary.pictures == len(with_reference)
    for row in source.summary.rows:
        values = [
            method["scores"]["psnr_y"]
            for scene in with_reference
            for method in scene["methods"]
            if method["name"] == row.method
        ]
        assert row.means["psnr_y"] == pytest.approx(sum(values) / len(values))
    scene = source.scene(with_reference[0]["name"])
    assert [p.role for p in scene.pictures][:: len(scene.pictures) - 1] == ["lq", "gt"]


def test_a_measured_set_is_offered_with_its_pictures(results):
    found = sources(results / "no gallery", results)
    assert list(found) == ["results/pets"]
    source = found["results/pets"]
    assert source.title == "pets (2)"
    assert pictures(source.summary) == ["bee", "cat"]
    assert axes(source.summary) == [("PSNR", "psnr_y")]
    scene = source.scene("cat")
    assert [p.name for p in scene.pictures] == ["Input", "The other", "The plain", "Reference"]
    assert scene.pictures[1].source == results / "pets" / "other" / "cat.png"
    assert scene.pictures[1].metrics[0].name == "PSNR"


def test_only_pictures_with_numbers_are_opened(results):
    Image.new("RGB", (6, 4)).save(results / "secret.png")
    [source] = sources(results / "no gallery", results).values()
    assert source.scene("../../secret") is None
    assert source.scene("dog") is None


def test_a_set_without_scores_is_not_offered(results):
    (results / "pets" / scores.FILE).unlink()
    assert sources(results / "no gallery", results) == {}


def test_the_best_values_are_bold_and_the_feet_stand_apart():
    shown = Table("t", ("Method", "PSNR ↑"), (("<a>", "9.50"),), frozenset({(0, 1)}), ("foot",))
    cells = numbers_tab._cells(shown)
    assert "<td>&lt;a&gt;</td><td><strong>9.50</strong></td>" in cells
    assert 'aria-label="t"' in cells
    assert "foot" not in cells
    assert "foot" in caption(shown)


def test_titles_and_feet_are_text_not_markup():
    text = caption(Table("<b>t</b>", ("A",), (), foot=("a < b",)))
    assert "&lt;b&gt;t" in text
    assert "a &lt; b" in text


def test_the_papers_tables_are_there_without_any_measured_set(tmp_path):
    with gr.Blocks() as page:
        numbers_tab.build(tmp_path, tmp_path)
    heads = [b.value for b in page.blocks.values() if isinstance(b, gr.HTML)]
    for shown in report.from_the_paper():
        assert any(shown.title in str(head) for head in heads)
    # of its Table 6, and nothing that would be of a measured set
    assert sum(isinstance(b, gr.Plot) for b in page.blocks.values()) == 1


def test_choosing_a_set_fills_every_part(results):
    with gr.Blocks() as page:
        numbers_tab.build(compare_tab.GALLERY, results)
    [chosen] = [b for b in page.blocks.values() if getattr(b, "elem_id", "") == "numbers-set"]
    [show] = [f for f in page.fns.values() if (chosen._id, "change") in f.targets]
    for name in ("gallery", "results/pets"):
        assert len(show.fn(name)) == len(show.outputs)
    *_, scene = show.fn("results/pets")
    assert scene["title"] == "bee"
    assert scene["pictures"][0]["file"]["path"].endswith("bee.png")
