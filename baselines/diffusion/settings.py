"""What visitors may change about several diffusion methods, described alike."""

from baselines.base import Setting

PROMPT = Setting("prompt", "More words for the prompt", "", info="Put behind what the method saw.")
TAGS = Setting("tags", "Tags", None, info="Empty: those of the tagger.")
CONDITIONING = Setting(
    "conditioning",
    "Weight of the ControlNet",
    1.0,
    lowest=0.0,
    highest=2.0,
    step=0.1,
    info="More follows the photo more closely.",
)
START = Setting(
    "start",
    "Begins at",
    "photo",
    choices=("photo", "noise"),
    info="The photo with noise on it, or noise alone.",
)


def negative(default: str) -> Setting:
    """The prompt that guidance leads away from."""
    return Setting("negative", "Negative prompt", default, info="What guidance leads away from.")


def steps(default: int, *, lowest: int = 1, highest: int = 100) -> Setting:
    """Steps of diffusion."""
    return Setting(
        "steps",
        "Steps",
        default,
        lowest=lowest,
        highest=highest,
        step=1,
        info="Time grows with them.",
    )


def guidance(default: float) -> Setting:
    """Weight of the prompt against the negative one."""
    return Setting(
        "guidance",
        "Guidance",
        default,
        lowest=1.0,
        highest=12.0,
        step=0.5,
        info="Towards the prompt, away from the negative one; 1 is without.",
    )


def colour_fix(default: str) -> Setting:
    """How colours are taken over from the photo."""
    return Setting(
        "colour_fix",
        "Colours",
        default,
        choices=("adain", "wavelet", "none"),
        info="As the enlarged photo has them overall (adain) or locally (wavelet).",
    )
