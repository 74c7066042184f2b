import json

import numpy as np
import pytest
from PIL import Image

from study.blinding import new_code
from study.design import StudyError, read_study, sha256
from study.desk import Desk
from study.new import NewStudy, decoy, main, make_study
from study.store import SqliteStore
from tests.study.studies import noise, results_folder


@pytest.fixture
def results(tmp_path):
    return results_folder(tmp_path / "results" / "lake", images=10)


def make(results, tmp_path, **values):
    return make_study(NewStudy((results,), tmp_path / "study.json", **values))


def test_a_study_is_made_from_a_results_folder(results, tmp_path):
    study, _ = make(results, tmp_path)
    assert study.methods == ("ape", "bee", "cow")
    assert study.study_id == "study"
    for image in study.images:
        assert image.dataset == "lake"
        for picture in (image.lq, *image.outputs.values()):
            data = (tmp_path / picture.path).read_bytes()
            assert sha256(data) == picture.sha256
        assert image.lq.path == f"results/lake/lq/{image.image_id.split('/')[1]}.png"


def test_the_command_writes_a_study_that_can_be_voted_on(results, tmp_path, capsys):
    out = tmp_path / "study.json"
    assert (
        main([str(results), "--out", str(out), "--mode", "pairwise", "--participants", "12"]) == 0
    )
    study = read_study(out)
    printed = capsys.readouterr()
    assert study.hash in printed.out
    assert study.target_participants == 12
    assert study.design.min_view_ms == 1500
    assert study.screening.fast_ms == 1500
    store = SqliteStore(tmp_path / "votes.sqlite")
    desk = Desk(study, store, b"s" * 32, tmp_path)
    code = new_code()
    desk.join(code, consent_sha256=study.consent_sha256, adult=True)
    assert len(desk.pictures(code, desk.next_screen(code))) == 3
    store.close()


def test_a_study_file_is_never_overwritten(results, tmp_path, capsys):
    out = tmp_path / "study.json"
    arguments = [str(results), "--out", str(out)]
    assert main(arguments) == 0
    before = out.read_bytes()
    assert main([*arguments, "--participants", "99"]) == 2
    assert "preregistration" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_the_same_folders_give_the_same_study(results, tmp_path):
    assert make(results, tmp_path)[0].hash == make(results, tmp_path)[0].hash
    noise(77).save(results / "ape" / "pic3.png")
    assert (
        make(results, tmp_path)[0].hash
        != make_study(NewStudy((results,), tmp_path / "study.json", title="x"))[0].hash
    )


def test_methods_are_taken_in_the_order_given(results, tmp_path):
    assert make(results, tmp_path, methods=("cow", "ape"))[0].methods == ("cow", "ape")


def test_a_missing_output_is_recorded_and_not_replaced(results, tmp_path):
    (results / "bee" / "pic2.png").unlink()
    study, remarks = make(results, tmp_path, clean=results / "gt")
    image = next(image for image in study.images if image.image_id == "lake/pic2")
    assert set(image.outputs) == {"ape", "cow"}
    assert "lake/pic2 lacks bee." in remarks


def test_outputs_of_different_size_are_refused(results, tmp_path):
    noise(5, (20, 16)).save(results / "bee" / "pic2.png")
    with pytest.raises(StudyError, match="lake/pic2 differ in size: ape 40 × 32, bee 20 × 16"):
        make(results, tmp_path)


def test_a_folder_without_inputs_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match="No picture has an input in lq/"):
        make(tmp_path / "empty", tmp_path)
    with pytest.raises(StudyError, match="There is no folder"):
        make(tmp_path / "gone", tmp_path)


def test_what_is_not_a_picture_is_named(results, tmp_path):
    (results / "bee" / "pic2.png").write_text("no picture")
    with pytest.raises(StudyError, match=r"pic2\.png is not a picture"):
        make(results, tmp_path)


def test_goldens_show_the_reference_among_ruined_copies(results, tmp_path):
    study, _ = make(results, tmp_path)
    assert len(study.golden) == 5
    assert len(study.training) == 2
    for image in (*study.golden, *study.training):
        assert image.expected == "g_best"
        assert set(image.outputs) == {"g_best", "g_0", "g_1"}
        stem = image.scene.split("/")[1]
        with (
            Image.open(tmp_path / image.outputs["g_best"].path) as best,
            Image.open(results / "gt" / f"{stem}.png") as reference,
        ):
            assert (np.asarray(best) == np.asarray(reference)).all()


