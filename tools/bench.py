"""How fast decoding is, and by what: `make bench`; writes docs/benchmarks.json and the tables.

In stages, each of which can be run again by itself: "speed" times random models, "nano" counts and
times what PURE-nano decides in parallel, "identity" compares its whole pictures. The other
stages' numbers stay as they are in the file.

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
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imaging import convert
from imaging.load import read_photo
from pure.checkpoint import NANO, Checkpoint, load
from pure.cost import (
    EAGER_LAUNCH,
    MACHINES,
    Workload,
    body_weights,
    cache_bytes,
    image_seconds,
    kept_bytes,
)
from pure.decode import PARALLEL, PLAIN, Conversation, DecoderConfig, write
from pure.engine import Engine, Precision
from pure.grammar import Grammar, Grid
from pure.model import CONFIGS, Transformer, TransformerConfig
from pure.picture import Picture, predict
from pure.pipeline import PurePipeline, RestoreSettings, Row
from pure.sampling import SamplingConfig, draw, entropy, noise
from pure.vocab import Vocab
from tools import bench_tables, published_path
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
WINDOWS: tuple[int | None, ...] = (8, 16, 32, None)  # None adapts it
DRAFTS = ("input", "reference", "other seed")
DEFAULT = "parallel, window adaptive, draft input"
FEW_PHOTOS = 3  # for what hardly depends on the photo
STAGES = ("speed", "nano", "identity")
LEAST_SHARE = 0.7  # of a recorded ratio, else `--check` fails
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


def static_arm(size: str, model: Transformer, talk: Conversation, tokens: int, clock: Clock) -> Arm:
    """Seconds a token of `transformers` with a static cache and batched guidance."""
    vocab = talk.grammar.vocab
    static = published_path.Static(
        published_path.as_published(SIZES[size], model),
        torch.tensor([[*talk.prompt, *talk.grammar.opening(talk.grid)]]),
        1 + tokens,
        begin=vocab.begin_image,
        newline=vocab.newline,
        codes=vocab.code_ids,
        columns=talk.grid.columns,
        config=SAMPLING,
    )

    def run() -> float:
        first = clock.of(lambda: static.generate(1))
        return (clock.of(lambda: static.generate(1 + tokens)) - first) / tokens

    return run


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
    arms = {
        "published": published_arm(size, model, exact, tokens, clock),
        "static": static_arm(size, model, exact, tokens, clock),
    }
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
        "faster_than_published": {
            name: ratio(seconds, "published", name) for name in ("static", *precisions)
        },
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


def reference_of(path: Path) -> Path:
    """Where the photo lies that an example was degraded from."""
    return path.with_name(f"{path.stem}_gt.png")


def drafts_for(
    talk: Conversation, text: list[int], seed: int, path: Path, checkpoint: Checkpoint
) -> dict[str, Callable[[], torch.Tensor | None]]:
    """What can be tried first: the photo, the best a restorer could do, another seed's result."""
    side = checkpoint.native

    def best() -> torch.Tensor:
        reference = read_photo(reference_of(path))
        return checkpoint.vq.encode_image(convert.resize(reference, (side, side))).cpu()

    def earlier() -> torch.Tensor:
        decoder, config = DecoderConfig("parallel", 16), checkpoint.sampling
        other = written(talk, text, seed + 1000, decoder, config=config)
        return torch.tensor(other).view(talk.grid.rows, -1)

    return dict(zip(DRAFTS, (lambda: None, best, earlier), strict=True))


