from dataclasses import replace

import pytest
from PIL import Image

from baselines.base import Method, MethodError, Restoration, pixels_sha256, run, timed, versions


class Painter:
    """Paints over its input before it answers."""

    def restore(self, lq, *, seed=0):
        answer = lq.copy()
        lq.paste((0, 0, 0), (0, 0, *lq.size))
        return timed("painter", seed, lambda: answer, colours=3)


METHOD = Method("painter", "Painter", "other", 1, lambda device: Painter(), prompt="a photo")


def test_a_method_that_spoils_its_input_spoils_only_its_own(photo):
    before = pixels_sha256(photo)
    restoration, card = run(METHOD, Painter(), photo)
    assert pixels_sha256(photo) == before == card.input_sha256
    assert card.output_sha256 == pixels_sha256(restoration.image)


def test_the_card_carries_settings_and_details_and_is_json(photo):
    import json

    card = run(METHOD, Painter(), photo, seed=5)[1].to_dict()
    assert json.loads(json.dumps(card)) == card
    assert (card["prompt"], card["seed"], card["details"]) == ("a photo", 5, {"colours": 3})


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_an_output_in_another_mode_breaks_the_promise(photo, mode):
    class Other:
        def restore(self, lq, *, seed=0):
            return Restoration(lq.convert(mode), "other", seed, 0.1)

    with pytest.raises(MethodError, match=f"in mode {mode}; 24 × 16 in RGB was promised"):
        run(METHOD, Other(), photo)


def test_an_input_that_is_not_rgb_is_a_mistake_of_the_caller(photo):
    with pytest.raises(ValueError, match="expected an RGB picture, got L"):
        run(METHOD, Painter(), photo.convert("L"))


def test_the_hash_is_of_pixels_and_size_not_of_a_file():
    wide, tall = (Image.new("RGB", size, (1, 2, 3)) for size in ((4, 1), (1, 4)))
    assert wide.tobytes() == tall.tobytes()
    assert pixels_sha256(wide) != pixels_sha256(tall)
    assert pixels_sha256(wide) == pixels_sha256(wide.copy())


def test_a_missing_package_is_said_with_the_way_to_get_it():
    method = replace(METHOD, requires=("no_such_package",))
    assert method.unavailable() == (
        "Painter needs the package no_such_package, which is not installed. "
        "Install it: pip install no-such-package"
    )


def test_versions_are_those_of_installed_packages():
    assert set(versions(("pillow", "no-such-package"))) == {"python", "pillow"}
