"""Training over two processes against training in one."""

import csv
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import pure.train
from pure.checkpoint import load
from pure.sharding import whole_weights
from pure.train import Trainer
from tests.pure.train_worker import RUNS, SMALL

ROOT = Path(__file__).parents[2]


def launch(processes, arguments):
    """Run the worker in some processes, as a launcher would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.pure.train_worker", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=280)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in running:
            process.kill()  # else one would wait for the other for ever


@pytest.fixture(scope="module")
def one(sequences_folder, vq_folder, tmp_path_factory):
    """The same settings, in one process: the folders of the runs, and their weights."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    out = tmp_path_factory.mktemp("one")
    weights = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pure.train.CONFIGS, "small", SMALL)
        for name, settings in RUNS.items():
            if name == "sharded":
                continue  # the same training as "whole"
            settings = replace(settings, sharding="none", recompute=0, per_device=0)
            trainer = Trainer(settings, sequences_folder, vq_folder, out / name)
            trainer.run()
            weights[name] = {k: v.clone() for k, v in whole_weights(trainer.model).items()}
    AcceleratorState._reset_state(reset_partial_state=True)
    weights["sharded"] = weights["whole"]
    return out, weights


@pytest.fixture(scope="module")
def two(one, sequences_folder, vq_folder, tmp_path_factory):
    """The folder two processes wrote."""
    out = tmp_path_factory.mktemp("two")
    start = one[0] / "whole" / "checkpoint"
    launch(2, [sequences_folder, vq_folder, start, out])
    return out


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(one, two, name):
    """Twenty steps of fp32; whole, and sharded with recomputing, small passes and a restart."""
    there, here = load_file(two / f"{name}.safetensors"), one[1][name]
    assert there.keys() == here.keys()
    for key, value in here.items():
        torch.testing.assert_close(there[key], value, rtol=0, atol=1e-5, msg=key)


def test_two_processes_report_what_one_does(one, two):
    def rows(folder):
        with (folder / "curve.csv").open() as file:
            return {row.pop("step"): row for row in csv.DictReader(file)}

    here = rows(one[0] / "whole")
    assert here.keys() == {"9.0", "19.0"} == rows(two / "whole").keys()
    for name in ("whole", "sharded"):
        for step, row in rows(two / name).items():
            for key in here[step].keys() - {"seconds"}:
                assert float(row[key]) == pytest.approx(float(here[step][key]), abs=2e-4), key


def test_a_sharded_run_shows_samples(two):
    with Image.open(two / "clustered" / "samples" / "00000020.png") as sheet:
        assert sheet.size == (3 * 32, 32)


def test_a_sharded_run_keeps_its_newest_state_only(two):
    assert [path.name for path in (two / "sharded").glob("state-*")] == ["state-00000020"]


def test_a_sharded_model_reads_and_writes_the_released_format(one, two):
    before, after = (
        load(folder).model.state_dict()
        for folder in (one[0] / "whole" / "checkpoint", two / "read" / "again")
    )
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key
