import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import pure.pipeline
from imaging import colour, convert
from pure.belief import Belief, BeliefError
from pure.decode import PLAIN, Conversation
from pure.engine import Engine
from pure.grammar import Grid, Phase
from pure.picture import Step
from pure.pipeline import (
    LABEL_TILES,
    MAX_SEED,
    PREVIEW_SHARE,
    Done,
    Perceived,
    PurePipeline,
    RestoreError,
    RestoreSettings,
    Row,
    Understood,
)
from pure.sampling import SamplingConfig

LABEL, CAPTION = "Medium blur.", "The image features a house."
GIVEN = {"label": LABEL, "caption": CAPTION}
GREEDY = SamplingConfig(mode="top1")


def picture(width, height, seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(output):
    return np.asarray(output.image)


class Recorded(Conversation):
    """Remembers what pictures were written under, and what came out."""

    pictures: list["Recorded"]

    def picture(self, text, config, **options):
        self.text, self.options, self.steps = list(text), options, []
        type(self).pictures.append(self)
        picture = super().picture(text, config, **options)
        told = picture.told
        picture.told = lambda: self.steps.extend(told()) or iter(self.steps[self.last() :])
        self.at = 0
        return picture

    def last(self):
        """Where the steps begin that were not handed on yet."""
        before, self.at = self.at, len(self.steps)
        return before


@pytest.fixture
def recorded(monkeypatch):
    """The conversations that wrote a picture, in the order they began."""
    monkeypatch.setattr(pure.pipeline, "Conversation", Recorded)
    Recorded.pictures = []
    return Recorded.pictures


@pytest.fixture
def passes(monkeypatch):
    """One entry per run of the transformer."""
    runs = []
    hidden = Engine.hidden

    def counted(self, *arguments, **options):
        runs.append(1)
        return hidden(self, *arguments, **options)

    monkeypatch.setattr(Engine, "hidden", counted)
    return runs


def test_the_same_seed_gives_the_same_pixels(pipeline):
    settings = RestoreSettings(scale=2, seed=3)
    first, second = (pipeline.restore(picture(16, 12), settings) for _ in range(2))
    assert np.array_equal(pixels(first), pixels(second))
    assert np.array_equal(first.codes, second.codes)
    assert first.belief == second.belief


def test_another_seed_gives_other_pixels(pipeline):
    first, second = (
        pipeline.restore(picture(16, 16), RestoreSettings(scale=2, seed=seed)) for seed in (0, 1)
    )
    assert not np.array_equal(first.codes, second.codes)
    assert not np.array_equal(pixels(first), pixels(second))
    assert first.belief == second.belief  # the text is no matter of chance


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (17, 40), (33, 33)])
def test_the_result_is_scale_times_the_photo(pipeline, size):
    output = pipeline.restore(picture(*size), RestoreSettings(guidance="none"))
    assert output.image.size == (4 * size[0], 4 * size[1])
    assert output.image.mode == "RGB"


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_other_scales_are_kept_too(pipeline, scale):
    output = pipeline.restore(picture(11, 7), RestoreSettings(scale=scale, guidance="none"))
    assert output.image.size == (11 * scale, 7 * scale)


@pytest.mark.parametrize("size", [(1, 1), (17, 40), (16, 16)])
def test_maps_cover_the_result_and_are_complete(pipeline, size):
    output = pipeline.restore(picture(*size), RestoreSettings(guidance="none"))
    expected = (math.ceil(size[1] * 4 / 8), math.ceil(size[0] * 4 / 8))
    assert output.codes.shape == output.entropy.shape == output.k.shape == expected
    assert np.isfinite(output.entropy).all()
    assert (output.entropy >= -1e-6).all()
    assert (output.entropy <= math.log(64) + 1e-5).all()
    assert (output.k >= 14).all()  # the least the published rule gives
    assert ((output.codes >= 0) & (output.codes < 64)).all()


def test_events_come_in_order(pipeline):
    events = list(pipeline.stream(picture(16, 16), RestoreSettings(**GIVEN)))
    tiles, rows = pipeline.tiles((16, 16), 4), 4
    kinds = [type(event) for event in events]
    assert kinds == [Perceived, Understood, *[Row] * (tiles * rows), Done]


