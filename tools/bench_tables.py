"""The tables of docs/benchmarks.md, from docs/benchmarks.json: `make bench` writes both.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; the prose around is by hand.
"""

import json
import re
from pathlib import Path
from typing import Any

PAGE, NUMBERS = Path("docs/benchmarks.md"), Path("docs/benchmarks.json")
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TARGETS = {
    "plain_fp32_small16": "≥ 3.0",
    "plain_fp32_mid16": "≥ 2.5",
    "plain_bf16_mid16": "≥ 3.5",
    "mid32_over_mid16": "≥ 0.9",
    "bandwidth_share_mid16": "≥ 0.30",
    "sampler": "≥ 3",
    "tiles4": "≥ 1.5",
    "nano_ids_per_pass": "≥ 2",
    "nano_parallel_gain": "> 1.5",
}
Results = dict[str, Any]


def renewed(page: str, results: Results) -> str:
    """A page with the tables that `results` have numbers for."""

    def table(found: re.Match[str]) -> str:
        make, stage = TABLES[found[2]]
        return found[1] + make(results) + found[3] if stage in results else found[0]

    return PLACE.sub(table, page)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _range(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def _summary(results: Results) -> str:
    rows = [
        [f"`{name}`", TARGETS.get(name, ""), _range(value)]
        for name, value in results["summary"].items()
    ]
    return _table(["ratio", "aim", "median (range)"], rows)


def _plain(results: Results) -> str:
    rows = []
    for model, part in results["speed"]["plain"].items():
        seconds = part["seconds_per_token"]
        for arm in ("published", *part["faster_than_published"]):
            middle = sorted(seconds[arm])[len(seconds[arm]) // 2]
            faster = part["faster_than_published"].get(arm)
            name = f"{model[:-2]}/{model[-2:]}"
            times = "1" if faster is None else _range(faster)
            rows.append([name, ARMS[arm], f"{1000 * middle:.1f}", times])
    return _table(["model", "way", "ms a token", "times faster"], rows)


ARMS = {
    "published": "(a) as published",
    "static": "(b) static cache, batched guidance",
    "float32": "(c) ours, float32",
    "bfloat16": "(c) ours, bfloat16",
    "int8": "(c) ours, int8 weights",
}


def _nano(results: Results) -> str:
    rows = []
    for arm, value in results["nano"]["table"].items():
        decoder, draft = arm.split(", draft ")
        rows.append([decoder, draft, _range(value["ids_per_pass"]), _range(value["gain"])])
    return _table(["decoder", "draft", "codes a pass", "times faster than plain"], rows)


def _measured(results: Results) -> str:
    nano = results["nano"]
    sides = " × ".join(map(str, nano["grid"]))
    first = {
        fact: ", ".join(f"{mode} {_range(value[fact])}" for mode, value in nano["preview"].items())
        for fact in ("seconds", "share")
    }
    cache = nano["cache"]
    facts = [
        ["weights (SHA-256 begins)", f"`{nano['weights']}`"],
        ["grid", sides],
        ["sampling", ", ".join(f"{key} {value}" for key, value in nano["sampling"].items())],
        ["photos", ", ".join(name.removesuffix(".png") for name in nano["photos"])],
        ["same ids as plain decoding", f"{nano['identical']} of {nano['compared']}"],
        ["seconds before the first preview", first["seconds"]],
        ["share of the time before the first preview", first["share"]],
        [
            "both caches, bytes allocated over calculated",
            f"{cache['allocated'] / cache['calculated']:.3f}",
        ],
    ]
    return _table(["PURE-nano", ""], facts)


def _quality(results: Results) -> str:
    rows = [
        [
            name,
            f"{100 * value['same_top1']:.1f} %",
            f"{value['entropy_difference']:.4f}",
            f"{value['psnr']:.1f} dB",
        ]
        for name, value in results["nano"]["quality"].items()
    ]
    head = ["precision", "same most likely code", "mean difference of entropy, nats", "PSNR"]
    return _table(head, rows)


def _identity(results: Results) -> str:
    part = results["identity"]
    rows = [[f"`{part['weights']}`", str(part["pairs"]), str(part["identical"])]]
    return _table(["weights (SHA-256 begins)", "pairs of photo and seed", "identical"], rows)


def _machines(results: Results) -> str:
    rows = []
    for stage in ("speed", "nano", "identity"):
        if (m := results.get(stage, {}).get("machine")) is not None:
            rows.append(
                [
                    stage,
                    f"{m['cores']} × {m['cpu']}, {m['threads']} thread, {m['clock']} time",
                    f"torch {m['torch']}, Python {m['python']}",
                    f"{m['load'][0]} and {m['load_after'][0]}",
                ]
            )
    return _table(["stage", "machine", "software", "load before and after"], rows)


def _estimates(results: Results) -> str:
    parts = results["estimates_seconds"]
    head = list(next(iter(parts.values())))
    rows = [
        [machine, *(f"{seconds:.0f}" for seconds in part.values())]
        for machine, part in parts.items()
    ]
    return _table(["machine, estimate in seconds", *head], rows)


TABLES = {
    "summary": (_summary, "summary"),
    "machines": (_machines, "speed"),
    "plain": (_plain, "speed"),
    "nano": (_nano, "nano"),
    "measured": (_measured, "nano"),
    "quality": (_quality, "nano"),
    "identity": (_identity, "identity"),
    "estimates": (_estimates, "estimates_seconds"),
}


def main() -> None:
    """Command line: `python -m tools.bench_tables`; renews the page from the recorded numbers."""
    results = json.loads(NUMBERS.read_text("utf-8"))
    PAGE.write_text(renewed(PAGE.read_text("utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