def bench_nano(photos: list[Path], clock: Clock) -> dict[str, Any]:
    """Codes a pass and seconds, by window and draft, each beside plain decoding of the same."""
    checkpoint = load("nano")
    codes = checkpoint.grammar.vocab.code_ids
    engine = Engine(checkpoint.model, codes)
    fast = Engine(checkpoint.model, codes, reproducible=False)
    config = checkpoint.sampling
    counted: dict[str, list[float]] = {}
    gains: dict[str, list[float]] = {}
    plain_seconds: list[float] = []
    compared = identical = 0
    for seed, path in enumerate(photos):
        talk, quick = (talk_about(checkpoint, e, path) for e in (engine, fast))
        text = [step.id for step in talk.write_text()]
        cells = talk.grid.rows * talk.grid.columns
        plain = written(talk, text, seed, PLAIN, config=config)
        baseline = partial(clock.of, partial(written, quick, text, seed, PLAIN, config=config))
        spent: dict[str, float] = {}
        around = [baseline()]
        for name, make in drafts_for(talk, text, seed, path, checkpoint).items():
            draft = make()
            for window in WINDOWS:
                arm = f"parallel, window {window or 'adaptive'}, draft {name}"
                before, start = engine.passes, clock.now()
                decoder = DecoderConfig("parallel", window)
                got = written(talk, text, seed, decoder, draft, config=config)
                spent[arm] = clock.now() - start
                counted.setdefault(arm, []).append(round(cells / (engine.passes - before), 3))
                compared, identical = compared + 1, identical + (got == plain)
        picture = quick.picture(text, config)
        before, start = fast.passes, clock.now()
        list(speculative(fast, picture, config, SJD_WINDOW, torch.Generator().manual_seed(seed)))
        arm = f"SJD, window {SJD_WINDOW}, draft input"
        spent[arm] = clock.now() - start
        counted.setdefault(arm, []).append(round(cells / (fast.passes - before), 3))
        around.append(baseline())
        plain_seconds.append(statistics.mean(around))
        for arm, seconds in spent.items():
            gains.setdefault(arm, []).append(round(plain_seconds[-1] / seconds, 3))
        log.info("restored %s", path.name)
    return {
        "checkpoint": checkpoint.name,
        "weights": weights_hash(),
        "sampling": asdict(config),
        "grid": [talk.grid.rows, talk.grid.columns],
        "photos": [path.name for path in photos],
        "compared": compared,
        "identical": identical,
        "plain_seconds": plain_seconds,
        "raw": {arm: {"ids_per_pass": counted[arm], "gain": gains[arm]} for arm in counted},
        "table": {
            arm: {"ids_per_pass": spread(counted[arm]), "gain": spread(gains[arm])}
            for arm in counted
        },
        "quality": nano_quality(checkpoint, photos[:FEW_PHOTOS]),
        "preview": preview(checkpoint, photos, clock),
        "cache": nano_cache(checkpoint, talk),
    }


def weights_hash() -> str:
    """Which PURE-nano was measured: the beginning of its weights' SHA-256."""
    return hashlib.sha256((NANO / "model.safetensors").read_bytes()).hexdigest()[:12]


def nano_quality(checkpoint: Checkpoint, photos: list[Path]) -> dict[str, dict[str, float]]:
    """What a precision changes: the logits at every code of a picture, and the picture.

    All precisions read the codes that float32 drew, so that places can be compared; "psnr" is of
    the picture each draws itself with the same noise, to that of float32, in dB.
    """
    codes, config = checkpoint.grammar.vocab.code_ids, checkpoint.sampling
    facts: dict[str, list[dict[str, float]]] = {"bfloat16": [], "int8": []}
    exact = Engine(checkpoint.model, codes)
    others = {
        name: Engine(checkpoint.model, codes, precision=name)  # type: ignore[arg-type]  # members
        for name in facts
    }
    for path in photos:
        talk = talk_about(checkpoint, exact, path)
        text = [step.id for step in talk.write_text()]
        drawn = torch.tensor(written(talk, text, 0, PARALLEL, config=config))
        drawn = drawn.view(talk.grid.rows, -1)
        expected = all_logits(talk, text, drawn, config)
        for name, engine in others.items():
            other = talk_about(checkpoint, engine, path)
            own = torch.tensor(written(other, text, 0, PLAIN, config=config)).view(drawn.shape)
            one, two = (checkpoint.vq.decode(grid[None]) for grid in (drawn, own))
            error = float((one - two).square().mean())
            fact = differences(expected, all_logits(other, text, drawn, config))
            fact["psnr"] = 10 * math.log10(1 / max(error, 1e-10))
            facts[name].append(fact)
    return {
        name: {key: round(statistics.mean(f[key] for f in rows), 4) for key in rows[0]}
        for name, rows in facts.items()
    }


def all_logits(
    talk: Conversation, text: list[int], codes: torch.Tensor, config: SamplingConfig
) -> torch.Tensor:
    """Guided logits (cells, codes) at every cell of a picture that is given."""
    picture = talk.picture(text, config, draft=codes)
    return predict(talk.engine, [picture], [picture.window(codes.numel())])


