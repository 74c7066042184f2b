"""How fast decoding is, and by what: `make bench`; writes docs/benchmarks.json.

Arms that are compared run in the same round, one after another and in alternating order, and
ratios are taken within a round: on a shared machine single times say little. Times are processor
seconds of one thread unless asked otherwise. Models of random weights measure time only; how many
codes a pass decides is measured with PURE-nano on the example photos, which were held out of its
training.
"""

import argparse
import hashlib
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imaging import convert
from imaging.load import read_photo
from pure.checkpoint import Checkpoint, load
from pure.cost import EAGER_LAUNCH, MACHINES, body_weights, cache_bytes, image_seconds
from pure.decode import PLAIN, Conversation, DecoderConfig, write
from pure.engine import Engine, Precision
from pure.grammar import Grammar, Grid
from pure.model import CONFIGS, Transformer, TransformerConfig
from pure.picture import Picture
from pure.sampling import SamplingConfig, draw, noise
from pure.vocab import Vocab
from tools import published_path
from tools.sjd import speculative

log = logging.getLogger(__name__)

CODES, OTHERS = 16_384, 4096  # image ids and the rest of the random models' vocabulary
SIZES = {
    "small": TransformerConfig(CODES + OTHERS, 256, 704, 6, 8, 8),
    "mid": TransformerConfig(CODES + OTHERS, 512, 1408, 8, 8, 8),
}
INSTRUCTION = 25  # ids of the prompt besides the picture
BANDWIDTH_MEGABYTES = 256
SAMPLING = SamplingConfig()
SJD_WINDOW = 16  # as published
VERDICT_AT = 1.0  # a ratio whose range includes it decides nothing

Arm = Callable[[], float]
Rounds = dict[str, list[float]]


def vocabulary() -> Vocab:
    """Ids of the random models: structure and text first, then the codes."""
    return Vocab(
        size=CODES + OTHERS,
        bos=0,
        pad=1,
        end_turn=2,
        begin_image=3,
        end_image=4,
        newline=6,
        codes=tuple(range(OTHERS, OTHERS + CODES)),
        grids=tuple(range(10, 42)),
        text=tuple(range(100, OTHERS)),
        sentence_ends=frozenset({100}),
    )


class Clock:
    """Processor or wall-clock seconds of a call."""

    def __init__(self, kind: str) -> None:
        self.now = time.process_time if kind == "cpu" else time.perf_counter

    def of(self, call: Callable[[], object]) -> float:
        start = self.now()
        call()
        return self.now() - start


def paired(arms: dict[str, Arm], rounds: int) -> Rounds:
    """Seconds of every arm in every round, after one round to warm up."""
    names = list(arms)
    seconds: Rounds = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            value = arms[name]()
            if number:
                seconds[name].append(value)
    return seconds


def ratio(seconds: Rounds, base: str, arm: str) -> dict[str, float]:
    """How many times faster `arm` is than `base`: median and range over the rounds."""
    values = [a / b for a, b in zip(seconds[base], seconds[arm], strict=True)]
    return spread(values)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "low": round(ordered[0], 3),
        "high": round(ordered[-1], 3),
    }


def random_model(size: str) -> Transformer:
    """A transformer of random weights."""
    torch.manual_seed(0)
    return Transformer(SIZES[size]).eval().requires_grad_(False)


def conversation(engine: Engine, grammar: Grammar, side: int) -> Conversation:
    """A random picture of side × side codes, read."""
    codes = torch.randint(CODES, (side, side), generator=torch.Generator().manual_seed(1))
    text = grammar.vocab.text[:INSTRUCTION]
    return Conversation(
        engine, grammar, grammar.prompt(text, codes), Grid(side, side), text_limit=0
    )


def some_passes(
    engine: Engine, picture: Picture, tokens: int, decoder: DecoderConfig = PLAIN
) -> None:
    """Write a picture until `tokens` passes have been made."""
    left = iter(range(tokens))
    list(write(engine, [picture], decoder, stop=lambda: next(left, None) is None))


def plain_arm(talk: Conversation, tokens: int, clock: Clock) -> Arm:
    """Seconds a token of our engine, from the first code on."""

    def run() -> float:
        first = clock.of(lambda: some_passes(talk.engine, talk.picture([], SAMPLING), 1))
        both = clock.of(lambda: some_passes(talk.engine, talk.picture([], SAMPLING), 1 + tokens))
        return (both - first) / tokens

    return run


