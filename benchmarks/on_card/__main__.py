"""Everything that a card can show, on one machine without a network, in stages of under two minutes:

    python -m benchmarks.on_card [--stages machine,calibrate,…] [--skip …] [--out DIR] [--work DIR] [--again]

`--out` gets `on_card.json`, written anew after each stage; `--work` keeps the stages' own files, models and logs, and a stage that is finished
there is not run again. Tools of others (vLLM, ExLlamaV2, llm-compressor, GPTQModel) are used where they are found and named where they are not.
`python -m benchmarks.on_card.page RESULTS... > docs/cards.md` makes the page of what came out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.on_card.stages import STAGES
from benchmarks.on_card.staging import Setup, line, run_all

_OUT = Path("out") / "on_card"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [stage.name for stage in STAGES]
    parser.add_argument(
        "--stages",
        help=f"by commas, in the order to run them; a name's beginning with * at its end means all such; of {', '.join(names)}",
    )
    parser.add_argument("--skip", default="", help="stages to leave out")
    parser.add_argument("--out", type=Path, default=_OUT, help="where on_card.json goes")
    parser.add_argument("--work", type=Path, default=_OUT / "work", help="a folder that stays between runs")
    parser.add_argument(
        "--shape",
        choices=["8b", "tiny"],
        default="8b",
        help="tiny: models of a few thousand weights, to try the stages",
    )
    parser.add_argument("--again", action="store_true", help="run finished stages too")
    parser.add_argument(
        "--tool", action="append", default=[], metavar="NAME=PATH", help="a tool's Python, or a folder of its packages"
    )
    parser.add_argument("--list", action="store_true", help="name the stages and end")
    options = parser.parse_args()
    if options.list:
        print("\n".join(names))
        return
    chosen = chosen_stages(names, options.stages, options.skip, parser)
    setup = Setup(options.work.absolute(), options.shape, dict(each.split("=", 1) for each in options.tool))
    by_name = {stage.name: stage for stage in STAGES}
    found = run_all(
        [by_name[name] for name in chosen],
        setup,
        options.out,
        again=options.again,
        say=lambda text: print(text, flush=True),
    )
    print("\nall stages so far")
    for record in found["stages"].values():
        print(line(record))


def chosen_stages(names: list[str], asked: str | None, skip: str, parser: argparse.ArgumentParser) -> list[str]:
    """The stages to run: those asked for in their order (all by default), the machine's before all, without those to skip."""

    def matching(text: str) -> list[str]:
        found = []
        for part in filter(None, text.split(",")):
            hits = [name for name in names if name == part or (part.endswith("*") and name.startswith(part[:-1]))]
            if not hits:
                parser.error(f"no stage {part}; one of {', '.join(names)}")
            found += hits
        return found

    wanted = matching(asked) if asked is not None else names
    left_out = matching(skip)
    return [name for name in dict.fromkeys(("machine", *wanted)) if name not in left_out]


if __name__ == "__main__":
    main()