def differences(expected: torch.Tensor, logits: torch.Tensor) -> dict[str, float]:
    """Share of the same most likely code, and mean |difference of entropy| in nats."""
    same = (expected.argmax(-1) == logits.argmax(-1)).float().mean()
    nats = (entropy(expected) - entropy(logits)).abs().mean()
    return {"same_top1": float(same), "entropy_difference": float(nats)}


def preview(checkpoint: Checkpoint, photos: list[Path], clock: Clock) -> dict[str, Any]:
    """When the first preview comes, reading and text included: seconds, and share of the whole."""
    pipeline = PurePipeline(checkpoint)
    told: dict[str, dict[str, Any]] = {}
    for decoder in (PLAIN, PARALLEL):
        firsts, shares = [], []
        for path in photos:
            pipeline.forget()
            start, first = clock.now(), None
            photo = convert.resize(read_photo(path), (checkpoint.native, checkpoint.native))
            for event in pipeline.stream(photo, RestoreSettings(scale=1), decoder=decoder):
                if first is None and isinstance(event, Row) and event.preview is not None:
                    first = clock.now() - start
            assert first is not None
            firsts.append(first)
            shares.append(first / (clock.now() - start))
        told[decoder.mode] = {"seconds": spread(firsts), "share": spread(shares)}
    return told


def nano_cache(checkpoint: Checkpoint, talk: Conversation) -> dict[str, float]:
    """Bytes of both caches, allocated and calculated."""
    config = checkpoint.sampling
    picture = talk.picture([], config)
    work = Workload(
        rows=talk.grid.rows,
        columns=talk.grid.columns,
        instruction=len(checkpoint.text.instruction()),
        text=checkpoint.text_limit,
        guided=config.guidance_scale != 1,
        cache_bytes=4,
    )
    return {
        "allocated": sum(cache.bytes for cache in picture.caches),
        "calculated": kept_bytes(checkpoint.model.config, work),
    }


def identity(photos: list[Path], pairs: int) -> dict[str, Any]:
    """Whole pictures of PURE-nano, in parallel and plain: every window and draft in turn."""
    checkpoint = load("nano")
    engine = Engine(checkpoint.model, checkpoint.grammar.vocab.code_ids)
    config = checkpoint.sampling
    hashes: dict[str, str] = {}
    same = 0
    for number in range(pairs):
        path, seed = photos[number % len(photos)], number // len(photos)
        talk = talk_about(checkpoint, engine, path)
        text = [step.id for step in talk.write_text()]
        plain = written(talk, text, seed, PLAIN, config=config)
        drafts = drafts_for(talk, text, seed, path, checkpoint)
        decoder, name = DecoderConfig("parallel", 2 + number % 31), DRAFTS[number % len(DRAFTS)]
        same += written(talk, text, seed, decoder, drafts[name](), config=config) == plain
        digest = hashlib.sha256(str(plain).encode()).hexdigest()
        hashes[f"{path.stem}/{seed}"] = digest[:16]
        log.info("%d of %d pictures are the same", same, number + 1)
    return {"weights": weights_hash(), "pairs": pairs, "identical": same, "hashes": hashes}


def written(
    talk: Conversation,
    text: list[int],
    seed: int,
    decoder: DecoderConfig,
    draft: torch.Tensor | None = None,
    *,
    config: SamplingConfig,
) -> list[int]:
    """Codes of a picture."""
    steps = talk.restore(text, config, seed=seed, decoder=decoder, draft=draft)
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


