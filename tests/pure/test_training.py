import csv
import math
import sys
import types

import pytest
import torch

from pure import training
from pure.training import (
    Curve,
    TrainingError,
    learning_rate,
    read_state,
    update_average,
    write_state,
)


def rates(steps, **settings):
    return [learning_rate(step, steps=steps, **settings) for step in range(steps)]


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine():
    values = rates(12, peak=2.0, warm_up=4)
    assert values[:4] == [0.5, 1.0, 1.5, 2.0]
    for step in range(4, 12):
        assert values[step] == pytest.approx(1 + math.cos(math.pi * (step - 4) / 8))


def test_the_rate_ends_at_its_floor():
    assert learning_rate(100, peak=2.0, warm_up=4, steps=100, floor=0.1) == pytest.approx(0.2)
    assert learning_rate(100, peak=2.0, warm_up=4, steps=100) == 0
    assert learning_rate(200, peak=2.0, warm_up=4, steps=100) == 0  # a run that was made shorter


def test_without_warm_up_the_rate_starts_at_its_peak():
    values = rates(5, peak=1.0, warm_up=0)
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)


def test_a_warm_up_may_end_within_a_step():
    values = rates(10, peak=1.0, warm_up=2.5)
    assert values[:2] == [0.4, 0.8]
    assert max(values) <= 1.0


def test_averages_follow_quickly_at_first_and_slowly_later():
    average = {"w": torch.zeros(2)}
    update_average(average, {"w": torch.ones(2)}, 0.9, step=0)
    assert average["w"].tolist() == pytest.approx([0.9, 0.9])  # decay 1 / 10
    update_average(average, {"w": torch.zeros(2)}, 0.9, step=1000)
    assert average["w"].tolist() == pytest.approx([0.81, 0.81])


def read(folder):
    with (folder / "curve.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_curve_leaves_empty_what_was_not_measured(tmp_path):
    curve = Curve(tmp_path, ["step", "loss", "psnr"])
    curve.write({"step": 0, "loss": 2.5})
    curve.write({"step": 1, "loss": 2.0, "psnr": 20.0})
    assert read(tmp_path) == [
        {"step": "0", "loss": "2.5", "psnr": ""},
        {"step": "1", "loss": "2.0", "psnr": "20.0"},
    ]


def test_a_resumed_curve_has_every_step_once(tmp_path):
    curve = Curve(tmp_path, ["step", "loss"])
    for step in range(4):
        curve.write({"step": step, "loss": 1.0})
    Curve(tmp_path, ["step", "loss"], step=2).write({"step": 2, "loss": 9.0})
    assert [(row["step"], row["loss"]) for row in read(tmp_path)] == [
        ("0", "1.0"),
        ("1", "1.0"),
        ("2", "9.0"),
    ]


def test_a_curve_goes_to_tensorboard_too(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, *values):
            written.append(values)

        def flush(self):
            written.append("flushed")

    fake = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    Curve(tmp_path, ["step", "loss"], tensorboard=True).write({"step": 3, "loss": 1.5})
    assert written == [("loss", 1.5, 3), "flushed"]


def test_a_missing_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match="pip install tensorboard"):
        Curve(tmp_path, ["step"], tensorboard=True)


def test_events_are_tensorboards(tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs TensorBoard"
    )
    Curve(tmp_path, ["step", "loss"], tensorboard=True).write({"step": 3, "loss": 1.5})
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 1.5)]


def test_a_state_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    assert read_state(path) is None
    write_state(path, {"step": 1, "w": torch.ones(2)})

    def dies(state, target):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(training.torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        write_state(path, {"step": 2})
    assert read_state(path)["step"] == 1
