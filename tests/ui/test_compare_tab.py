import html
import inspect
import math
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
from PIL import Image, ImageOps

from baselines import registry
from baselines.base import MethodError, MethodUnavailableError, SettingError, by_area, no_gpu
from imaging.load import PhotoError
from tests.ui.fake_methods import SCALE, FakeShelf, by_name, fake, speaking, three
from ui import compare_tab
from ui.boundary import LEASE_MARGIN, LEASE_SECONDS
from ui.compare_tab import (
    UNKNOWN_SECONDS,
    Bench,
    CompareError,
    Entry,
    asked_for,
    compare,
    lease_seconds,
    plain,
    start,
)
from ui.settings import Settings
from ui.viewer import payload


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "my cat.png"
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def bench():
    return Bench(three(), FakeShelf())


def ask(photo, bench, names=("plain", "inverted"), seed=0, limits=Settings()):  # noqa: B008 - frozen
    return start(str(photo), list(names), seed, bench, limits)


def enlarged(photo, change=lambda image: image):
    with Image.open(photo) as lq:
        size = (lq.width * SCALE, lq.height * SCALE)
        return change(lq.resize(size, Image.Resampling.NEAREST)).tobytes()


# The lease


def test_a_lease_is_as_long_as_method_and_picture_need_with_a_margin():
    method = replace(fake("slow"), gpu_seconds=by_area(40), memory_bytes=10 * 10**9)
    one, four = (
        lease_seconds(method, Image.new("RGB", (side, side)), 0, {}) for side in (128, 256)
    )
    assert one == round((40 + 10) * LEASE_MARGIN)
    assert four == round((160 + 10) * LEASE_MARGIN)


def test_more_steps_take_a_longer_lease():
    method = replace(fake("slow"), gpu_seconds=by_area(100), steps=50)
    photo = Image.new("RGB", (128, 128))
    assert lease_seconds(method, photo, 0, {"steps": 100}) == round(200 * LEASE_MARGIN)


def test_a_lease_is_never_too_short_to_wake_up_and_never_taken_for_nothing():
    photo = Image.new("RGB", (8, 8))
    assert (
        lease_seconds(replace(fake("quick"), gpu_seconds=by_area(1)), photo, 0, {}) == LEASE_SECONDS
    )
    assert lease_seconds(replace(fake("cpu"), gpu_seconds=no_gpu), photo, 0, {}) == 0
    assert lease_seconds(fake("unknown"), photo, 0, {}) == round(UNKNOWN_SECONDS * LEASE_MARGIN)


def test_the_lease_takes_what_the_leased_function_takes(bench):
    parameters = list(inspect.signature(bench._restore).parameters)
    assert list(inspect.signature(lease_seconds).parameters) == parameters


def test_a_method_that_needs_no_gpu_runs_without_a_lease(monkeypatch):
    leased = []

    def lease(function, duration):
        def call(*args):
            leased.append((args[0].name, duration(*args)))
            return function(*args)

        return call

    monkeypatch.setattr(compare_tab, "lease", lease)
    quick, slow = replace(fake("quick"), gpu_seconds=no_gpu), fake("slow")
    bench = Bench(by_name(quick, slow), FakeShelf())
    photo = Image.new("RGB", (8, 8))
    for method in (quick, slow):
        assert bench.restore(method, photo, 0, {})[0].method == method.name
    assert leased == [("slow", round(UNKNOWN_SECONDS * LEASE_MARGIN))]


# A run


def test_each_method_appears_as_it_finishes(photo, bench, tmp_path):
    steps = list(compare(bench, ask(photo, bench), tmp_path))
    assert [[entry.state for entry in step] for step in steps] == [
        ["running", "waiting"],
        ["done", "waiting"],
        ["done", "running"],
        ["done", "done"],
    ]


def test_results_are_the_methods_pixels_losslessly(photo, bench, tmp_path):
    plain, inverted = list(compare(bench, ask(photo, bench), tmp_path))[-1]
    with Image.open(plain.file) as one, Image.open(inverted.file) as two:
        assert one.format == "PNG"
        assert one.tobytes() == enlarged(photo)
        assert two.tobytes() == enlarged(photo, ImageOps.invert)
    assert inverted.file.name == "my_cat_inverted.png"
    assert (inverted.seconds, inverted.parameters) == (0.25, 1000)
    assert inverted.card.seed == 0


def test_methods_run_in_the_benchs_order_and_once_each(photo, bench):
    job = ask(photo, bench, ["mirrored", "plain", "mirrored"])
    assert [method.name for method in job.methods] == ["plain", "mirrored"]


def test_the_seed_reaches_the_methods(photo, bench, tmp_path):
    entries = list(compare(bench, ask(photo, bench, seed=7.0), tmp_path))[-1]
    assert [entry.card.seed for entry in entries] == [7, 7]


