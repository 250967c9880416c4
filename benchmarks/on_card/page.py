"""docs/cards.md out of what `python -m benchmarks.on_card` wrote:

    python -m benchmarks.on_card.page benchmarks/data/on_card/*.json > docs/cards.md

Every figure stands beside the letter of the machine that it is from: card, driver and versions of one run. Files of one machine at one commit are
one run, in however many parts it was made; of a stage that stands in several, the last that is finished counts.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from passes.errors import InputError

Row = Sequence[str]
Stages = Mapping[str, Mapping[str, Any]]

_HEAD = """# What ran on cards

Made by `python -m benchmarks.on_card.page` from what `python -m benchmarks.on_card` wrote on the machines below; the files are kept in
`benchmarks/data/on_card/`. Nothing here is predicted, but for the columns that say so. The 8B shape is Llama 3.1 8B's; where blocks are
walked there are four of them with random weights and a vocabulary of 4,096, on 128 × 2,048 tokens drawn by Zipf's law."""
_RATES = (
    ("copy_bytes_per_s", "copying, GB/s", 1e9), ("vector_bytes_per_s", "a matrix read for one row, GB/s", 1e9),
    ("bf16_flops", "bf16, TFLOP/s", 1e12), ("int8_ops", "int8, TOP/s", 1e12), ("fp8_flops", "fp8, TFLOP/s", 1e12),
    ("launch_s", "a launch, µs", 1e-6),
)  # fmt: skip
_TOOLS = ("torch", "triton", "transformers", "vllm", "exllamav2", "llmcompressor", "gptqmodel")


