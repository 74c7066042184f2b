"""Studies for tests, with and without files."""

import numpy as np
from PIL import Image

from study.design import Consent, Picture, Study, StudyDesign, StudyImage, sha256


def picture(name):
    return Picture(f"{name}.png", sha256(name))


def make_study(mode="pick_best", images=12, methods="ABCDEF", missing=(), **values):
    """A study without files; every picture is its own scene unless `scenes` says otherwise."""
    scenes = values.pop("scenes", images)
    main = tuple(
        StudyImage(
            f"img{i}", f"set{i % 2}", f"scene{i % scenes}", picture(f"lq{i}"),
            {m: picture(f"{m}{i}") for m in methods if (m, i) not in missing},
        )
        for i in range(images)
    )  # fmt: skip

    def known(kind, i):
        outputs = {f"g_{n}": picture(f"{kind}{n}{i}") for n in ["gt", "a", "b", "c", "d", "e"]}
        return StudyImage(
            f"{kind}{i}", "known", f"{kind}{i}", picture(f"{kind}lq{i}"), outputs, "g_gt"
        )

    design = values.pop("design", StudyDesign.of_mode(mode))
    return Study(
        study_id="demo", title="A demonstration", mode=mode, methods=tuple(methods), images=main,
        consent=Consent("1", "You look at pictures."), design=design,
        golden=tuple(known("gold", i) for i in range(10)),
        training=tuple(known("train", i) for i in range(3)), **values,
    )  # fmt: skip


def noise(seed, size=(40, 32)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def results_folder(folder, methods=("ape", "bee", "cow"), images=6, gt=True):
    """A results folder of one data set: lq/, gt/, and a folder per method."""
    for n in range(images):
        sources = {
            "lq": noise(100 + n, (10, 8)),
            **{m: noise(n * 10 + k) for k, m in enumerate(methods)},
        }
        if gt:
            sources["gt"] = noise(900 + n)
        for name, image in sources.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            image.save(folder / name / f"pic{n}.png")
    return folder