def test_pictures_of_goldens_are_kept_out_of_the_main_trials_if_there_are_enough(tmp_path):
    few, many = (results_folder(tmp_path / f"r{n}" / "lake", images=n) for n in (10, 30))
    for folder, kept in ((few, 10), (many, 23)):
        study, remarks = make(folder, tmp_path)
        assert len(study.images) == kept
        used = {image.scene for image in (*study.golden, *study.training)}
        shared = used & {image.image_id for image in study.images}
        assert bool(shared) == (kept == 10)
        assert any("kept for golden" in text or "Too few pictures" in text for text in remarks)


def test_clean_photos_make_goldens_of_their_own(results, tmp_path):
    clean = tmp_path / "clean"
    clean.mkdir()
    for n in range(7):
        noise(n, (48, 48)).save(clean / f"c{n}.png")
    study, _ = make(results, tmp_path, clean=clean)
    assert len(study.images) == 10
    assert len(study.golden) == 5
    with Image.open(tmp_path / study.golden[0].lq.path) as lq:
        assert lq.size == (12, 12)


def test_without_references_there_are_no_goldens_and_it_says_so(tmp_path):
    results = results_folder(tmp_path / "results" / "lake", gt=False)
    study, remarks = make(results, tmp_path)
    assert (study.golden, study.design.golden) == ((), 0)
    assert "0 of 5 golden trials" in remarks[0]


def psnr(a, b):
    error = (np.asarray(a, float) - np.asarray(b, float)) ** 2
    return 10 * np.log10(255**2 / error.mean())


def test_decoys_are_far_worse_than_a_fourfold_enlargement():
    y, x = np.mgrid[0:96, 0:128]
    smooth = 127 + 60 * np.sin(x / 3) + 60 * np.sin(y / 4)
    best = Image.fromarray(np.repeat(smooth[..., None], 3, 2).astype(np.uint8))
    fair = best.resize((32, 24), Image.Resampling.BICUBIC).resize(best.size)
    for k in range(5):
        assert psnr(decoy(best, k, seed=0), best) < psnr(fair, best) - 3
    first, again = decoy(best, 1, seed=0), decoy(best, 1, seed=0)
    assert first.tobytes() == again.tobytes()
    assert decoy(best, 1, seed=1).tobytes() != first.tobytes()


def test_consent_names_what_is_asked_and_who_asks(results, tmp_path):
    study, _ = make(results, tmp_path, organiser="The Lake Institute", contact="a@example.org")
    text = study.consent.text
    assert "The Lake Institute" in text
    assert "a@example.org" in text
    trials = 10 + 5 + 2 + 4
    assert f"{trials} sets of pictures" in text
    own, _ = make(results, tmp_path, consent="Our words.")
    assert own.consent.text == "Our words."


def test_scenes_come_from_a_table(results, tmp_path):
    table = tmp_path / "scenes.csv"
    table.write_text("image,scene\npic0.png,shore\npic1,shore\n")
    out = tmp_path / "study.json"
    assert main([str(results), "--out", str(out), "--scenes", str(table)]) == 0
    scenes = {image.image_id: image.scene for image in read_study(out).images}
    assert scenes["lake/pic0"] == scenes["lake/pic1"] == "shore"
    assert scenes["lake/pic2"] == "lake/pic2"


def test_several_data_sets_make_one_study(results, tmp_path):
    other = results_folder(tmp_path / "results" / "wood", images=3)
    study, _ = make_study(NewStudy((results, other), tmp_path / "study.json"))
    assert {image.dataset for image in study.images} == {"lake", "wood"}


def test_options_reach_the_study(results, tmp_path):
    out = tmp_path / "study.json"
    options = ["--mode", "pairwise", "--active", "--main-max", "6", "--block-small-screens"]
    options += ["--criteria", "quality", "consistency"]
    assert main([str(results), "--out", str(out), *options]) == 0
    data = json.loads(out.read_text())
    assert data["active"] is True
    assert data["design"]["main_max"] == 6
    assert data["design"]["small_viewport"] == "block"
    assert data["criteria"] == ["quality", "consistency"]
