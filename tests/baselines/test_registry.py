"""Dropping one file into a package adds a method everywhere."""

import sys

import numpy as np
import pytest
from PIL import Image

from baselines import registry
from baselines.diffusion.sources import RANDOM_MARK
from evaluation import report, scores
from evaluation.datasets import open_folder
from evaluation.metrics import table
from evaluation.runner import RunnerError, run_all

PLUGIN = '''
"""Mirror: a method in one file."""
from PIL import ImageOps
from baselines.base import Method, timed

class Mirror:
    def restore(self, lq, *, seed=0):
        big = lq.resize((lq.width * 4, lq.height * 4))
        return timed("mirror", seed, lambda: ImageOps.mirror(big))

METHOD = Method("mirror", "Mirror & Co", "other", 4, lambda device: Mirror(), parameters=12)
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An import name of a package that is empty at first."""
    name = f"methods_of_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield name, folder
    for module in [m for m in sys.modules if m.startswith(name)]:
        del sys.modules[module]


def test_one_file_adds_a_method_to_picker_runner_and_report(package, tmp_path):
    name, folder = package
    assert "mirror" not in registry.discover("baselines", name)
    (folder / "mirror.py").write_text(PLUGIN)

    methods = registry.discover("baselines", name)
    assert methods["mirror"].title == "Mirror & Co"  # what the picker lists
    assert "bicubic" in methods

    pairs = tmp_path / "pairs"
    rng = np.random.default_rng(0)
    for kind, side in (("lq", 8), ("gt", 32)):
        (pairs / kind).mkdir(parents=True)
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(pairs / kind / "a.png")
    results = tmp_path / "results"
    chosen = registry.choose(["bicubic", "mirror"], methods)
    assert run_all(open_folder(pairs), chosen, results).made == 2
    scores.score(results / "pairs", [table()["psnr_y"]])
    report.write(results, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "Mirror &amp; Co" in page
    assert r"Mirror \& Co" in (tmp_path / "report" / "pairs-quality.tex").read_text("utf-8")


def test_a_file_may_hold_several_methods(package):
    name, folder = package
    (folder / "many.py").write_text(
        PLUGIN.replace("METHOD =", "ONE =")
        + "from dataclasses import replace\n"
        + 'METHODS = (ONE, replace(ONE, name="mirror-2", order=1))\n'
    )
    assert list(registry.discover(name)) == ["mirror-2", "mirror"]


def test_modules_without_methods_add_none(package):
    name, folder = package
    (folder / "helper.py").write_text("VALUE = 1\n")
    assert registry.discover(name) == {}


def test_two_methods_of_one_name_are_refused(package):
    name, folder = package
    for file in ("one", "two"):
        (folder / f"{file}.py").write_text(PLUGIN)
    with pytest.raises(ValueError, match="two methods are called 'mirror'"):
        registry.discover(name)


def test_random_weights_are_marked_wherever_the_method_is_named(tmp_path):
    plain = registry.discover(weights=tmp_path)["osediff"]
    assert (plain.title, plain.random) == ("OSEDiff", False)
    assert str(tmp_path) in plain.missing()
    (tmp_path / RANDOM_MARK).touch()
    methods = registry.discover(weights=tmp_path)
    marked = methods["osediff"]
    assert marked.title == "OSEDiff (random weights, for testing)"
    assert marked.random
    assert marked.parameters is None
    assert methods["bicubic"].title == "Bicubic"


def test_pictures_of_random_weights_are_never_results(tmp_path):
    (tmp_path / RANDOM_MARK).touch()
    marked = registry.discover(weights=tmp_path)["osediff"]
    pairs = tmp_path / "pairs"
    (pairs / "lq").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(pairs / "lq" / "a.png")
    with pytest.raises(RunnerError, match="no results"):
        run_all(open_folder(pairs), [marked], tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_networks_may_wait_on_the_cpu(package):
    name, folder = package
    (folder / "waits.py").write_text(
        PLUGIN
        + "PARTS = ()\n"
        + "def method(weights):\n"
        + "    from dataclasses import replace\n"
        + "    load = lambda device, offload=False: (device, offload)\n"
        + "    return replace(METHOD, load=load, memory_bytes=10)\n"
    )
    resident, waiting = (registry.discover(name, offload=offload)["mirror"] for offload in (0, 1))
    assert (resident.load("cuda"), resident.memory_bytes) == (("cuda", False), 10)
    assert (waiting.load("cuda"), waiting.memory_bytes) == (("cuda", True), 5)
