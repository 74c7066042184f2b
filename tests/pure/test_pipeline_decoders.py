"""What the pipeline does with decoders: batches of tiles, drafts, rerolls, stops, memory."""

import gc
import resource
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import pure.pipeline
from pure.decode import PARALLEL, PLAIN, ROWS, DecoderConfig
from pure.engine import Engine
from pure.pipeline import Done, RestoreError, RestoreSettings, Row

UNGUIDED = RestoreSettings(guidance="none", seed=3)


def picture(width, height, seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(one, other):
    return (
        all(
            np.array_equal(getattr(one, name), getattr(other, name))
            for name in ("codes", "entropy", "k")
        )
        and one.image.tobytes() == other.image.tobytes()
    )


def one_by_one(tiles, most):
    """Tiles in raster order, alone: the order nobody can doubt."""
    yield from ([tile] for tile in tiles)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (20, 9)])
def test_tiles_decoders_and_drafts_change_nothing_but_the_time(pipeline, monkeypatch, size):
    photo = picture(*size)
    with monkeypatch.context() as patch:
        patch.setattr(pure.pipeline, "_waves", one_by_one)
        expected = pipeline.restore(photo, UNGUIDED, decoder=PLAIN)
    other = picture(size[0] * 2, size[1] * 2, seed=9)
    for decoder, draft in (
        (DecoderConfig("plain", batch=4), None),
        (PARALLEL, None),
        (PARALLEL, expected),
        (DecoderConfig("parallel", 5, 2), other),
    ):
        assert same(pipeline.restore(photo, UNGUIDED, decoder=decoder, draft=draft), expected)


def test_tiles_in_one_pass_save_passes(pipeline):
    passes = {
        batch: pipeline.restore(
            picture(24, 24), UNGUIDED, decoder=DecoderConfig("plain", batch=batch)
        ).passes
        for batch in (1, 4)
    }
    assert passes[4] < 0.85 * passes[1]


@pytest.mark.parametrize("decoder", [PLAIN, PARALLEL, ROWS], ids=lambda decoder: decoder.mode)
def test_photos_and_seeds_restored_together_are_those_restored_alone(pipeline, decoder):
    """Texts of their own, several tiles, one photo twice: everything but the time is the same."""
    one, two = picture(8, 8), picture(20, 9, seed=1)
    jobs = [
        (one, RestoreSettings(seed=3)),
        (two, UNGUIDED),
        (one, RestoreSettings(seed=4)),
        (one, RestoreSettings(seed=5, guidance="understanding")),
    ]
    alone = [pipeline.restore(*job, decoder=decoder) for job in jobs]
    together = pipeline.restore_together(jobs, decoder=decoder)
    for a, b in zip(together, alone, strict=True):
        assert same(a, b)
        assert (a.belief, a.steps, a.settings) == (b.belief, b.steps, b.settings)


def test_seeds_restored_together_share_reading_and_passes(pipeline):
    jobs = [(picture(8, 8), replace(UNGUIDED, seed=seed)) for seed in range(4)]
    pipeline.forget()
    one = pipeline.restore(*jobs[0], decoder=PLAIN).passes
    pipeline.forget()
    assert pipeline.restore_together(jobs, decoder=PLAIN)[-1].passes == one


def test_nothing_restored_together_is_nothing(pipeline):
    assert pipeline.restore_together([]) == []


def test_other_sampling_cannot_be_restored_together(pipeline):
    jobs = [(picture(8, 8), replace(UNGUIDED, sampling=s)) for s in ("top1", "dynamic")]
    with pytest.raises(RestoreError, match="share one sampling"):
        pipeline.restore_together(jobs)


def test_a_better_draft_saves_passes(pipeline):
    plain = pipeline.restore(picture(16, 16), UNGUIDED)
    again = pipeline.restore(picture(16, 16), UNGUIDED, draft=plain)
    assert again.passes < plain.passes


def test_the_same_photo_is_read_once(pipeline):
    photo = picture(8, 8)
    first = pipeline.restore(photo, UNGUIDED, decoder=PLAIN)
    again = pipeline.restore(photo, UNGUIDED, decoder=PLAIN)
    assert same(first, again)
    assert again.passes == first.passes - 1
    pipeline.forget()
    assert pipeline.restore(photo, UNGUIDED, decoder=PLAIN).passes == first.passes


