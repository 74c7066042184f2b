import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.design import (
    REPEAT_GAP,
    Draw,
    Study,
    StudyDesign,
    StudyError,
    block_criteria,
    canonical_json,
    choose_images,
    pair_orders,
    participant_seed,
    position_order,
    read_study,
    rounds,
    schedule,
    schedule_bytes,
    sha256,
    spread,
    study_from_json,
    williams_square,
    write_study,
)
from tests.study.studies import make_study

WHO = "0123456789abcdef"


def everyone(study, slots):
    """Trials of people who see all pictures, by slot."""
    ids = [image.image_id for image in study.images]
    return {slot: schedule(study, f"{slot:016x}", slot, ids) for slot in range(slots)}


@pytest.mark.parametrize("n", range(2, 11))
def test_a_williams_square_is_latin(n):
    square = williams_square(n)
    assert all(sorted(row) == list(range(n)) for row in square)
    assert all(sorted(column) == list(range(n)) for column in zip(*square, strict=True))


@pytest.mark.parametrize("n", [2, 4, 6, 8, 10])
def test_an_even_williams_square_has_each_ordered_neighbour_pair_once(n):
    pairs = Counter(pair for row in williams_square(n) for pair in itertools.pairwise(row))
    assert pairs == Counter(itertools.permutations(range(n), 2))


@pytest.mark.parametrize("n", [3, 5, 7])
def test_an_odd_square_and_its_mirror_have_each_ordered_neighbour_pair_twice(n):
    rows = williams_square(n)
    rows += [row[::-1] for row in rows]
    pairs = Counter(pair for row in rows for pair in itertools.pairwise(row))
    assert pairs == dict.fromkeys(itertools.permutations(range(n), 2), 2)


def test_the_first_row_is_williams():
    assert williams_square(6)[0] == [0, 1, 5, 2, 4, 3]


@pytest.mark.parametrize("n", range(2, 11))
def test_rounds_are_disjoint_and_have_every_pair_once(n):
    all_rounds = rounds(n)
    assert len(all_rounds) == n - 1 + n % 2
    for pairs in all_rounds:
        assert len(pairs) == n // 2
        assert len({method for pair in pairs for method in pair}) == 2 * len(pairs)
    seen = Counter(frozenset(pair) for pairs in all_rounds for pair in pairs)
    assert seen == {frozenset(pair): 1 for pair in itertools.combinations(range(n), 2)}


@pytest.mark.parametrize("n", range(2, 11))
def test_every_method_is_left_about_half_the_time_in_the_rounds(n):
    left = Counter(pair[0] for pairs in rounds(n) for pair in pairs)
    assert all(abs(2 * left[m] - (n - 1)) <= 2 for m in range(n))


@given(st.integers(2, 7), st.integers(1, 20), st.integers(0, 40))
def test_positions_of_a_participant_differ_by_at_most_one(n, images, slot):
    study = make_study(images=images, methods="ABCDEFG"[:n])
    orders = [position_order(study, image, slot) for image in study.images]
    for method in study.methods:
        counts = Counter(order.index(method) for order in orders)
        table = [counts[p] for p in range(n)]
        assert max(table) - min(table) <= 1


@given(st.integers(2, 7), st.integers(0, 5))
def test_positions_of_a_picture_are_equal_after_a_block_of_slots(n, block):
    study = make_study(images=5, methods="ABCDEFG"[:n])
    for image in study.images:
        slots = range(block * n, (block + 1) * n)
        orders = [position_order(study, image, slot) for slot in slots]
        for method in study.methods:
            assert sorted(order.index(method) for order in orders) == list(range(n))


def test_symbols_are_drawn_anew_in_each_block():
    study = make_study(images=1)
    blocks = {
        tuple(position_order(study, study.images[0], slot) for slot in range(6 * b, 6 * b + 6))
        for b in range(6)
    }
    assert len(blocks) > 1


@given(st.integers(2, 8), st.integers(0, 30))
def test_a_pictures_pairs_are_covered_and_its_sides_balanced_after_two_cycles(n, start):
    study = make_study("pairwise", images=4, methods="ABCDEFGH"[:n])
    for image in study.images:
        slots = range(start, start + 2 * study.cycle)
        seen = Counter(pair for slot in slots for pair in pair_orders(study, image, slot))
        assert seen == dict.fromkeys(itertools.permutations(study.methods, 2), 1)
        one = [frozenset(p) for s in slots[: study.cycle] for p in pair_orders(study, image, s)]
        assert len(set(one)) == len(one) == n * (n - 1) // 2


def test_six_methods_make_three_pairs_a_picture_and_fifteen_after_five_people():
    study = make_study("pairwise", images=3)
    image = study.images[0]
    assert len(pair_orders(study, image, 0)) == 3
    assert {m for pair in pair_orders(study, image, 0) for m in pair} == set("ABCDEF")
    assert len({frozenset(p) for s in range(5) for p in pair_orders(study, image, s)}) == 15


