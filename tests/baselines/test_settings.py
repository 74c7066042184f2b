"""What visitors may change about a method: the values they send, and the methods' own options."""

from dataclasses import replace

import pytest

from baselines import registry
from baselines.base import LONGEST_TEXT, Method, Restoration, Setting, SettingError, run

STEPS = Setting("steps", "Steps", 50, lowest=1, highest=100, step=1)
GUIDANCE = Setting("guidance", "Guidance", 5.5, lowest=1.0, highest=12.0)
TAGS = Setting("tags", "Tags", None)
NEGATIVE = Setting("negative", "Negative prompt", "blur")
COLOURS = Setting("colours", "Colours", "adain", choices=("adain", "none"))


@pytest.mark.parametrize(
    ("setting", "sent", "read"),
    [
        (STEPS, 20, 20),
        (STEPS, 20.0, 20),
        (GUIDANCE, 9, 9.0),
        (TAGS, "", None),
        (TAGS, None, None),
        (TAGS, "  ", ""),
        (TAGS, " a dog ", "a dog"),
        (NEGATIVE, "", ""),
        (COLOURS, "none", "none"),
    ],
)
def test_a_value_is_read_as_the_method_takes_it(setting, sent, read):
    found = setting.read(sent)
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("setting", "sent", "sentence"),
    [
        (STEPS, 0, "Steps is 1 to 100, not 0"),
        (STEPS, 1.5, "Steps is a whole number, not 1.5"),
        (STEPS, "20", "Steps is a whole number, not '20'"),
        (STEPS, True, "Steps is a whole number, not True"),
        (GUIDANCE, float("nan"), "Guidance is 1 to 12, not nan"),
        (GUIDANCE, float("inf"), "Guidance is 1 to 12, not inf"),
        (TAGS, ["a"], "Tags is a text"),
        (TAGS, "x" * (LONGEST_TEXT + 1), "Tags has 501 characters; it may have 500"),
        (COLOURS, "wavelet", "Colours is one of adain, none; not 'wavelet'"),
    ],
)
def test_what_cannot_be_is_refused(setting, sent, sentence):
    with pytest.raises(SettingError, match=sentence):
        setting.read(sent)


class Remembers:
    """Keeps what it was called with."""

    def restore(self, lq, **named):
        self.named = named
        return Restoration(lq, "m", named["seed"], 0.1)


METHOD = Method(
    "m", "M", "other", 1, lambda device: Remembers(), settings=(STEPS, TAGS), options=dict
)


def test_the_published_values_are_no_options_at_all(photo):
    restorer = Remembers()
    run(METHOD, restorer, photo, seed=2, values={"steps": 50, "tags": ""})
    assert restorer.named == {"seed": 2}


def test_other_values_reach_the_method(photo):
    restorer = Remembers()
    run(METHOD, restorer, photo, values={"steps": 20, "tags": "a dog"})
    assert restorer.named == {"seed": 0, "options": {"steps": 20, "tags": "a dog"}}


def test_a_setting_there_is_not_is_named():
    with pytest.raises(SettingError, match="M has no setting 'stepz'; there are steps, tags"):
        METHOD.chosen({"stepz": 1})
    with pytest.raises(SettingError, match="there are none"):
        replace(METHOD, settings=()).chosen({"steps": 1})


@pytest.mark.parametrize(
    "method",
    [method for method in registry.discover().values() if method.settings],
    ids=lambda method: method.name,
)
def test_settings_are_fields_of_the_options_and_so_are_their_defaults_and_limits(method):
    published = method.options()
    for setting in method.settings:
        assert getattr(published, setting.name) == setting.default
        for value in (setting.lowest, setting.highest, *setting.choices):
            if value is not None:
                read = setting.read(value)
                assert getattr(method.options(**{setting.name: read}), setting.name) == read