def measure_speed(arguments: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """What random models show."""
    tokens = 8 if arguments.quick else 24
    plain = {}
    sections: list[tuple[str, str, int, tuple[Precision, ...]]] = [
        ("small16", "small", 16, ("float32",)),
        ("mid16", "mid", 16, ("float32", "bfloat16", "int8")),
        ("mid32", "mid", 32, ("float32",)),
    ]
    for name, size, side, precisions in sections:
        plain[name] = bench_plain(size, side, precisions, tokens, arguments.rounds, clock)
        log.info("%s: %s", name, plain[name]["faster_than_published"])
    return {
        "rounds": arguments.rounds,
        "tokens": tokens,
        "plain": plain,
        "sampler": bench_sampler(arguments.rounds, clock),
        "tiles": bench_tiles(arguments.rounds, clock, tokens),
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The stages asked for, each with the machine it ran on."""
    clock = Clock(arguments.clock)
    photos = sorted(p for p in arguments.photos.glob("*.png") if reference_of(p).exists())
    if arguments.quick:
        photos = photos[:2]
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: measure_speed(arguments, clock),
        "nano": lambda: bench_nano(photos, clock),
        "identity": lambda: identity(photos, 4 if arguments.quick else arguments.pairs),
    }
    results = {}
    for name in arguments.stages:
        before = machine_facts() | {"clock": arguments.clock}
        section = stages[name]()
        load_after = [round(x, 2) for x in os.getloadavg()]
        results[name] = {"machine": before | {"load_after": load_after}} | section
    return results


def summary(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The ratios that count, of the stages there are."""
    ratios: dict[str, dict[str, float]] = {}
    if (speed := results.get("speed")) is not None:
        faster = {name: part["faster_than_published"] for name, part in speed["plain"].items()}
        low, high = faster["mid16"]["float32"], faster["mid32"]["float32"]
        ratios |= {
            "plain_fp32_small16": faster["small16"]["float32"],
            "plain_fp32_mid16": low,
            "plain_bf16_mid16": faster["mid16"]["bfloat16"],
            "plain_int8_mid16": faster["mid16"]["int8"],
            "static_mid16": faster["mid16"]["static"],
            "mid32_over_mid16": {
                "median": round(high["median"] / low["median"], 3),
                "low": round(high["low"] / low["high"], 3),
                "high": round(high["high"] / low["low"], 3),
            },
            "sampler": speed["sampler"]["faster"],
            "tiles4": speed["tiles"]["throughput"],
            "bandwidth_share_mid16": speed["plain"]["mid16"]["bandwidth_share"],
        }
    if (nano := results.get("nano")) is not None:
        ratios["nano_ids_per_pass"] = nano["table"][DEFAULT]["ids_per_pass"]
        ratios["nano_parallel_gain"] = nano["table"][DEFAULT]["gain"]
    return ratios


def too_slow(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Ratios that fell below `LEAST_SHARE` of the recorded, as sentences."""
    return [
        f"{name}: {now[name]['median']:.2f}, recorded {value['median']:.2f}"
        for name, value in recorded.items()
        if name in now and now[name]["median"] < LEAST_SHARE * value["median"]
    ]


def told(results: dict[str, Any]) -> str:
    """The summary as lines; a ratio whose range includes 1 is no verdict."""
    lines = []
    for name, value in results["summary"].items():
        line = f"{name:24} {value['median']:7.2f}  [{value['low']:.2f} to {value['high']:.2f}]"
        share = name.startswith("bandwidth") or name.startswith("mid32")
        if not share and value["low"] <= VERDICT_AT <= value["high"]:
            line += "  undecided"
        lines.append(line)
    for name in ("nano", "identity"):
        if (part := results.get(name)) is not None:
            total = part.get("compared", part.get("pairs"))
            lines.append(f"{name}: identical to plain {part['identical']} of {total}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line: `python -m tools.bench [STAGE ...] [--quick] [--check]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {STAGES}; all if none")
    parser.add_argument("--quick", action="store_true", help="fewer tokens, photos and pairs")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a recorded ratio is lost"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=50, help="photos and seeds of identity")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--photos", type=Path, default=Path("examples"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.json"))
    arguments = parser.parse_args()
    arguments.stages = arguments.stages or list(STAGES)
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"stages are {', '.join(STAGES)}, not {', '.join(sorted(unknown))}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    idle = (os.cpu_count() or 1) - os.getloadavg()[0]
    if arguments.clock == "wall" and idle < arguments.threads:
        log.warning("the machine is busy: wall-clock times of it say little")
    with torch.inference_mode():
        fresh = run(arguments)
    fresh["summary"] = summary(fresh)
    sys.stdout.write(told(fresh))
    recorded = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {}
    if arguments.check:
        if slow := too_slow(recorded["summary"], fresh["summary"]):
            raise SystemExit("Slower than recorded: " + "; ".join(slow))
        return
    merged = recorded | fresh
    stages = {name: merged[name] for name in STAGES if name in merged}
    results = {"summary": summary(stages)} | stages | {"estimates_seconds": estimates()}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = arguments.out.with_suffix(".md")
    if page.exists():
        page.write_text(bench_tables.renewed(page.read_text("utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