@pytest.mark.parametrize("error", [MethodError("Too dark for it"), MethodUnavailableError("no")])
def test_a_failure_is_one_methods_sentence_and_the_others_go_on(photo, tmp_path, error):
    bench = Bench(by_name(fake("broken", error=error), fake("plain")), FakeShelf())
    broken, plain = list(compare(bench, ask(photo, bench, bench.methods), tmp_path))[-1]
    assert (broken.state, plain.state) == ("failed", "done")
    assert broken.problem.startswith(str(error)[0].upper())
    assert broken.problem.endswith(".")


def test_the_unexpected_shows_a_reference_and_nothing_else(photo, tmp_path, caplog):
    bench = Bench(by_name(fake("broken", error=ZeroDivisionError("secret"))), FakeShelf())
    (broken,) = list(compare(bench, ask(photo, bench, ["broken"]), tmp_path))[-1]
    assert "secret" not in broken.problem
    assert "reference" in broken.problem
    assert "secret" in caplog.text


def test_a_picture_of_the_wrong_size_is_a_failure(photo, tmp_path):
    bench = Bench(by_name(fake("small", lambda image: image.resize((3, 3)))), FakeShelf())
    (entry,) = list(compare(bench, ask(photo, bench, ["small"]), tmp_path))[-1]
    assert "16 × 12 in RGB was promised" in entry.problem


def test_the_method_is_let_go_between_two_steps(photo, bench, tmp_path):
    shelf = FakeShelf()
    bench = Bench(three(), shelf)
    for _ in compare(bench, ask(photo, bench), tmp_path):
        assert shelf.inside == 0


def test_closing_a_run_starts_no_further_method(photo, tmp_path):
    methods = three()
    bench = Bench(methods, FakeShelf())
    stream = compare(bench, ask(photo, bench, methods), tmp_path)
    next(stream), next(stream)
    stream.close()
    assert [method.load("cpu").runs for method in methods.values()] == [1, 0, 0]


def test_runs_side_by_side_do_not_mix(tmp_path, bench):
    jobs = []
    for level in (10, 200):
        folder = tmp_path / str(level)
        folder.mkdir()
        path = folder / "photo.png"
        Image.new("RGB", (4, 4), (level,) * 3).save(path)
        jobs.append((level, compare(bench, ask(path, bench), folder)))
    for _ in range(4):
        last = [(level, next(stream)) for level, stream in jobs]
    for level, entries in last:
        with Image.open(entries[1].file) as picture:
            assert picture.getpixel((0, 0)) == (255 - level,) * 3


# Before a run


def test_no_photo_is_a_sentence(bench):
    with pytest.raises(PhotoError, match="no photo yet"):
        start(None, ["plain"], 0, bench, Settings())


def test_a_large_photo_is_refused_with_its_numbers(photo, bench):
    with pytest.raises(PhotoError, match=r"8 × 6; at 2× this demo restores up to 40 pixels"):
        ask(photo, bench, limits=Settings(max_pixels=10))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "1 to 7 methods; 0"),
        ([str(n) for n in range(8)], "1 to 7 methods; 8"),
        (["plain", "<b>"], "no method called '<b>'"),
        ("plain", "list of names"),
        ([["plain"]], "list of names"),
        (None, "list of names"),
    ],
)
def test_wrong_methods_are_named(photo, bench, names, said):
    with pytest.raises(CompareError, match=said):
        start(str(photo), names, 0, bench, Settings())


@pytest.mark.parametrize("seed", [-1, 2**31, 1.5, "1", None, True, math.nan, math.inf, [1]])
def test_wrong_seeds_are_named(photo, bench, seed):
    with pytest.raises(CompareError, match="seed"):
        ask(photo, bench, seed=seed)


def test_a_method_that_cannot_run_says_why(photo):
    bench = Bench(by_name(fake("far", reason="Far needs a GPU.")), FakeShelf())
    with pytest.raises(MethodUnavailableError, match="Far needs a GPU"):
        ask(photo, bench, ["far"])


def test_these_errors_are_shown_as_they_are():
    from ui.boundary import shown

    for error in (
        CompareError("Choose two"),
        MethodError("too dark"),
        MethodUnavailableError("no"),
    ):
        assert isinstance(shown(error), gr.Error)
        assert "broke" not in str(shown(error).message)


# Settings


def set_to(photo, bench, values):
    return start(str(photo), [*bench.methods], 0, bench, Settings(), values)


def test_settings_reach_the_method_they_are_of(photo, tmp_path):
    bench = Bench(by_name(speaking("one"), speaking("two"), fake("plain")), FakeShelf())
    asked = set_to(photo, bench, {"one": {"steps": 20, "colours": "adain"}, "two": {"tags": ""}})
    assert [entry.state for entry in list(compare(bench, asked, tmp_path))[-1]] == ["done"] * 3
    given = {name: method.load("cpu").options for name, method in bench.methods.items()}
    assert given == {"one": {"steps": 20}, "two": None, "plain": None}


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ([], CompareError, "values by name"),
        ({"speaking": 3}, CompareError, "values by name"),
        ({"<b>": {}}, CompareError, "settings of '<b>', which is no method"),
        ({"speaking": {"steps": 0}}, SettingError, "Steps is 1 to 100"),
        ({"speaking": {"stepz": 5}}, SettingError, "no setting 'stepz'"),
    ],
)
def test_wrong_settings_are_named(photo, values, error, said):
    with pytest.raises(error, match=said):
        set_to(photo, Bench(by_name(speaking()), FakeShelf()), values)