@dataclass(frozen=True)
class Run:
    """What ran on one machine: its letter, what it is, the files it came in, and its stages."""

    letter: str
    machine: Mapping[str, Any]
    files: tuple[str, ...]
    stages: Stages

    def found(self, stage: str) -> Mapping[str, Any]:
        """The figures of a stage; nothing where it did not run."""
        found: Mapping[str, Any] = self.stages.get(stage, {}).get("found", {})
        return found

    def named(self, start: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The stages whose name begins so, each with its figures."""
        for name in self.stages:
            if name.startswith(start):
                yield name.removeprefix(start), self.found(name)


def runs_of(documents: Mapping[str, Mapping[str, Any]]) -> list[Run]:
    """The runs in some files, by name: those of one machine at one commit together. Raises InputError for what tiny models showed."""
    runs: dict[tuple[Any, ...], tuple[list[str], dict[str, Mapping[str, Any]], Mapping[str, Any]]] = {}
    for file, document in documents.items():
        machine = document["stages"].get("machine", {}).get("found", {})
        key = (
            machine.get("card"),
            machine.get("driver"),
            machine.get("code"),
            json.dumps(machine.get("versions"), sort_keys=True),
        )
        files, stages, _ = runs.setdefault(key, ([], {}, machine))
        files.append(file)
        for name, record in document["stages"].items():
            if record["shape"] != "8b":
                raise InputError(
                    f"{file}: {name} ran on models of the shape {record['shape']!r}",
                    remedy="name files of the 8b shape",
                )
            if name not in stages or record["status"] == "ok" or stages[name]["status"] != "ok":
                stages[name] = record
    return [
        Run(ascii_uppercase[number], machine, tuple(files), stages)
        for number, (files, stages, machine) in enumerate(runs.values())
    ]


def page(runs: Sequence[Run]) -> str:
    """The whole page as Markdown."""
    sections = (
        ("Machines", _machines(runs)),
        ("Goals", _table(("on", "goal", "measured", "met"), [row for run in runs for row in goals(run)])),
        ("`optimize calibrate` beside plain torch", _table(("on", "rate", "calibrate", "plain torch", "ratio"), [row for run in runs for row in _calibrated(run)])),
        ("The walk, four blocks of the 8B shape", _table(
            ("on", "chain", "s a block", "first", "all four", "predicted", "over GPTQ", "card, GiB", "host, GiB"), [row for run in runs for row in _walked(run)])),
        ("The same GPTQ by others", _table(
            ("on", "tool", "s a block", "first", "whole, s", "card, GiB", "ours, s a block", "ours over theirs"), [row for run in runs for row in _peers(run)])),
        ("SmolLM2-135M", _table(("on", "what", "measured"), [row for run in runs for row in _smollm2(run)])),
        ("EXL2 read by ExLlamaV2's kernels", _table(("on", "what", "measured"), [row for run in runs for row in _exllama(run)])),
        ("vLLM from the launch files: KV tokens, context 8,192", _table(
            ("on", "weights", "cache", "start, s", "KV tokens", "`check` said", "error", "inside"), [row for run in runs for row in _kv(run)])),
        ("vLLM under load: 512 + 64 tokens", _table(
            ("on", "weights", "cache", "at once", "TTFT, ms", "said", "TPOT, ms", "said", "tokens/s", "said"), [row for run in runs for row in _loads(run)])),
        ("What did not end", _table(("on", "stage", "what became of it", "why"), [row for run in runs for row in _unfinished(run)])),
    )  # fmt: skip
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in sections if table)
    return f"{_HEAD}\n\n{text}\n"


def _table(head: Row, rows: Sequence[Row]) -> str:
    """A Markdown table; nothing without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _machines(runs: Sequence[Run]) -> str:
    def row(run: Run) -> Row:
        machine, versions = run.machine, run.machine.get("versions", {})
        dates = sorted({record["began"][:10] for record in run.stages.values()})
        return (
            run.letter, str(machine.get("card")), str(machine.get("driver") or "none"), f"{machine.get('processor')}, {machine.get('cores')} cores",
            f"{machine.get('memory_bytes', 0) / 2**30:.0f} GiB", *(str(versions.get(tool) or _of_stage(run, tool) or "not there") for tool in _TOOLS),
            str(machine.get("code") or "unknown"), " … ".join(dict.fromkeys((dates[0], dates[-1]))), ", ".join(f"`{Path(file).name}`" for file in run.files),
        )  # fmt: skip

    head = ("", "card", "driver", "processor", "memory", *_TOOLS, "commit", "date", "file")
    return _table(head, [row(run) for run in runs])


def _of_stage(run: Run, tool: str) -> str | None:
    """The version that a stage found of a tool which was not there when the machine was looked at."""
    found = (stage.get("found", {}) for name, stage in run.stages.items() if name.startswith(f"{tool}_"))
    return next((str(each["version"]) for each in found if each.get("version")), None)


def goals(run: Run) -> Iterator[Row]:
    """Each goal of a run, what was measured, whether it is met; goals whose stages did not run are left out."""
    gptq = run.found("apply_gptq")
    block = gptq.get("walk", {}).get("block_s")
    if block is not None:
        yield _goal(run, "W4A16 g128 by GPTQ, 8B shape: ≤ 1.5 s a block", f"{block:.2f} s", block <= 1.5)
        if gptq.get("card_peak_gib") is not None:
            yield _goal(
                run, "… in ≤ 12 GiB of the card", f"{gptq['card_peak_gib']:.1f} GiB", gptq["card_peak_gib"] <= 12
            )
        for kind, most in (("awq", 1.5), ("sparsegpt24", 1.25), ("exl2", 2.0)):
            other = run.found(f"apply_{kind}").get("walk", {}).get("block_s")
            if other is not None:
                yield _goal(run, f"{_CHAINS[kind]}: ≤ {most:g} × GPTQ", f"{other / block:.2f} ×", other <= most * block)
    for name, found in run.named("peer_"):
        if found.get("ratio") is not None:
            yield _goal(run, f"≤ 0.5 × {name} {found['version']}", f"{found['ratio']:.2f} ×", found["ratio"] <= 0.5)
    measure = run.found("apply_exl2").get("measure", {}).get("block_s")
    if measure is not None:
        yield _goal(run, "EXL2's options, 8B shape: ≤ 10 s a block", f"{measure:.1f} s", measure <= 10)
    ratios = run.found("calibrate").get("ratios")
    if ratios:
        worst = max(ratios.values(), key=lambda ratio: abs(ratio - 1))
        yield _goal(run, "calibrate within 10 % of plain torch", f"furthest {worst:.2f} ×", abs(worst - 1) <= 0.1)
        seconds = run.found("calibrate")["seconds"]
        yield _goal(run, "calibrate in ≤ 30 s", f"{seconds:.0f} s", seconds <= 30)
    apart = run.found("smollm2").get("kl_apart")
    if apart is not None:
        yield _goal(run, "KL within 1 % of the processor's result (SmolLM2)", f"{apart:+.2%}", abs(apart) <= 0.01)
    written = run.found("smollm2_text").get("tok_s")
    if written is not None:
        yield _goal(run, "≥ 10,000 tokens/s of its own text (SmolLM2)", f"{written:,.0f}", written >= 10_000)
    options = run.found("smollm2_exl2").get("measure", {}).get("block_s")
    if options is not None:
        yield _goal(run, "EXL2's options, SmolLM2: < 1 s a block", f"{options:.2f} s", options < 1)
    yield from _served_goals(run)


def _served_goals(run: Run) -> Iterator[Row]:
    served = [(name, found) for name, found in run.named("vllm_") if found.get("kv_tokens")]
    tried = [name for name, _ in run.named("vllm_") if run.stages[f"vllm_{name}"]["status"] != "skipped"]
    if not served:
        return
    yield _goal(run, "every format starts in vLLM", f"{len(served)} of {len(tried)}", len(served) == len(tried))
    inside = sum(bool(found["kv_inside"]) for _, found in served)
    yield _goal(run, "KV tokens inside the interval", f"{inside} of {len(served)}", inside == len(served))
    error = statistics.median(abs(found["kv_error"]) for _, found in served)
    yield _goal(run, "… median error ≤ 1 %", f"{error:.2%}", error <= 0.01)


def _goal(run: Run, goal: str, measured: str, met: bool) -> Row:
    return (run.letter, goal, measured, "yes" if met else "**no**")


def _calibrated(run: Run) -> Iterator[Row]:
    found = run.found("calibrate")
    for key, text, unit in _RATES:
        measured = found.get("calibrated", {}).get(key)
        plain = found.get("plain", {}).get(key)
        if measured is not None:
            beside = "" if not plain else f"{plain / unit:,.1f}"
            ratio = found.get("ratios", {}).get(key)
            yield (run.letter, text, f"{measured / unit:,.1f}", beside, "" if ratio is None else f"{ratio:.2f}")


_CHAINS = {
    "gptq": "GPTQ W4A16 g128", "awq": "AWQ g128", "fp8": "FP8", "sparsegpt24": "SparseGPT 2:4, GPTQ W4A16 g128, fp8 cache scales",
    "exl2": "EXL2, about 4 bits",
}  # fmt: skip


def _walked(run: Run) -> Iterator[Row]:
    gptq = run.found("apply_gptq").get("walk", {}).get("block_s")
    for kind, found in run.named("apply_"):
        if "walk" not in found:
            continue
        walk, said = found["walk"], found.get("predicted", {})
        over = "" if not gptq else f"{walk['block_s'] / gptq:.2f}"
        yield (
            run.letter, _CHAINS.get(kind, kind), f"{walk['block_s']:.2f}", f"{walk['first_s']:.2f}", _number(found.get("walk_s"), 1),
            _number(said.get("walk_block_s"), 2), over,
            _number(found.get("card_peak_gib"), 1), _number(found.get("host_peak_gib"), 1),
        )  # fmt: skip
        if "measure" in found:
            options = found["measure"]
            yield (
                run.letter, "… measuring its options", f"{options['block_s']:.2f}", f"{options['first_s']:.2f}", "",
                _number(said.get("measure_block_s"), 2), "", "", "",
            )  # fmt: skip


def _peers(run: Run) -> Iterator[Row]:
    for name, found in run.named("peer_"):
        if "walk" in found:
            walk = found["walk"]
            yield (
                run.letter, f"{name} {found['version']}", f"{walk['block_s']:.2f}", f"{walk['first_s']:.2f}", _number(found.get("whole_s"), 0),
                _number(found.get("card_peak_gib"), 1), _number(found.get("ours_block_s"), 2), _number(found.get("ratio"), 2),
            )  # fmt: skip


def _smollm2(run: Run) -> Iterator[Row]:
    both = run.found("smollm2")
    if "kl_apart" in both:
        card, processor = both["device"], both["processor"]
        text = f"{both['samples']} × {both['length']} tokens"
        yield (
            run.letter,
            f"{both['chain']}, {text}: KL by {card['on']}, by the processor",
            f"{card['kl']:.4f}, {processor['kl']:.4f} ({both['kl_apart']:+.2%})",
        )
        yield (
            run.letter,
            "… bytes of the results that are equal",
            f"{both['equal_bytes']:.2%}; {both['equal_tensors']} of {both['tensors']} tensors whole",
        )
        yield (run.letter, "… seconds", f"{card['seconds']:.0f}, {processor['seconds']:.0f}")
    written = run.found("smollm2_text")
    if "tok_s" in written:
        alone = f", {written['writing_tok_s']:,.0f} without loading ({written['how']})" if "how" in written else ""
        yield (run.letter, f"its own text, {written['tokens']:,} tokens", f"{written['tok_s']:,.0f} tokens/s{alone}")
    options = run.found("smollm2_exl2")
    if "measure" in options:
        yield (
            run.letter,
            "EXL2's options",
            f"{options['measure']['block_s']:.2f} s a block (first {options['measure']['first_s']:.2f})",
        )


def _exllama(run: Run) -> Iterator[Row]:
    found = run.found("exllama")
    if "matrices" in found:
        yield (
            run.letter,
            "matrices that its kernels decode as our decoder does",
            f"{found['equal_matrices']} of {found['matrices']}; furthest number {found['furthest']:.1e} apart",
        )
    if "kl" in found:
        yield (
            run.letter,
            "logits against the decoded weights in fp32",
            f"KL {found['kl']:.1e}, the likeliest token the same in {found['top1']:.1%}",
        )
    if "kl_sdpa" in found:
        yield (
            run.letter,
            "… by its path over torch's fused attention (taken without flash-attn)",
            f"KL {found['kl_sdpa']:.1e}, {found['top1_sdpa']:.1%}",
        )
    for cache, speed in found.get("tok_s", {}).items():
        yield (run.letter, f"tokens/s of one sequence, cache {cache}", f"{speed:,.0f}")
    if "walk_block_s" in found:
        yield (run.letter, "the walk that made it", f"{found['walk_block_s']:.2f} s a block, {found['blocks']} blocks")


def _kv(run: Run) -> Iterator[Row]:
    for _, found in run.named("vllm_"):
        if found.get("kv_tokens"):
            value, low, high = found["predicted_kv"]
            yield (
                run.letter, found["form"], _cache(found), f"{found['start_s']:.0f}", f"{found['kv_tokens']:,}", f"{value:,.0f} ({low:,.0f} … {high:,.0f})",
                f"{found['kv_error']:+.2%}", "yes" if found["kv_inside"] else "**no**",
            )  # fmt: skip


def _loads(run: Run) -> Iterator[Row]:
    for _, found in run.named("vllm_"):
        for load in found.get("loads", []):
            yield (
                run.letter, found["form"], _cache(found), str(load["concurrency"]), f"{load['ttft_ms']:,.0f}", _said(load["predicted_ttft_ms"], 0),
                f"{load['tpot_ms']:,.1f}", _said(load["predicted_tpot_ms"], 1), f"{load['tok_s']:,.0f}", _said(load["predicted_tok_s"], 0),
            )  # fmt: skip


def _cache(found: Mapping[str, Any]) -> str:
    return "fp8" if found["fp8_cache"] else "bf16"


def _said(interval: Sequence[float], digits: int) -> str:
    """A prediction with its interval; one that misses is left for the reader to see."""
    value, low, high = (f"{number:,.{digits}f}" for number in interval)
    return f"{value} ({low} … {high})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _unfinished(run: Run) -> Iterator[Row]:
    for name, record in run.stages.items():
        if record["status"] != "ok":
            yield (run.letter, name, str(record["status"]), str(record["reason"]))


def main(files: Sequence[str]) -> None:
    documents = {file: json.loads(Path(file).read_text("utf-8")) for file in files}
    sys.stdout.write(page(runs_of(documents)))


if __name__ == "__main__":
    main(sys.argv[1:])