def test_sides_are_balanced_within_a_participant():
    study = make_study("pairwise", images=20)
    for slot in range(10):
        left = Counter(
            pair[0] for image in study.images for pair in pair_orders(study, image, slot)
        )
        # Five residues with four pictures each, turned round in turn: exactly half.
        assert set(left.values()) == {10}


def test_a_missing_output_is_left_out_and_nothing_put_in_its_place():
    study = make_study(images=6, missing={("C", 2)})
    order = position_order(study, study.images[2], 3)
    assert len(order) == 5
    assert "C" not in order
    pairs = make_study("pairwise", images=6, missing={("C", 2)})
    shown = [pair_orders(pairs, pairs.images[2], slot) for slot in range(5)]
    assert sum(map(len, shown)) == 10  # fifteen less the five of C


def test_the_schedule_is_the_same_byte_for_byte_from_study_file_and_seed(tmp_path):
    study = make_study(images=30, scenes=10)
    write_study(study, tmp_path / "study.json")
    again = read_study(tmp_path / "study.json")
    ids = choose_images(study, {}, WHO)
    who = f"{participant_seed(WHO):016x}"
    first = schedule_bytes(schedule(study, WHO, 7, ids))
    assert first == schedule_bytes(schedule(again, who, 7, choose_images(again, {}, who)))
    assert first != schedule_bytes(schedule(study, "f" * 16, 7, ids))


def test_a_schedule_of_long_ago_is_still_made():
    """A tripwire: if it trips, running studies would change under their participants."""
    study = make_study(images=30, scenes=10)
    trials = schedule(study, WHO, 7, choose_images(study, {}, WHO))
    assert sha256(schedule_bytes(trials)) == GOLDEN_SCHEDULE


GOLDEN_SCHEDULE = "9319116b3615f797c2323c692eb801661254e2dc60907c9f9f814d947da86e72"


def test_draws_follow_pcg64_of_the_key():
    import hashlib

    key = hashlib.sha256(b"h|p|purpose").digest()
    bits = np.random.PCG64(int.from_bytes(key, "big"))
    n = 1_000_003
    expected = [int(bits.random_raw()) % n for _ in range(5)]
    draw = Draw("h", "p", "purpose")
    assert [draw.below(n) for _ in range(5)] == expected


def test_shuffles_are_uniform():
    counts = Counter(tuple(Draw("h", str(i), "x").shuffled("abc")) for i in range(6000))
    # 6 orders at 1000 each, deviation 29: five of them
    assert len(counts) == 6
    assert all(abs(n - 1000) < 145 for n in counts.values())


@pytest.mark.parametrize("mode", ["pick_best", "pairwise"])
def test_a_sitting_has_the_trials_the_design_says(mode):
    study = make_study(mode, images=40)
    ids = choose_images(study, {}, WHO)
    trials = schedule(study, WHO, 0, ids)
    kinds = Counter(trial.kind for trial in trials)
    main = 40 if mode == "pick_best" else 60
    golden = 5 if mode == "pick_best" else 8
    assert kinds == {"training": 2, "main": main, "golden": golden, "repeat": 4}
    assert [trial.kind for trial in trials[:2]] == ["training"] * 2
    assert len({trial.trial_id for trial in trials}) == len(trials)
    assert [trial.index for trial in trials] == list(range(len(trials)))
    assert sum(trial.break_before for trial in trials) == 1
    at = next(trial.index for trial in trials if trial.break_before)
    assert abs(2 * (at - 2) - (len(trials) - 2)) <= 1


@given(st.integers(0, 2**64 - 1))
def test_repeats_are_reshuffled_and_far_from_their_original(seed):
    who = f"{seed:016x}"
    study = make_study(images=20)
    trials = {t.trial_id: t for t in schedule(study, who, 3, choose_images(study, {}, who))}
    repeats = [trial for trial in trials.values() if trial.kind == "repeat"]
    assert len(repeats) == 4
    for trial in repeats:
        original = trials[trial.repeat_of]
        assert original.kind == "main"
        assert (original.image_id, original.criterion) == (trial.image_id, trial.criterion)
        assert trial.index - original.index >= REPEAT_GAP
        assert set(trial.order) == set(original.order)
        assert trial.order != original.order


@given(st.integers(0, 2**64 - 1), st.sampled_from(["pick_best", "pairwise"]))
def test_no_scene_follows_itself(seed, mode):
    who = f"{seed:016x}"
    study = make_study(mode, images=18, scenes=6)
    trials = schedule(study, who, 1, choose_images(study, {}, who))
    shown = [trial.scene for trial in trials if trial.kind != "training"]
    assert all(a != b for a, b in itertools.pairwise(shown))


def test_spreading_does_what_can_be_done_where_one_group_is_too_large():
    items = ["a"] * 4 + ["b", "c"]
    out = spread(items, lambda item: item, Draw("h", "p", "x"))
    assert sorted(out) == sorted(items)
    assert sum(a == b for a, b in itertools.pairwise(out)) == 1


