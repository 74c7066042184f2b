"""Numbers of the PURE paper (arXiv 2503.11073), quoted; nothing here was measured by us.

Of Tables 2, 3, 5 and 6 we have the rows below only, so the others are left out. A row is shown
beside measured ones where set and scale agree, and marked as quoted. The paper's DRealSR is
enlarged two times, the set others call by that name four times: they are not the same.
"""

from dataclasses import dataclass

PAPER = "quoted from the PURE paper, arXiv 2503.11073"

# The paper's columns by the names of our metrics.
COLUMNS = (
    *("psnr_y", "ssim_y", "lpips", "dists", "fid"),
    *("niqe", "musiq", "maniqa", "clipiqa", "topiq"),
)


@dataclass(frozen=True)
class QuotedRow:
    """A method's row for a set; values by metric, as printed."""

    dataset: str
    scale: int
    method: str
    values: dict[str, str]
    note: str = ""


def _row(dataset: str, scale: int, method: str, numbers: str, note: str = "") -> QuotedRow:
    return QuotedRow(dataset, scale, method, dict(zip(COLUMNS, numbers.split(), strict=True)), note)


QUALITY = (
    _row(
        *("RealSR", 4, "OSEDiff"),
        "25.15 0.7341 0.2920 0.2127 123.73 5.6442 72.95 0.4507 0.6686 0.7106",
    ),
    _row(
        *("DRealSR", 2, "PURE"),
        "24.73 0.6459 0.3452 0.2076 79.41 5.4846 73.28 0.5251 0.7259 0.7560",
        "full guidance, dynamic top-k",
    ),
)


@dataclass(frozen=True)
class Cost:
    """A row of Table 4: 512 × 512 on one A100."""

    method: str
    parameters_millions: int
    seconds: float


# Table 4.
COSTS = (
    Cost("StableSR", 1410, 11.50),
    Cost("DiffBIR", 1717, 2.72),
    Cost("SeeSR", 2524, 4.30),
    Cost("PASD", 1900, 2.80),
    Cost("OSEDiff", 1775, 0.35),
    Cost("PURE", 7080, 256.87),
)

# Table 1: PSNR in dB of the references after the VQ-8 tokenizer, which bounds what PURE can reach.
CEILING = {"OST-Val": 24.29, "RealSR": 23.53, "DRealSR": 33.59}

# Table 6, as far as we have it: DRealSR at 2×, PSNR in dB and MUSIQ by how codes are drawn.
SAMPLING = {
    "top-1": (27.59, 71.82),
    "top-2000": (24.56, 73.38),
    "dynamic (published)": (24.73, 73.28),
}


def dataset_of(folder: str) -> str | None:
    """The paper's name of a set, from the name of its folder, if it is one of the paper's."""
    name = folder.lower().replace("-", "").replace("_", "")
    for ours, paper in (("drealsr", "DRealSR"), ("realsr", "RealSR"), ("ostval", "OST-Val")):
        if ours in name:
            return paper
    return None
