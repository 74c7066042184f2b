import numpy as np
import pytest
from PIL import Image

from tools.nano_eval import Trial, luma, psnr_y, summarise


def plain(value):
    return Image.new("RGB", (8, 8), (value,) * 3)


def test_luma_runs_from_16_to_235():
    assert luma(plain(0)) == pytest.approx(16)
    assert luma(plain(255)) == pytest.approx(235)


def test_psnr_of_a_constant_difference_is_its_closed_form():
    difference = 51 * 219 / 255  # of luma, for 51 levels of grey
    assert psnr_y(plain(100), plain(151)) == pytest.approx(20 * np.log10(255 / difference))


def test_equal_pictures_have_no_noise():
    assert psnr_y(plain(7), plain(7)) == np.inf


def test_a_summary_has_the_mean_of_every_level_and_method():
    methods = ("bicubic", "top1", "dynamic", "ceiling")
    trials = {
        "light": [Trial(dict.fromkeys(methods, db), True, db > 25) for db in (20.0, 30.0)],
        "heavy": [Trial(dict.fromkeys(methods, 10.0), False, True)] * 2,
    }
    summary = summarise(trials)
    assert summary["light"]["top1"] == {"psnr_y": 25.0, "crops": 2}
    assert summary["heavy"]["bicubic"] == {"psnr_y": 10.0, "crops": 2}
    assert summary["tokenizer_psnr_y"] == 17.5
    assert summary["label_accuracy_blur"] == 0.5
    assert summary["label_accuracy_noise"] == 0.75