def published_arm(
    size: str, model: Transformer, talk: Conversation, tokens: int, clock: Clock
) -> Arm:
    """Seconds a token of the published way, prompt and first token taken off."""
    vocab = talk.grammar.vocab
    theirs = published_path.as_published(SIZES[size], model)
    ids = torch.tensor([[*talk.prompt, *talk.grammar.opening(talk.grid)]])

    def continued(n: int) -> float:
        return clock.of(
            lambda: published_path.generate(
                theirs,
                ids,
                n,
                begin=vocab.begin_image,
                newline=vocab.newline,
                codes=vocab.code_ids,
                columns=talk.grid.columns,
                config=SAMPLING,
            )
        )

    return lambda: (continued(1 + tokens) - continued(1)) / tokens


def bandwidth(clock: Clock) -> float:
    """Bytes a second that summing a written buffer reads."""
    buffer = torch.ones(BANDWIDTH_MEGABYTES * 2**18)
    return buffer.numel() * 4 / min(clock.of(buffer.sum) for _ in range(3))


def bench_plain(
    size: str, side: int, precisions: tuple[Precision, ...], tokens: int, rounds: int, clock: Clock
) -> dict[str, Any]:
    """The published way against ours at each precision; share of the bandwidth limit."""
    grammar = Grammar(vocabulary())
    model = random_model(size)
    talks = {
        precision: conversation(
            Engine(model, grammar.vocab.code_ids, precision=precision, reproducible=False),
            grammar,
            side,
        )
        for precision in precisions
    }
    exact = talks["float32"]
    arms = {"published": published_arm(size, model, exact, tokens, clock)}
    arms |= {name: plain_arm(talk, tokens, clock) for name, talk in talks.items()}
    speed: list[float] = []

    def measured() -> float:
        speed.append(bandwidth(clock))
        return 1 / speed[-1]

    arms["bandwidth"] = measured
    seconds = paired(arms, rounds)
    config = SIZES[size]
    context = len(exact.prompt) + 2 * (3 + tokens / 2)
    read = 4 * (body_weights(config) + CODES * config.hidden_size)
    read += int(cache_bytes(config, 1, 4) * context)
    shares = [read * b / t for b, t in zip(seconds["bandwidth"], seconds["float32"], strict=True)]
    return {
        "seconds_per_token": seconds,
        "kernels": {name: talk.engine.kernels for name, talk in talks.items()},
        "faster_than_published": {name: ratio(seconds, "published", name) for name in precisions},
        "bandwidth_share": spread(shares),
        "quality": {name: quality(exact, talk) for name, talk in talks.items()},
    }


def quality(exact: Conversation, other: Conversation) -> dict[str, float]:
    """Of one prompt's continuation: how often the most likely code is the same, and |dH|."""
    facts = []
    for talk in (exact, other):
        picture = talk.picture([], SamplingConfig(mode="top1"), draft=exact.seen())
        window = picture.window(32)
        rows = talk.engine.hidden(picture.rows(window), picture.caches)
        cond, uncond = (talk.engine.image_logits(state) for state in picture.before(window, rows))
        logits = uncond + SAMPLING.guidance_scale * (cond - uncond)
        log_probs = logits.log_softmax(-1)
        facts.append((logits.argmax(-1), -(log_probs.exp() * log_probs).sum(-1)))
    (codes, nats), (other_codes, other_nats) = facts
    return {
        "same_top1": round(float((codes == other_codes).float().mean()), 3),
        "entropy_difference": round(float((nats - other_nats).abs().mean()), 5),
    }