def test_rows_tell_how_far_it_is(pipeline):
    settings = RestoreSettings(guidance="none")
    rows = [e for e in pipeline.stream(picture(16, 16), settings) if isinstance(e, Row)]
    done = [row.done for row in rows]
    assert done == sorted(done)
    assert done[0] == pytest.approx(4 / 64)
    assert done[-1] == 1
    for row in rows:
        decided = np.isfinite(row.entropy)
        assert decided.mean() == pytest.approx(row.done)
        assert np.array_equal(decided, row.k > 0)


def test_a_row_is_not_changed_by_later_ones(pipeline):
    stream = pipeline.stream(picture(8, 8), RestoreSettings(guidance="none"))
    first = next(event for event in stream if isinstance(event, Row))
    before = first.entropy.copy(), first.k.copy()
    list(stream)
    assert np.array_equal(first.entropy, before[0], equal_nan=True)
    assert np.array_equal(first.k, before[1])


def test_previews_have_the_size_of_the_result(pipeline):
    settings = RestoreSettings(guidance="none")
    events = list(pipeline.stream(picture(13, 9), settings, preview_seconds=0))
    *previews, at_the_end = [event.preview for event in events if isinstance(event, Row)]
    assert all(preview.size == (52, 36) for preview in previews)
    assert len({preview.tobytes() for preview in previews}) > 1
    assert at_the_end is None  # the result follows


