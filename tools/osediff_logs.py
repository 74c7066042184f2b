"""Compare our PSNR-Y, SSIM-Y and NIQE with the logs OSEDiff publishes beside its outputs.

Takes folders `preset/datasets/benchmark_*` of github.com/cswry/OSEDiff: 512 × 512 outputs of two
sets of real photographs, their references, and the log of its own evaluation, picture by picture.
Those pictures are for non-commercial use and no part of this project.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

from evaluation import metrics
from imaging.load import read_photo

LINE = re.compile(r"results_osediff/(\S+\.png) \| (.*?) \| Runtime")
OURS = {"PSNR": "psnr_y", "SSIM": "ssim_y", "NIQE": "niqe"}
PROXIES = {"LPIPS": "lpips_squeeze_proxy"}


def published(folder: Path) -> dict[str, dict[str, float]]:
    """Picture to metric to value, from the log in `results_osediff/metrics`."""
    (log,) = (folder / "results_osediff" / "metrics").glob("*.log")
    found = {}
    for line in log.read_text("utf-8").splitlines():
        if (match := LINE.search(line)) is not None:
            pairs = (part.split(": ") for part in match[2].split("; "))
            found[match[1]] = {name: float(value) for name, value in pairs}
    return found


def compare(folder: Path, names: dict[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Published and our values, (pictures,) each, of the published metrics in `names`."""
    values = published(folder)
    found = {}
    for theirs, ours in names.items():
        measure = metrics.measure(metrics.table()[ours])
        mine = [
            measure(
                read_photo(folder / "results_osediff" / name),
                read_photo(folder / "test_HR" / name),
            )
            for name in values
        ]
        found[theirs] = np.array([values[name][theirs] for name in values]), np.array(mine)
    return found


def main() -> None:
    """Command line: `python -m tools.osediff_logs FOLDER...`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--proxies", action="store_true", help="correlate the offline proxies, too")
    options = parser.parse_args()
    for folder in options.folders:
        for name, (theirs, ours) in compare(folder, OURS).items():
            worst = np.abs(theirs - ours).max()
            sys.stdout.write(
                f"{folder.name} {name} of {len(ours)}: ours {ours.mean():.6f}, published "
                f"{theirs.mean():.6f}, largest difference {worst:.2g}\n"
            )
        for name, (theirs, ours) in compare(folder, PROXIES).items() if options.proxies else ():
            r = np.corrcoef(theirs, ours)[0, 1]
            sys.stdout.write(f"{folder.name} {name} of {len(ours)}: its proxy correlates {r:.2f}\n")


if __name__ == "__main__":
    main()