@pytest.mark.parametrize("decoder", [PLAIN, PARALLEL, ROWS], ids=lambda decoder: decoder.mode)
def test_a_stop_ends_the_stream_within_one_pass_and_frees_the_caches(
    pipeline, decoder, monkeypatch
):
    stopped, made = [], []
    cache = Engine.cache

    def remembered(self, capacity):
        result = cache(self, capacity)
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(Engine, "cache", remembered)
    before = pipeline.engine.passes
    stream = pipeline.stream(picture(16, 16), UNGUIDED, decoder=decoder, stop=lambda: bool(stopped))
    after = 0
    for event in stream:
        assert not isinstance(event, Done)
        if isinstance(event, Row) and not stopped:
            stopped.append(True)
            after = pipeline.engine.passes
    assert before < after
    assert pipeline.engine.passes == after
    del stream, event
    gc.collect()
    assert not [cache for cache in made if cache() is not None]


def test_a_stop_is_heard_while_the_text_is_written(pipeline):
    before = pipeline.engine.passes
    calls = iter([False, False, True])
    events = list(pipeline.stream(picture(8, 8), stop=lambda: next(calls, True)))
    assert not any(isinstance(event, Done) for event in events)
    assert pipeline.engine.passes - before <= 4


def test_the_first_preview_comes_with_the_first_row(pipeline):
    rows = [
        event
        for event in pipeline.stream(picture(16, 16), UNGUIDED, preview_seconds=60)
        if isinstance(event, Row)
    ]
    assert [row.preview is not None for row in rows] == [True] + [False] * (len(rows) - 1)
    assert rows[0].done <= 0.15


def test_a_reroll_with_the_same_seed_changes_nothing(pipeline):
    photo = picture(16, 16)
    output = pipeline.restore(photo, UNGUIDED)
    *_, done = pipeline.reroll(photo, output, (16, 16, 48, 40), UNGUIDED)
    assert same(done.output, output)


@pytest.mark.parametrize("keep_below", [True, False])
def test_a_reroll_changes_its_box_and_what_may_answer_to_it(pipeline, keep_below):
    photo = picture(16, 16)
    output = pipeline.restore(photo, UNGUIDED)
    settings = replace(UNGUIDED, seed=99)
    *_, done = pipeline.reroll(photo, output, (16, 16, 48, 40), settings, keep_below=keep_below)
    changed = done.output.codes != output.codes
    assert changed[2:5, 2:6].any()
    outside = changed.copy()
    outside[2:5, 2:6] = False
    assert outside[5:].any() == (not keep_below)
    assert not outside[:5].any()


def test_a_reroll_of_a_photo_with_padding_keeps_its_size(pipeline):
    photo = picture(9, 11)
    output = pipeline.restore(photo, UNGUIDED)
    *_, done = pipeline.reroll(photo, output, (0, 0, 8, 8), replace(UNGUIDED, seed=1))
    assert done.output.codes.shape == output.codes.shape
    changed = done.output.codes != output.codes
    assert changed.sum() <= 1


def test_boxes_and_drafts_that_do_not_fit_are_refused_with_a_sentence(pipeline):
    photo = picture(8, 8)
    output = pipeline.restore(photo, UNGUIDED)
    with pytest.raises(RestoreError, match="holds nothing of the result"):
        next(pipeline.reroll(photo, output, (40, 0, 60, 10), UNGUIDED))
    with pytest.raises(RestoreError, match=r"has 4 × 4 codes; this photo at this scale has 8 × 4"):
        next(pipeline.stream(picture(8, 16), UNGUIDED, draft=output))
    with pytest.raises(RestoreError, match="It needs the same shape"):
        next(pipeline.stream(photo, UNGUIDED, draft=picture(30, 20)))


def test_an_approximate_picture_is_labelled(pipeline):
    quick = pipeline.restore(picture(8, 8), UNGUIDED, decoder=ROWS)
    assert quick.approximate
    assert not pipeline.restore(picture(8, 8), UNGUIDED).approximate


def test_parallel_is_the_default_only_where_it_is_exact(pipeline, monkeypatch):
    assert pipeline.decoder == PARALLEL
    monkeypatch.setattr(Engine, "exact", False)
    assert pipeline.decoder == PLAIN


def test_memory_does_not_grow_over_50_restorations(pipeline):
    photo = picture(8, 8)

    def live():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    for seed in range(50):
        pipeline.restore(photo, replace(UNGUIDED, seed=seed))
        if seed == 4:
            before, peak = live(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert live() <= before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 20_000  # KiB