def test_a_preview_shows_the_tiles_that_were_finished_before_it(pipeline, monkeypatch):
    """Those too that were finished while no preview was due."""
    now = [0.0]
    monkeypatch.setattr(pure.pipeline.time, "perf_counter", lambda: now[0])
    side, factor = pipeline.checkpoint.native, pipeline.checkpoint.vq.factor
    settings = RestoreSettings(guidance="none", colour_fix="none", scale=1)
    previews = []
    for event in pipeline.stream(picture(2 * side, side), settings, preview_seconds=50):
        if isinstance(event, Row) and np.isfinite(event.entropy[:, : side // factor]).all():
            now[0] = 100.0  # from the second tile on
        if isinstance(event, Row) and event.preview is not None:
            previews.append(event.preview)
    first = torch.from_numpy(event.output.codes)[:, : side // factor]
    expected = pipeline.checkpoint.vq.decode_image(first)
    alone = (0, 0, side // 2, side)  # where no other tile reaches
    assert len(previews) == 2
    assert np.array_equal(*(np.asarray(shown.crop(alone)) for shown in (previews[1], expected)))


@pytest.mark.parametrize("decoding", [0.0, 0.5, 20.0])
def test_previews_take_a_share_of_the_time_at_most(pipeline, monkeypatch, decoding):
    """On a clock where a row takes 2 s and previews are wanted every 2."""
    now = began = 0.0
    monkeypatch.setattr(pure.pipeline.time, "perf_counter", lambda: now)
    decode_image = type(pipeline.checkpoint.vq).decode_image

    def slowly(vq, codes):
        nonlocal now
        now += decoding
        return decode_image(vq, codes)

    monkeypatch.setattr(type(pipeline.checkpoint.vq), "decode_image", slowly)
    settings = RestoreSettings(guidance="none")
    rows, previews = 0, []  # when each preview was begun, and how long it took
    for event in pipeline.stream(picture(16, 16), settings, preview_seconds=2, decoder=PLAIN):
        if isinstance(event, Row):
            rows += 1
            if event.preview is not None:
                previews.append((began, now - began))
            now += 2
        began = now
    assert (len(previews) == rows - 1) == (decoding < 1)
    for (begun, took), (next_begun, _) in pairwise(previews):
        assert took <= PREVIEW_SHARE * (next_begun - begun)


def test_no_preview_is_decoded_that_is_not_shown(pipeline, monkeypatch):
    decoded = []
    decode_image = type(pipeline.checkpoint.vq).decode_image
    monkeypatch.setattr(
        type(pipeline.checkpoint.vq),
        "decode_image",
        lambda vq, codes: decoded.append(1) or decode_image(vq, codes),
    )
    settings = RestoreSettings(guidance="none")
    events = list(pipeline.stream(picture(8, 8), settings, preview_seconds=60))
    shown = sum(event.preview is not None for event in events if isinstance(event, Row))
    assert (shown, len(decoded)) == (1, 2)  # and the result


def test_no_previews_are_made_where_none_are_wanted(pipeline):
    settings = RestoreSettings(guidance="none")
    events = list(pipeline.stream(picture(8, 8), settings, preview_seconds=None))
    assert all(event.preview is None for event in events if isinstance(event, Row))


def test_previews_change_nothing(pipeline):
    settings = RestoreSettings(guidance="none")
    *_, watched = pipeline.stream(picture(16, 8), settings, preview_seconds=0)
    assert np.array_equal(
        pixels(watched.output), pixels(pipeline.restore(picture(16, 8), settings))
    )


def test_closing_the_stream_stops_the_work(pipeline, passes):
    settings = RestoreSettings(guidance="none")
    stream = pipeline.stream(picture(16, 16), settings, decoder=PLAIN)
    while not isinstance(next(stream), Row):
        pass
    stream.close()
    assert len(passes) == 1 + 4  # prompt and one row
    list(pipeline.stream(picture(16, 16), settings, decoder=PLAIN))
    assert len(passes) > 5 + 64


def test_nothing_runs_before_the_first_event_is_asked_for(pipeline, passes):
    pipeline.stream(picture(16, 16))
    assert not passes


def test_a_photo_of_one_tile_is_the_published_recipe(pipeline, checkpoint):
    """Enlarge, encode, prompt, text, picture, decode, colour: written out once more."""
    photo = picture(8, 8, seed=5)
    lq = photo.resize((32, 32), Image.Resampling.BICUBIC)
    prompt = checkpoint.grammar.prompt(
        checkpoint.text.instruction(), checkpoint.vq.encode_image(lq)
    )
    engine = Engine(checkpoint.model, checkpoint.grammar.vocab.code_ids)
    conversation = Conversation(engine, checkpoint.grammar, prompt, Grid(4, 4), text_limit=16)
    text = [step.id for step in conversation.write_text()]
    steps = conversation.restore(text, SamplingConfig(), seed=7)
    codes = torch.tensor([step.code for step in steps if step.code is not None]).view(4, 4)
    expected = colour.wavelet(checkpoint.vq.decode_image(codes), lq)
    output = pipeline.restore(photo, RestoreSettings(seed=7))
    assert output.belief.text == checkpoint.text.decode(text)
    assert np.array_equal(output.codes, codes.numpy())
    assert np.array_equal(pixels(output), np.asarray(expected))


@pytest.mark.parametrize("colour_fix", ["none", "wavelet", "adain"])
def test_the_colour_fix_is_the_one_asked_for(pipeline, checkpoint, colour_fix):
    photo = picture(8, 8)
    output = pipeline.restore(photo, RestoreSettings(guidance="none", colour_fix=colour_fix))
    decoded = checkpoint.vq.decode_image(torch.from_numpy(output.codes))
    fixes = {"none": lambda a, _: a, "wavelet": colour.wavelet, "adain": colour.adain}
    expected = fixes[colour_fix](decoded, convert.resize(photo, (32, 32)))
    assert np.array_equal(pixels(output), np.asarray(expected))


def test_the_colour_fix_does_not_touch_the_codes(pipeline):
    outputs = [
        pipeline.restore(picture(8, 8), RestoreSettings(guidance="none", colour_fix=fix))
        for fix in ("none", "wavelet", "adain")
    ]
    assert all(np.array_equal(outputs[0].codes, output.codes) for output in outputs)


def in_place(recorded):
    """Tiles from the top left, whatever order they were written in."""
    return sorted(recorded, key=lambda tile: int(tile.options["positions"][0, 0]))


def test_every_code_is_decided_once_and_neighbours_keep_it(pipeline, recorded):
    output = pipeline.restore(picture(16, 16), RestoreSettings(guidance="none"))
    assert len(recorded) == pipeline.tiles((16, 16), 4) == 9  # 32 px at 0, 16 and 32
    decided = 0
    for tile, (top, left) in zip(
        in_place(recorded), [(r, c) for r in (0, 2, 4) for c in (0, 2, 4)], strict=True
    ):
        cells = [step for step in tile.steps if step.phase is Phase.CODE]
        codes = torch.tensor([step.code for step in cells]).view(4, 4)
        assert np.array_equal(codes.numpy(), output.codes[top : top + 4, left : left + 4])
        drawn = torch.tensor([step.choice is not None for step in cells]).view(4, 4)
        assert torch.equal(drawn, tile.options["known"] < 0)
        decided += int(drawn.sum())
    assert decided == 64


def test_tiles_share_at_least_a_quarter(pipeline, recorded):
    pipeline.restore(picture(40, 8), RestoreSettings(guidance="none", scale=2))
    later = [tile.options["known"] for tile in recorded[1:]]
    assert later
    assert all(int((known[:, 0] >= 0).sum()) == 4 for known in later)


def test_noise_is_keyed_by_the_place_in_the_photo(pipeline, recorded):
    pipeline.restore(picture(16, 16), RestoreSettings(guidance="none"))
    whole = torch.arange(64).view(8, 8)
    expected = [whole[r : r + 4, c : c + 4] for r in (0, 2, 4) for c in (0, 2, 4)]
    for tile, positions in zip(in_place(recorded), expected, strict=True):
        assert torch.equal(tile.options["positions"], positions)


def texts(recorded):
    """The ids before the pictures, which must be the same for all tiles."""
    first, *rest = [tile.text for tile in recorded]
    assert all(text == first for text in rest)
    return first


def test_without_guidance_nothing_stands_before_the_picture(pipeline, recorded):
    output = pipeline.restore(picture(16, 8), RestoreSettings(guidance="none", **GIVEN))
    assert texts(recorded) == []
    assert output.belief == Belief()


@pytest.mark.parametrize(
    ("guidance", "label", "caption"),
    [("perception", LABEL, ""), ("understanding", "", CAPTION)],
)
def test_partial_guidance_leaves_its_part(pipeline, checkpoint, recorded, guidance, label, caption):
    output = pipeline.restore(picture(16, 8), RestoreSettings(guidance=guidance, **GIVEN))
    assert output.belief == Belief(label, caption)
    assert texts(recorded) == checkpoint.text.answer(label or caption)


def test_full_guidance_shows_label_and_caption(pipeline, checkpoint, recorded):
    output = pipeline.restore(picture(16, 8), RestoreSettings(**GIVEN))
    assert output.belief == Belief(LABEL, CAPTION)
    assert checkpoint.text.decode(texts(recorded)).replace(" ", "") == f"{LABEL}{CAPTION}".replace(
        " ", ""
    )


def test_a_given_caption_is_one_space_away_from_the_label(pipeline, checkpoint, recorded):
    pipeline.restore(picture(8, 8), RestoreSettings(**GIVEN))
    assert texts(recorded) == checkpoint.text.answer(f"{LABEL} {CAPTION}")


def test_guidance_changes_the_picture_only_through_the_text(pipeline):
    """Same seed and noise: what stands before the picture makes the difference."""
    full, none, again = (
        pipeline.restore(picture(8, 8), RestoreSettings(guidance=guidance, **GIVEN))
        for guidance in ("full", "none", "full")
    )
    assert np.array_equal(full.codes, again.codes)
    assert not np.array_equal(full.codes, none.codes)


def test_the_own_caption_follows_a_given_label(pipeline, checkpoint, recorded):
    output = pipeline.restore(picture(8, 8), RestoreSettings(label=LABEL))
    ids = checkpoint.text.answer(LABEL)
    assert output.belief.label == LABEL
    assert texts(recorded)[: len(ids)] == ids
    written = [step.id for step in recorded[0].write_text(given=ids)]
    assert texts(recorded) == written


def test_a_given_label_need_not_end_with_a_full_stop(pipeline, checkpoint, recorded):
    pipeline.restore(picture(8, 8), RestoreSettings(label="Medium blur"))
    ids = checkpoint.text.answer("Medium blur")
    written = [step.id for step in recorded[0].write_text(given=ids)]
    assert len(written) > len(ids)
    assert texts(recorded) == written


def test_perception_asks_for_no_caption(pipeline, monkeypatch):
    asked = []

    class Asked(Conversation):
        def write_text(self, **options):
            asked.append(options["label_only"])
            return super().write_text(**options)

    monkeypatch.setattr(pure.pipeline, "Conversation", Asked)
    pipeline.restore(picture(8, 8), RestoreSettings(guidance="perception"))
    assert asked == [True]


def test_given_texts_are_not_asked_for(pipeline, monkeypatch):
    monkeypatch.setattr(Conversation, "write_text", None)
    pipeline.restore(picture(16, 8), RestoreSettings(**GIVEN))


def test_given_texts_are_stripped(pipeline):
    settings = RestoreSettings(label=f"  {LABEL}\n", caption=f"\t{CAPTION} ")
    assert pipeline.restore(picture(8, 8), settings).belief == Belief(LABEL, CAPTION)


def test_empty_given_texts_are_none(pipeline, recorded):
    pipeline.restore(picture(8, 8), RestoreSettings(label="", caption=" "))
    assert texts(recorded) == []


def scripted(checkpoint, labels):
    """A conversation class whose labels are given, one per tile that is asked."""
    remaining = list(labels)

    class Scripted(Recorded):
        def write_text(self, *, given=(), label_only=False):
            if label_only:
                for i in checkpoint.text.answer(remaining.pop(0)):
                    yield Step(Phase.LABEL, i)

    return Scripted, remaining


@pytest.mark.parametrize(
    ("labels", "median"),
    [
        (
            ["Small blur, large noise."] * 4 + ["Large blur, large noise."] * 5,
            "Large blur, large noise.",
        ),
        (
            ["Small blur, small noise."] * 3
            + ["Medium blur, large noise."] * 3
            + ["Large blur, small noise."] * 3,
            "Medium blur, small noise.",
        ),
        (
            ["A cat."] * 7 + ["Large blur, small noise.", "Small blur, small noise."],
            "Large blur, small noise.",
        ),
    ],
)
def test_the_label_of_a_large_photo_is_the_median_of_its_tiles(
    pipeline, checkpoint, recorded, monkeypatch, labels, median
):
    conversation, remaining = scripted(checkpoint, labels)
    monkeypatch.setattr(pure.pipeline, "Conversation", conversation)
    settings = RestoreSettings(guidance="perception")
    output = pipeline.restore(picture(16, 16), settings)
    assert output.belief.label == median
    assert not remaining
    assert texts(recorded) == checkpoint.text.answer(median)


def test_labels_that_name_no_level_do_not_break_a_large_photo(pipeline):
    assert pipeline.restore(picture(16, 16))


def test_at_most_nine_tiles_are_asked(pipeline, checkpoint, recorded, monkeypatch):
    conversation, remaining = scripted(checkpoint, ["Small blur, small noise."] * 20)
    monkeypatch.setattr(pure.pipeline, "Conversation", conversation)
    pipeline.restore(picture(24, 24), RestoreSettings(guidance="perception"))
    assert len(recorded) > 9
    assert len(remaining) == 20 - 9


def test_passes_are_the_runs_of_the_transformer(pipeline, passes):
    output = pipeline.restore(picture(16, 8), RestoreSettings(**GIVEN))
    assert output.passes == len(passes)


@pytest.mark.parametrize("size", [(8, 8), (16, 8)])
def test_passes_include_the_text(pipeline, passes, size):
    output = pipeline.restore(picture(*size))
    assert output.passes == len(passes)


def test_a_tile_read_for_the_label_is_not_read_again(pipeline, monkeypatch):
    """As long as there is room for its cache; the result is the same."""
    photo = picture(20, 12)
    tiles = pipeline.tiles(photo.size, 4)
    kept = pipeline.restore(photo)
    monkeypatch.setattr(pure.pipeline, "READINGS_BYTES", 0)
    again = pipeline.restore(photo)
    assert again.passes - kept.passes == LABEL_TILES < tiles
    assert np.array_equal(pixels(again), pixels(kept))


@pytest.mark.parametrize(
    "settings",
    [
        RestoreSettings(guidance="perception", label=LABEL),
        RestoreSettings(guidance="understanding", caption=CAPTION),
    ],
    ids=["perception", "understanding"],
)
def test_nothing_is_asked_that_is_not_used(pipeline, passes, settings):
    pipeline.restore(picture(8, 8), settings, decoder=PLAIN)
    assert len(passes) == 1 + 16  # prompt, codes; the text rides along


def test_steps_count_text_and_pictures(pipeline, recorded):
    output = pipeline.restore(picture(16, 8), RestoreSettings(**GIVEN))
    assert output.steps == sum(len(tile.steps) for tile in recorded)


def test_the_output_tells_how_it_was_made(pipeline, checkpoint):
    settings = RestoreSettings(seed=4, **GIVEN)
    output = pipeline.restore(picture(8, 8), settings)
    assert output.settings == replace(settings, sampling=settings.draw())
    assert output.checkpoint == checkpoint.name
    assert list(output.seconds) == ["perceive", "understand", "restore", "finish"]
    assert all(seconds >= 0 for seconds in output.seconds.values())


def test_named_sampling_takes_all_else_from_the_checkpoint(checkpoint):
    sampling = SamplingConfig(guidance_scale=2.5, temperature=0.7, k_max=100, mu=3.5)
    own = PurePipeline(replace(checkpoint, sampling=sampling))
    named = own.restore(picture(8, 8), RestoreSettings(sampling="topk:3", **GIVEN))
    assert named.settings.sampling == replace(sampling, mode="topk", top_k=3)
    spelt = own.restore(picture(8, 8), RestoreSettings(sampling=named.settings.sampling, **GIVEN))
    assert np.array_equal(named.codes, spelt.codes)
    published = RestoreSettings(sampling=SamplingConfig(), **GIVEN)
    assert own.restore(picture(8, 8), published).settings.sampling == SamplingConfig()


def test_greedy_restorations_do_not_depend_on_the_seed(pipeline):
    first, second = (
        pipeline.restore(
            picture(8, 8), RestoreSettings(seed=seed, sampling=GREEDY, guidance="none")
        )
        for seed in (0, 1)
    )
    assert np.array_equal(first.codes, second.codes)


def test_the_input_is_left_untouched(pipeline, photo):
    before = photo.tobytes()
    pipeline.restore(photo, RestoreSettings(scale=1))
    assert photo.tobytes() == before


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_are_a_programming_error(pipeline, mode):
    with pytest.raises(ValueError, match=f"expected an RGB picture, got {mode}"):
        pipeline.restore(Image.new(mode, (8, 8)))


def test_a_photo_too_large_is_refused_with_a_sentence(pipeline):
    with pytest.raises(RestoreError) as error:
        next(pipeline.stream(Image.new("RGB", (4097, 1024))))
    assert str(error.value) == (
        "The photo is 4097 × 1024; 4× larger it would have 67 megapixels. The limit is 17: crop "
        "the photo or choose a smaller scale."
    )


def test_words_the_checkpoint_does_not_have_are_refused_at_once(pipeline, passes):
    with pytest.raises(BeliefError, match="IMGIMGBZ"):
        next(pipeline.stream(picture(8, 8), RestoreSettings(caption="a photo IMGIMGBZ")))
    assert not passes


@pytest.mark.parametrize("given", [GIVEN | {"caption": "house " * 40}, {"label": "house " * 40}])
def test_a_text_too_long_is_refused_with_a_sentence(pipeline, given):
    try:
        next(pipeline.stream(picture(8, 8), RestoreSettings(**given)))
        assert pipeline.restore(picture(8, 8), RestoreSettings(**given))
    except (RestoreError, BeliefError):
        return


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"scale": 5}, "the scale is 1 to 4, not 5"),
        ({"scale": 0}, "the scale is 1 to 4, not 0"),
        ({"seed": -1}, f"the seed is a whole number from 0 to {MAX_SEED}, not -1"),
        (
            {"seed": MAX_SEED + 1},
            f"the seed is a whole number from 0 to {MAX_SEED}, not {MAX_SEED + 1}",
        ),
        (
            {"guidance": "some"},
            "guidance is full, perception, understanding, none, not 'some'",
        ),
        ({"colour_fix": "hsv"}, "the colour fix is wavelet, adain, none, not 'hsv'"),
    ],
)
def test_impossible_settings_are_refused_with_a_sentence(values, sentence):
    with pytest.raises(RestoreError) as error:
        RestoreSettings(**values)
    assert str(error.value) == sentence


def test_the_largest_seed_works(pipeline):
    settings = RestoreSettings(seed=MAX_SEED, guidance="none", scale=1)
    assert pipeline.restore(picture(8, 8), settings).settings.seed == MAX_SEED


def test_a_pipeline_loads_from_a_folder(checkpoint_folder, pipeline):
    loaded = PurePipeline.from_pretrained(checkpoint_folder)
    settings = RestoreSettings(guidance="none")
    first, second = (p.restore(picture(8, 8), settings) for p in (loaded, pipeline))
    assert np.array_equal(pixels(first), pixels(second))
