import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from baselines import precomputed, registry
from baselines.base import Method, MethodError, timed
from evaluation import runner
from evaluation.datasets import open_folder
from evaluation.runner import Progress, ProgressLine, RunnerError, run_all

ROOT = Path(__file__).parents[2]


def picture(seed, size=(12, 8)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def make_set(root, count=4, size=(12, 8)):
    (root / "lq").mkdir(parents=True)
    (root / "gt").mkdir()
    for i in range(count):
        picture(i, size).save(root / "lq" / f"p{i:02}.png")
        picture(i + 1000, (size[0] * 4, size[1] * 4)).save(root / "gt" / f"p{i:02}.png")
    return root


@pytest.fixture
def dataset(tmp_path):
    return open_folder(make_set(tmp_path / "pairs"))


@pytest.fixture
def bicubic():
    return registry.discover()["bicubic"]


def tree(folder):
    """Content by path, without what is measured."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != runner.SECONDS
    }


def counting(method, calls, fail=()):
    """The method, writing down each picture it makes; raises for sizes in `fail`."""

    class Restorer:
        def __init__(self, inner):
            self.inner = inner

        def restore(self, lq, *, seed=0):
            calls.append(lq.size)
            if len(calls) in fail:
                raise MethodError("This one is too strange.")
            return self.inner.restore(lq, seed=seed)

    return replace(method, load=lambda device: Restorer(method.load(device)))


def test_the_results_folder_has_inputs_references_outputs_and_cards(dataset, bicubic, tmp_path):
    summary = run_all(dataset, [bicubic], tmp_path / "out")
    assert (summary.made, summary.found, summary.failures) == (4, 0, ())
    names = {f"p{i:02}" for i in range(4)}
    folder = tmp_path / "out" / "pairs"
    assert {p.name for p in folder.iterdir()} == {"lq", "gt", "bicubic"}
    for kind in ("lq", "gt", "bicubic"):
        assert {p.stem for p in (folder / kind).glob("*.png")} == names
    for item in dataset.items:
        lq = Image.open(item.lq)
        expected = lq.resize((48, 32), Image.Resampling.BICUBIC)
        made = Image.open(folder / "bicubic" / f"{item.name}.png")
        assert made.tobytes() == expected.tobytes()
    assert set(runner.seconds(folder / "bicubic")) == names


def test_the_card_says_how_an_output_came_about(dataset, bicubic, tmp_path):
    run_all(dataset, [bicubic], tmp_path, seed=7)
    card = json.loads((tmp_path / "pairs" / "bicubic" / "p00.json").read_text("utf-8"))
    assert (card["method"], card["seed"], card["scale"]) == ("bicubic", 7, 4)
    assert (card["device"], card["input_size"]) == ("cpu", [12, 8])
    assert set(card["versions"]) >= {"python", "pillow", "numpy"}
    for key in ("preprocessing", "postprocessing", "prompt", "steps", "colour_fix", "licence"):
        assert key in card


def test_every_method_gets_the_same_input(dataset, tmp_path):
    methods = registry.discover()
    run_all(dataset, [methods["nearest"], methods["lanczos"]], tmp_path)
    for item in dataset.items:
        hashes = {
            json.loads((tmp_path / "pairs" / name / f"{item.name}.json").read_text())[
                "input_sha256"
            ]
            for name in ("nearest", "lanczos")
        }
        assert len(hashes) == 1


def test_a_second_run_makes_nothing(dataset, bicubic, tmp_path):
    run_all(dataset, [bicubic], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    calls = []
    summary = run_all(dataset, [counting(bicubic, calls)], tmp_path)
    assert (summary.made, summary.found, calls) == (0, 4, [])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before


def test_only_what_is_missing_is_made_again(dataset, bicubic, tmp_path):
    run_all(dataset, [bicubic], tmp_path)
    whole = tree(tmp_path)
    (tmp_path / "pairs" / "bicubic" / "p01.json").unlink()
    (tmp_path / "pairs" / "bicubic" / "p02.png").unlink()
    calls = []
    run_all(dataset, [counting(bicubic, calls)], tmp_path)
    assert len(calls) == 2
    assert tree(tmp_path) == whole


@pytest.mark.parametrize("change", ["seed", "input"])
def test_results_of_another_seed_or_input_are_refused_not_mixed(dataset, bicubic, tmp_path, change):
    run_all(dataset, [bicubic], tmp_path / "out")
    if change == "input":
        picture(99).save(dataset.items[0].lq)
    word = {"seed": "another seed", "input": "another input_sha256"}[change]
    with pytest.raises(RunnerError, match=word):
        run_all(dataset, [bicubic], tmp_path / "out", seed=1 if change == "seed" else 0)


def test_a_failure_stops_neither_the_others_nor_the_next_try(dataset, bicubic, tmp_path):
    summary = run_all(dataset, [counting(bicubic, [], fail={2})], tmp_path)
    assert summary.failures == (("bicubic", "p01", "This one is too strange."),)
    assert summary.made == 3
    assert not (tmp_path / "pairs" / "bicubic" / "p01.png").exists()
    assert run_all(dataset, [bicubic], tmp_path).made == 1


def test_a_picture_of_the_wrong_size_is_a_failure(dataset, bicubic, tmp_path):
    class Half:
        def restore(self, lq, *, seed=0):
            return timed("bicubic", seed, lambda: lq)

    summary = run_all(dataset, [replace(bicubic, load=lambda device: Half())], tmp_path)
    assert summary.made == 0
    assert "12 × 8 in mode RGB; 48 × 32 in RGB was promised" in summary.failures[0][2]


def test_a_method_of_another_scale_than_the_references_is_refused(dataset, bicubic, tmp_path):
    with pytest.raises(RunnerError, match="enlarges 2 times"):
        run_all(dataset, [replace(bicubic, scale=2)], tmp_path)


@pytest.mark.parametrize("name", ["lq", "gt", "", ".work", "a/b"])
def test_a_method_may_not_have_the_name_of_another_folder(dataset, bicubic, tmp_path, name):
    with pytest.raises(RunnerError, match="cannot be the name"):
        run_all(dataset, [replace(bicubic, name=name)], tmp_path)


KILLED = """
import sys, time
from dataclasses import replace
from pathlib import Path
from baselines import registry
from evaluation import runner
from evaluation.datasets import open_folder

pause = float(sys.argv[3])

class Slow:
    def __init__(self, inner):
        self.inner = inner
    def restore(self, lq, *, seed=0):
        time.sleep(pause)
        return self.inner.restore(lq, seed=seed)

method = registry.discover("baselines")[sys.argv[4]]
load = method.load
method = replace(method, load=lambda device: Slow(load(device)))
print("ready", flush=True)
runner.run_all(open_folder(Path(sys.argv[1])), [method], Path(sys.argv[2]))
"""


def start(pairs, out, pause=0.0, method="bicubic"):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(pairs), str(out), str(pause), method],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


FORKED = textwrap.dedent(
    """
    import os, random, signal, sys, time
    from pathlib import Path
    from baselines import registry
    from evaluation import runner
    from evaluation.datasets import open_folder

    # One process loads the packages; what is killed are its children, at a random moment each.
    pairs, out, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    dice = random.Random(5)
    method = registry.discover()["bicubic"]
    dataset = open_folder(pairs)
    killed = hits = tries = 0
    # a kill shows something where it leaves a picture in the making: on some machines few do
    while (killed < kills or not hits) and tries < 500:
        tries += 1
        child = os.fork()
        if child == 0:
            runner.run_all(dataset, [method], out)
            os._exit(0)
        time.sleep(dice.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        hits += any(out.rglob("*.lock")) or any(out.rglob("*.part"))
        if not os.WIFSIGNALED(status):  # it was done before: take some of it away again
            folder = out / "pairs" / "bicubic"
            for path in dice.sample(sorted(folder.glob("*.json")), 20):
                path.unlink()
    runner.run_all(dataset, [method], out)
    print(killed, hits)
    """
)


def test_twenty_kills_at_random_moments_leave_the_same_folder_byte_for_byte(bicubic, tmp_path):
    pairs = make_set(tmp_path / "pairs", count=40, size=(24, 16))
    run_all(open_folder(pairs), [bicubic], tmp_path / "undisturbed")
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(pairs), str(tmp_path / "killed"), "20"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    killed, hits = map(int, done.stdout.split())
    assert killed >= 20
    assert hits > 0  # else no kill hit a picture in the making, and this showed nothing
    assert tree(tmp_path / "killed") == tree(tmp_path / "undisturbed")


def test_two_processes_share_the_work_and_give_the_same_folder_as_one(bicubic, tmp_path):
    pairs = make_set(tmp_path / "pairs", count=12)
    run_all(open_folder(pairs), [bicubic], tmp_path / "one")
    both = [start(pairs, tmp_path / "two", pause=0.1) for _ in range(2)]
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
    lines = (tmp_path / "two" / "pairs" / "bicubic" / runner.SECONDS).read_text().splitlines()
    pictures = [json.loads(line)["picture"] for line in lines]
    assert len(pictures) == len(set(pictures)) == 12  # nothing was made twice


def test_accelerate_launches_two_processes_that_give_the_same_folder_as_one(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
    pairs = make_set(tmp_path / "pairs", count=12)
    run_all(open_folder(pairs), [registry.discover()["nearest"]], tmp_path / "one")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            # told of CPUs it starts one process; told of GPUs it starts all without looking for any
            *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
            *("--dynamo_backend", "no", "--mixed_precision", "no"),
            *("--main_process_port", str(port), "-m", "evaluation.runner", str(pairs)),
            *("--methods", "nearest", "--out", str(tmp_path / "two")),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # each of the two says what it made and what the other had made
    counts = re.findall(r"(\d+) made, (\d+) there already, 0 failed", done.stderr)
    assert len(counts) == 2
    assert sum(int(made) for made, _ in counts) == 12
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


def test_the_work_of_a_killed_process_is_taken_over_by_one_that_waits(bicubic, tmp_path):
    pairs = make_set(tmp_path / "pairs", count=1)
    run_all(open_folder(pairs), [bicubic], tmp_path / "one")
    stuck = start(pairs, tmp_path / "out", pause=600)
    lock = tmp_path / "out" / "pairs" / runner.WORK / "bicubic--p00.lock"
    deadline = time.monotonic() + 60
    while not lock.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    waiting = threading.Thread(
        target=run_all, args=(open_folder(pairs), [bicubic], tmp_path / "out"), daemon=True
    )
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    stuck.send_signal(signal.SIGKILL)
    stuck.communicate(timeout=30)
    waiting.join(30)
    assert not waiting.is_alive()
    assert tree(tmp_path / "out") == tree(tmp_path / "one")


def test_a_torn_line_of_seconds_is_skipped(tmp_path):
    (tmp_path / runner.SECONDS).write_text(
        '{"picture": "a", "seconds": 1.5}\n{"picture": "b", "sec\n{"picture": "a", "seconds": 2}\n'
    )
    assert runner.seconds(tmp_path) == {"a": 2.0}


def test_the_time_left_is_what_remains_at_this_methods_pace():
    assert Progress(10, 110, "x", made=0, seconds=5.0).remaining_seconds is None
    assert Progress(10, 110, "x", made=5, seconds=10.0).remaining_seconds == 200


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (89, "89 s"), (200, "3 min"), (7500, "2 h 05 min")]
)
def test_time_is_said_as_people_say_it(seconds, text):
    assert runner.clock(seconds) == text


def test_a_log_gets_lines_and_the_last_one_always():
    stream = io.StringIO()
    line = ProgressLine(stream)
    for done in range(1, 6):
        line(Progress(done, 5, "Bicubic", done, float(done)))
    assert stream.getvalue() == "1/5 Bicubic, 4 s left\n5/5 Bicubic, 0 s left\n"


def test_the_command_line_runs_a_set_with_its_saved_outputs_and_others(tmp_path, capsys):
    pairs = make_set(tmp_path / "pairs", count=2)
    for name in ("results_theirs", "mine"):
        (pairs / name).mkdir()
        for i in range(2):
            picture(i + 50, (48, 32)).save(pairs / name / f"p{i:02}.png")
    out = tmp_path / "out"
    arguments = [str(pairs), "--methods", "nearest,theirs,mine", "--out", str(out)]
    assert runner.main([*arguments, "--saved", f"mine={pairs / 'mine'}"]) == 0
    assert "6 made, 0 there already, 0 failed" in capsys.readouterr().err
    made = Image.open(out / "pairs" / "theirs" / "p01.png")
    assert made.tobytes() == picture(51, (48, 32)).tobytes()


def test_saved_outputs_of_a_method_we_have_get_a_name_of_their_own(tmp_path):
    pairs = make_set(tmp_path / "pairs", count=2)
    saved = pairs / "results_osediff"
    saved.mkdir()
    for i in range(2):
        picture(i + 70, (48, 32)).save(saved / f"p{i:02}.png")
    arguments = [str(pairs), "--methods", "osediff-saved", "--out", str(tmp_path / "out")]
    assert runner.main(arguments) == 0
    card = json.loads((tmp_path / "out" / "pairs" / "osediff-saved" / "p00.json").read_text())
    assert card["title"] == "OSEDiff (saved outputs)"
    assert card["parameters"] == registry.discover()["osediff"].parameters


@pytest.mark.parametrize(
    "more", [["--saved", "bicubic=."], ["--saved", "mine=.", "--remote", "mine=http://127.0.0.1:1"]]
)
def test_a_name_that_is_taken_is_refused_with_a_sentence(tmp_path, capsys, more):
    pairs = make_set(tmp_path / "pairs", count=1)
    arguments = [str(pairs), "--methods", "nearest", "--out", str(tmp_path / "out")]
    assert runner.main([*arguments, *more]) == 1
    assert "something else" in capsys.readouterr().err


def test_an_unknown_method_is_named_with_those_there_are(tmp_path, capsys):
    pairs = make_set(tmp_path / "pairs", count=1)
    assert runner.main([str(pairs), "--methods", "magic", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "There is no method 'magic'" in said
    assert "bicubic" in said


def test_the_command_line_can_make_the_inputs_itself(tmp_path):
    references = tmp_path / "photos"
    references.mkdir()
    for i in range(2):
        picture(i, (70, 66)).save(references / f"r{i}.png")
    arguments = ["--methods", "bicubic", "--degrade", str(references), "--side", "64"]
    for out in ("a", "b"):
        pairs = str(tmp_path / out / "set")
        (tmp_path / out).mkdir()
        assert runner.main([pairs, *arguments, "--out", str(tmp_path / out / "results")]) == 0
    first = tree(tmp_path / "a")
    assert first == tree(tmp_path / "b")
    assert "results/set/bicubic/r1.json" in first
    assert Image.open(tmp_path / "a" / "set" / "lq" / "r0.png").size == (16, 16)


def test_the_number_of_pictures_can_be_limited(tmp_path):
    pairs = make_set(tmp_path / "pairs", count=3)
    arguments = [str(pairs), "--methods", "nearest", "--out", str(tmp_path / "out"), "--limit", "2"]
    assert runner.main(arguments) == 0
    assert len(list((tmp_path / "out" / "pairs" / "nearest").glob("*.png"))) == 2


def test_saved_outputs_run_like_any_method(dataset, tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    for i in range(4):
        picture(i + 70, (48, 32)).save(saved / f"p{i:02}.png")
    method = precomputed.method("theirs", saved, [item.lq for item in dataset.items])
    assert isinstance(method, Method)
    assert run_all(dataset, [method], tmp_path / "out").made == 4
    assert runner.seconds(tmp_path / "out" / "pairs" / "theirs") == {}