def bench_sampler(rounds: int, clock: Clock) -> dict[str, Any]:
    """A draw from the image codes against one from the published vocabulary of 73,728."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, CODES, generator=generator)
    scores = torch.full((1, 73_728), -torch.inf)
    scores[:, -CODES:] = logits
    repeats = 20
    places = iter(range(10**9))

    def ours() -> None:
        for _ in range(repeats):
            draw(logits, SAMPLING, noise(0, next(places), CODES)[None])

    def theirs() -> None:
        for _ in range(repeats):
            published_path.full_draw(scores, SAMPLING, generator)

    arms = {"published": lambda: clock.of(theirs), "ours": lambda: clock.of(ours)}
    seconds = paired(arms, rounds)
    return {"seconds_per_20": seconds, "faster": ratio(seconds, "published", "ours")}


def bench_tiles(rounds: int, clock: Clock, tokens: int) -> dict[str, Any]:
    """Four pictures in one pass against four runs."""
    grammar = Grammar(vocabulary())
    engine = Engine(random_model("mid"), grammar.vocab.code_ids, reproducible=False)
    talk = conversation(engine, grammar, 16)
    forks = [talk.fork() for _ in range(4)]

    def pictures() -> list[Picture]:
        return [t.picture([], SAMPLING, seed=i) for i, t in enumerate(forks)]

    def together() -> float:
        left = iter(range(tokens))
        work = pictures()
        return clock.of(
            lambda: list(write(engine, work, PLAIN, stop=lambda: next(left, None) is None))
        )

    def apart() -> float:
        work = pictures()

        def run() -> None:
            for picture in work:
                some_passes(engine, picture, tokens)

        return clock.of(run)

    seconds = paired({"apart": apart, "together": together}, rounds)
    return {"seconds": seconds, "throughput": ratio(seconds, "apart", "together")}


def talk_about(checkpoint: Checkpoint, engine: Engine, path: Path) -> Conversation:
    """A photo at native size, read by PURE-nano."""
    picture = convert.resize(read_photo(path), (checkpoint.native, checkpoint.native))
    side = checkpoint.native // checkpoint.vq.factor
    codes = checkpoint.vq.encode_image(picture)
    ids = checkpoint.grammar.prompt(checkpoint.text.instruction(), codes)
    return Conversation(
        engine, checkpoint.grammar, ids, Grid(side, side), text_limit=checkpoint.text_limit
    )


def bench_nano(
    photos: list[Path], seeds: int, windows: list[int | None], clock: Clock
) -> dict[str, Any]:
    """Codes a pass and seconds, by window and draft, each beside plain decoding of the same."""
    checkpoint = load("nano")
    codes = checkpoint.grammar.vocab.code_ids
    engine = Engine(checkpoint.model, codes)
    fast = Engine(checkpoint.model, codes, reproducible=False)
    table: dict[str, dict[str, list[float]]] = {}
    hashes: dict[str, str] = {}
    pairs = identical = 0

    def note(arm: str, per_pass: float, gain: float) -> None:
        row = table.setdefault(arm, {"ids_per_pass": [], "wall_gain": []})
        row["ids_per_pass"].append(round(per_pass, 3))
        row["wall_gain"].append(round(gain, 3))

    for path in photos:
        talk, quick = (talk_about(checkpoint, e, path) for e in (engine, fast))
        text = [step.id for step in talk.write_text()]
        cells = talk.grid.rows * talk.grid.columns
        reference = path.with_name(f"{path.stem}_gt.png")
        drafts: dict[str, torch.Tensor | None] = {"input": None}
        if reference.exists():
            side = checkpoint.native
            best = convert.resize(read_photo(reference), (side, side))
            drafts["reference"] = checkpoint.vq.encode_image(best).cpu()
        for seed in range(seeds):
            plain = written(talk, text, seed, PLAIN)
            baseline = clock.of(partial(written, quick, text, seed, PLAIN))
            hashes[f"{path.stem}/{seed}"] = hashlib.sha256(str(plain).encode()).hexdigest()[:16]
            earlier = written(talk, text, seed + 1000, DecoderConfig("parallel", 16))
            drafts["other seed"] = torch.tensor(earlier).view(talk.grid.rows, -1)
            for window in windows:
                for name, draft in drafts.items():
                    if name != "input" and window is not None:
                        continue  # other drafts at the default window only
                    before = engine.passes
                    config = DecoderConfig("parallel", window)
                    start = clock.now()
                    got = written(talk, text, seed, config, draft)
                    spent = clock.now() - start
                    pairs, identical = pairs + 1, identical + (got == plain)
                    arm = f"parallel, window {window or 'adaptive'}, draft {name}"
                    note(arm, cells / (engine.passes - before), baseline / spent)
            picture = quick.picture(text, SAMPLING)
            before, start = fast.passes, clock.now()
            generator = torch.Generator().manual_seed(seed)
            list(speculative(fast, picture, SAMPLING, SJD_WINDOW, generator))
            spent = clock.now() - start
            arm = f"SJD, window {SJD_WINDOW}, draft input"
            note(arm, cells / (fast.passes - before), baseline / spent)
        log.info("restored %s", path.name)
    return {
        "checkpoint": checkpoint.name,
        "grid": [talk.grid.rows, talk.grid.columns],
        "photos": [path.name for path in photos],
        "seeds": seeds,
        "compared": pairs,
        "identical": identical,
        "hashes": hashes,
        "raw": table,
        "table": {
            arm: {key: spread(values) for key, values in row.items()} for arm, row in table.items()
        },
    }


def written(
    talk: Conversation,
    text: list[int],
    seed: int,
    decoder: DecoderConfig,
    draft: torch.Tensor | None = None,
) -> list[int]:
    """Codes of a picture."""
    steps = talk.restore(text, SAMPLING, seed=seed, decoder=decoder, draft=draft)
    return [step.code for step in steps if step.code is not None]


def estimates() -> dict[str, dict[str, float]]:
    """Seconds for 512 × 512 by the released model, computed and not measured."""
    released = CONFIGS["7b"]
    return {
        machine.name: {
            "eager, one pass a code": round(image_seconds(released, machine, launch=EAGER_LAUNCH)),
            "graph, one pass a code": round(image_seconds(released, machine)),
            "graph, 3 codes a pass": round(
                image_seconds(released, machine, ids_per_pass=3, width=16)
            ),
        }
        for machine in MACHINES
    }


def machine_facts() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All sections, as the JSON file holds them."""
    clock, rounds = Clock(arguments.clock), arguments.rounds
    tokens = 8 if arguments.quick else 24
    before = machine_facts()
    plain = {}
    sections: list[tuple[str, str, int, tuple[Precision, ...]]] = [
        ("small16", "small", 16, ("float32",)),
        ("mid16", "mid", 16, ("float32", "bfloat16", "int8")),
        ("mid32", "mid", 32, ("float32",)),
    ]
    for name, size, side, precisions in sections:
        plain[name] = bench_plain(size, side, precisions, tokens, rounds, clock)
        log.info("%s: %s", name, plain[name]["faster_than_published"])
    sampler = bench_sampler(rounds, clock)
    tiles = bench_tiles(rounds, clock, tokens)
    photos = sorted(p for p in arguments.photos.glob("*.png") if not p.stem.endswith("_gt"))
    windows: list[int | None] = [8, 16, 32, None]
    if arguments.quick:
        photos, windows = photos[:2], [16, None]
    nano = bench_nano(photos, 1 if arguments.quick else arguments.seeds, windows, clock)
    default = nano["raw"]["parallel, window adaptive, draft input"]
    faster = {name: section["faster_than_published"] for name, section in plain.items()}
    low, high = faster["mid16"]["float32"], faster["mid32"]["float32"]
    return {
        "summary": {
            "plain_fp32_small16": faster["small16"]["float32"],
            "plain_fp32_mid16": low,
            "plain_bf16_mid16": faster["mid16"]["bfloat16"],
            "plain_int8_mid16": faster["mid16"]["int8"],
            "mid32_over_mid16": {
                "median": round(high["median"] / low["median"], 3),
                "low": round(high["low"] / low["high"], 3),
                "high": round(high["high"] / low["low"], 3),
            },
            "sampler": sampler["faster"],
            "nano_ids_per_pass": spread(default["ids_per_pass"]),
            "nano_parallel_gain": spread(default["wall_gain"]),
            "tiles4": tiles["throughput"],
            "bandwidth_share_mid16": plain["mid16"]["bandwidth_share"],
        },
        "clock": arguments.clock,
        "rounds": rounds,
        "tokens": tokens,
        "machine": before | {"load_after": [round(x, 2) for x in os.getloadavg()]},
        "plain": plain,
        "sampler": sampler,
        "tiles": tiles,
        "nano": nano,
        "estimates_seconds": estimates(),
    }


def told(results: dict[str, Any]) -> str:
    """The summary as lines; a ratio whose range includes 1 is no verdict."""
    lines = []
    for name, value in results["summary"].items():
        line = f"{name:24} {value['median']:7.2f}  [{value['low']:.2f} to {value['high']:.2f}]"
        share = name.startswith("bandwidth") or name.startswith("mid32")
        if not share and value["low"] <= VERDICT_AT <= value["high"]:
            line += "  undecided"
        lines.append(line)
    nano = results["nano"]
    lines.append(f"identical to plain: {nano['identical']} of {nano['compared']}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line: `python -m tools.bench [--quick]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tokens, photos and windows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2, help="of each photo")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--photos", type=Path, default=Path("examples"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.json"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    idle = (os.cpu_count() or 1) - os.getloadavg()[0]
    if arguments.clock == "wall" and idle < arguments.threads:
        log.warning("the machine is busy: wall-clock times of it say little")
    with torch.inference_mode():
        results = run(arguments)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(told(results))


if __name__ == "__main__":
    main()