def test_goldens_have_the_known_best_among_as_many_as_a_main_trial():
    for mode, panels in (("pick_best", 6), ("pairwise", 2)):
        study = make_study(mode, images=20)
        trials = schedule(study, WHO, 0, choose_images(study, {}, WHO))
        for trial in trials:
            if trial.kind in ("golden", "training"):
                assert len(trial.order) == panels
                assert trial.expected in trial.order
                assert all(name.startswith("g_") for name in trial.order)


def test_trial_ids_say_nothing_about_the_kind():
    study = make_study(images=20)
    trials = schedule(study, WHO, 0, choose_images(study, {}, WHO))
    assert all(len(t.trial_id) == 16 and int(t.trial_id, 16) >= 0 for t in trials)


def test_criteria_come_in_blocks_whose_order_is_counterbalanced():
    study = make_study(images=40, criteria=("consistency", "quality"))
    ids = choose_images(study, {}, WHO)
    assert len(ids) == 30  # 60 main trials in two passes
    criteria = [t.criterion for t in schedule(study, WHO, 1, ids) if t.kind != "training"]
    assert len(list(itertools.groupby(criteria))) == 2
    main = Counter(t.criterion for t in schedule(study, WHO, 1, ids) if t.kind == "main")
    assert main == {"consistency": 30, "quality": 30}
    for block in range(3):
        first = Counter(block_criteria(study, slot)[0] for slot in range(6 * block, 6 * block + 6))
        assert set(first.values()) == {3}


def test_a_subset_takes_the_pictures_with_fewest_votes():
    study = make_study(images=100)
    fill = {f"img{i}": 1 for i in range(35)}
    chosen = choose_images(study, fill, WHO)
    assert len(chosen) == len(set(chosen)) == 60
    assert not set(chosen) & set(fill)


def test_subsets_of_many_people_fill_all_pictures_evenly():
    study = make_study(images=100, methods="ABCD")
    fill = Counter()
    for slot in range(25):
        chosen = choose_images(study, fill, f"{slot:016x}")
        fill.update(chosen)
        trials = schedule(study, f"{slot:016x}", slot, chosen)
        for method in study.methods:
            at = Counter(t.order.index(method) for t in trials if t.kind == "main")
            assert max(at.values()) - min(at.values()) <= 1
    assert set(fill.values()) == {15}


def test_the_hash_is_of_the_content_and_not_of_the_layout(tmp_path):
    study = make_study()
    (tmp_path / "pretty.json").write_text(json.dumps(study.to_json(), indent=4))
    assert read_study(tmp_path / "pretty.json").hash == study.hash == sha256(study.canonical())
    assert replace(study, alpha=0.01).hash != study.hash
    changed = replace(study.images[0].lq, sha256="0" * 64)
    images = (replace(study.images[0], lq=changed), *study.images[1:])
    assert replace(study, images=images).hash != study.hash


def test_canonical_json_has_one_form():
    assert canonical_json({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mode": "rating"}, "pick_best or pairwise, not 'rating'"),
        ({"methods": ("A",)}, "two or more"),
        ({"methods": ("A", "B", "A")}, "two or more different"),
        ({"methods": ("tie", "B")}, "'tie' cannot be a method's id"),
        ({"methods": ("g_x", "B")}, "'g_x' cannot be"),
        ({"criteria": ("beauty",)}, "criteria are some of"),
        ({"criteria": ()}, "criteria are some of"),
        ({"methods": ("A", "B")}, "of no others"),
        ({"active": True}, "active sampling chooses pairs"),
        ({"schema_version": 2}, "version 1"),
    ],
)
def test_impossible_studies_are_refused_with_a_sentence(change, sentence):
    with pytest.raises(StudyError, match=sentence):
        replace(make_study(), **change)


@pytest.mark.parametrize("data", [{}, {"study_id": "x"}, {"images": [1]}])
def test_what_is_no_study_file_is_said_to_be_none(data):
    with pytest.raises(StudyError, match="not a study file"):
        study_from_json(data)


def test_unknown_keys_are_refused(tmp_path):
    data = {**make_study().to_json(), "methds": []}
    (tmp_path / "study.json").write_text(json.dumps(data))
    with pytest.raises(StudyError, match="methds"):
        read_study(tmp_path / "study.json")


def test_missing_and_broken_files_are_told_apart(tmp_path):
    with pytest.raises(StudyError, match="There is no study file"):
        read_study(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(StudyError, match="is not JSON"):
        read_study(tmp_path / "broken.json")


def test_the_layout_of_a_sitting_depends_on_the_mode():
    assert StudyDesign.of_mode("pairwise").golden == 8
    assert StudyDesign.of_mode("pick_best", golden=3).golden == 3
    assert isinstance(make_study(), Study)
