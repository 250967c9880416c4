"""The text of a black-box distillation: what a teacher answered, at an endpoint or in a file, filtered and kept as one file of texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from passes.distill.answers import Answer, fit_answers
from passes.distill.distill import Distill
from passes.distill.endpoint import Endpoint, read_prompts
from passes.errors import InputError
from passes.files.atomic import whole_or_nothing
from passes.steps.context import RunContext
from passes.steps.key import code_digest, content_key, file_identity
from passes.steps.step import Report
from passes.text.source import texts, tokenizer_of

#: The step that gets a teacher's answers.
ANSWERS = "answers"


def teacher_sequences(plan: Distill, model: Path, run: RunContext) -> Path:
    """Return the jsonl file with the texts that are fit to learn from, made as a step. Raises InputError where they are too few.

    Answers of an endpoint are kept as they come, so that a run that was ended asks for no answer twice.
    """
    asked = (plan.dataset, plan.teacher, plan.prompts, plan.length)
    files = [file_identity(Path(name)) for name in (plan.dataset, plan.prompts)]
    wanted = (plan.sequences + plan.held_out) * plan.length
    key = content_key("answers", asked, files, wanted, code_digest())
    path, kept = run.folder / f"answers-{key}.jsonl", run.folder / f"asked-{content_key(asked, files)}.jsonl"
    tokenizer = tokenizer_of(model)

    def make(report: Report) -> None:
        """Write answers until they hold the tokens that are wanted. Raises where there are fewer."""
        dropped: Counter[str] = Counter()
        tokens, lines = 0, []
        for answer in fit_answers(_answers(plan, kept, report), dropped):
            tokens += len(tokenizer(answer.whole, add_special_tokens=False, verbose=False).input_ids) + 1
            lines.append(json.dumps({"text": answer.whole}) + "\n")
            report(min(tokens, wanted), wanted, f"{len(lines)} answers, {_said(dropped)} left out")
            if tokens > wanted:
                break
        if tokens <= wanted:
            raise InputError(
                f"{plan.dataset}: {len(lines)} answers of {tokens:,} tokens are fit to learn from ({_said(dropped)} left out), "
                f"{wanted:,} are wanted",
                remedy="more prompts, fewer `tokens:`, or more `epochs:` over the same text",
            )
        with whole_or_nothing(path) as partial:
            partial.write_text("".join(lines), encoding="utf-8")

    run.steps.run(ANSWERS, key, path.is_file(), make)
    return path


def _answers(plan: Distill, kept: Path, report: Report) -> Iterator[Answer]:
    if not plan.is_endpoint:
        return (Answer("", text) for text in texts(plan.dataset, None))
    endpoint = Endpoint(plan.dataset, plan.teacher, plan.requests_per_minute, plan.length)
    prompts = read_prompts(Path(plan.prompts))
    report(0, 1, endpoint.estimate(len(prompts)))
    return endpoint.answers(prompts, kept)


def _said(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} {fault}" for fault, count in sorted(dropped.items())) or "none"