# What is shown


def test_what_a_method_saw_and_was_told_is_shown(photo, tmp_path):
    bench = Bench(by_name(speaking(), fake("plain")), FakeShelf())
    entries = list(compare(bench, ask(photo, bench, bench.methods), tmp_path))[-1]
    text = compare_tab.said(entries)
    assert "<dt>The speaking</dt>" in text
    assert "Saw: <q>a &lt;b&gt;dog&lt;/b&gt;</q>." in text
    assert "Prompt: <q>a &lt;b&gt;dog&lt;/b&gt;, sharp</q>." in text
    assert "plain" not in text
    assert compare_tab.said(entries[1:]) == ""


def test_a_card_shows_licence_and_source_of_a_method_that_cannot_run_too():
    text = compare_tab.about(speaking(missing=lambda: "Speaking needs a file."))
    assert "<dt>Licence</dt><dd>Free &lt;for&gt; all</dd>" in text
    assert "<dt>Source</dt><dd>Somebody, 2024</dd>" in text
    assert "Speaking needs a file." in text
    assert "Prompt" not in text


def test_every_method_of_ours_has_a_card_with_its_licence():
    for method in registry.discover().values():
        assert f"<dt>Licence</dt><dd>{html.escape(method.licence)}" in compare_tab.about(method)


def test_a_scene_has_the_photo_first_and_a_place_for_every_method(photo, bench, tmp_path):
    job = ask(photo, bench)
    steps = list(compare(bench, job, tmp_path))
    first = payload(compare_tab.scene(job, steps[1], "run"))
    assert [one["name"] for one in first["pictures"]] == ["Input", "The plain", "The inverted"]
    assert [bool(one["file"]) for one in first["pictures"]] == [True, True, False]
    assert [one["pending"] for one in first["pictures"]] == [False, False, True]
    assert (first["width"], first["height"]) == (16, 12)
    last = payload(compare_tab.scene(job, steps[-1], "run"))
    assert last["key"] == first["key"]
    assert (last["width"], last["height"]) == (16, 12)
    assert last["pictures"][2]["facts"] == ["250 ms", "1.0 k parameters"]


def test_an_own_photo_cannot_be_linked(photo, bench, tmp_path):
    job = ask(photo, bench)
    steps = list(compare(bench, job, tmp_path))
    assert not compare_tab.scene(job, steps[-1], "run").linked


def test_the_status_says_who_is_at_work_and_what_failed():
    methods = list(three().values())
    entries = (Entry(methods[0], "done", seconds=1), Entry(methods[1]), Entry(methods[2]))
    assert "The inverted is at work, 2 of 3." in compare_tab.status(entries)
    entries = (
        Entry(methods[0], "done", seconds=1),
        Entry(methods[1], "failed", problem="<i>No.</i>"),
    )
    text = compare_tab.status(entries)
    assert "1 of 2 methods done in 1.0 s." in text
    assert "The inverted: &lt;i&gt;No." in text
    assert "<i>" not in text


def test_reasons_are_said_once_and_escaped():
    methods = by_name(
        fake("a", reason="Needs <x>."), fake("b", reason="Needs <x>.", variant_of="a"), fake("c")
    )
    text = compare_tab.unavailable(methods)
    assert text.count("Needs &lt;x&gt;.") == 1
    assert compare_tab.unavailable(by_name(fake("c"))) == ""


def test_settings_of_a_model_are_offered_apart():
    methods = by_name(fake("a"), fake("a-1", variant_of="a"), fake("far", reason="No."))
    main, variants = compare_tab.offered(methods)
    assert ([m.name for m in main], [m.name for m in variants]) == (["a"], ["a-1"])


@pytest.mark.parametrize(
    ("fragment", "key"),
    [
        ("#scene=gallery%2Fcat&mode=swipe", "gallery/cat"),
        ("#mode=swipe&scene=gallery%2Fcat", "gallery/cat"),
        ("#scene=gallery%2Fdog", None),
        ("#", None),
        ("", None),
        (None, None),
        (["#scene=gallery%2Fcat"], None),
        ("#scene=%ff%00&&&==", None),
    ],
)
def test_only_links_to_the_gallery_open_something(fragment, key):
    assert asked_for(fragment, {"gallery/cat": None}) == key


def test_programs_are_told_states_files_and_cards(photo, tmp_path):
    bench = Bench(by_name(fake("broken", error=MethodError("no")), fake("plain")), FakeShelf())
    entries = list(compare(bench, ask(photo, bench, bench.methods), tmp_path))[-1]
    progress, files, cards = plain(entries)
    assert progress["broken"]["state"] == "failed"
    assert progress["plain"] == {
        "state": "done", "title": "The plain", "seconds": 0.25, "problem": "",
    }  # fmt: skip
    assert [f.rpartition("_")[2] for f in files] == ["plain.png"]
    assert list(cards) == ["plain"]
