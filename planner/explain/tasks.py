"""Questions of what a model is good at: what is known of that is what a plan takes away, and how the rest is found out."""

from __future__ import annotations

import re

from passes.errors import InputError
from planner.explain.asked import Answer, Asked
from planner.explain.two_plans import what_if
from planner.figures import show, show_interval
from planner.quality.expected import perplexity_growth

#: What people ask a model to do, and the names of tests for it.
TASKS = (
    r"(?:cod(?:e|ing)|programming|maths?|mathematics|reasoning|writing|translat\w+|summar\w+|chat(?:ting)?|rag|tool (?:use|calls?)|"
    r"agents?|instructions?|facts|knowledge|hallucinat\w*|mmlu(?:[- ]pro)?|humaneval|mbpp|gsm-?8k|aime|gpqa|ifeval|hellaswag|arc|bbh|"
    r"swe-?bench|livecodebench|truthfulqa|winogrande|ruler|benchmarks?|accuracy)"
)


def good_at(asked: Asked, words: str) -> Answer:
    """Answer how good a plan is for something. A condition (`at 64k`, `with awq`) is planned for; a task is none: of what the model can do
    nothing is known here, of what the plan takes from it what its quality says.
    """
    try:
        return what_if(asked, words)
    except InputError:
        if re.search(r"\d", words) and not re.search(rf"\b{TASKS}\b", words, re.IGNORECASE):
            raise  # a figure that changes nothing is a slip, not a task
        return at_tasks(asked, words)


def at_tasks(asked: Asked, words: str) -> Answer:
    """Say what a plan loses, which is all that is known of how good it is at a task, and how that is measured."""
    leading = asked.leading
    quality = leading.verdict.quality
    loss = show_interval(perplexity_growth(quality.log_ppl_increase), "%")
    return Answer(
        f"{words}: how good {asked.spec.model} is at that is not known here; what the plan ({leading.label}) takes from it is: "
        f"perplexity {loss}, "
        f"KL divergence {show(quality.kl.value, 'nats')} ({show(quality.kl.low, '')} … {show(quality.kl.high, '')}) on general text. "
        f"`optimize apply` measures both on the result; to know about {words}, run your own test on the model as it is and on the result. "
        "A goal on quality is asked so: what if goal 2 %; fewest bits at 2 %"
    )
