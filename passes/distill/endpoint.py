"""Asks a teacher behind an OpenAI-compatible endpoint: so many requests a minute, again after what passes, on from where it was ended.

A prompt with `messages` goes to /chat/completions, any other to /completions. The key, where the server wants one, is that in
`OPENAI_API_KEY`.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.distill.answers import Answer
from passes.errors import InputError, TightfitError
from passes.record import dataclass

KEY = "OPENAI_API_KEY"
#: Times that a request is made before it is given up, seconds before the second one (twice that before the next), seconds it may take.
ATTEMPTS, FIRST_WAIT, TIMEOUT = 6, 1.0, 600.0
#: What passes by itself: too many requests, a server that is not ready.
_PASSING = frozenset({408, 409, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Endpoint:
    """A server that holds a teacher: its `url` down to the version (`http://host:8000/v1`), the model's name there, its limit."""

    url: str
    model: str
    requests_per_minute: int
    max_tokens: int
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def estimate(self, requests: int) -> str:
        """Return what so many requests take at most, in words: tokens written, minutes at the limit."""
        minutes = requests / self.requests_per_minute
        return f"{requests:,} requests, at most {requests * self.max_tokens:,} tokens, at least {minutes:,.1f} min"

    def answers(self, prompts: Sequence[Any], kept: Path) -> Iterator[Answer]:
        """Yield an answer to each prompt in turn; those in the file `kept` are not asked for again, and each new one is added to it.

        Raises TightfitError where the server refuses or stays away; what was answered is kept.
        """
        known = _kept(kept)
        yield from (Answer(**record) for record in known[: len(prompts)])
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("".join(json.dumps(record) + "\n" for record in known), encoding="utf-8")
        free_at = self.clock()
        for prompt in prompts[len(known) :]:
            self.sleep(max(0.0, free_at - self.clock()))
            free_at = max(free_at, self.clock()) + 60 / self.requests_per_minute
            answer = self._ask(prompt)
            with kept.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"prompt": answer.prompt, "text": answer.text, "finished": answer.finished}) + "\n"
                )
            yield answer

    def _ask(self, prompt: Any) -> Answer:
        body: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens}
        chat = isinstance(prompt, Mapping)
        body |= {"messages": prompt["messages"]} if chat else {"prompt": prompt}
        reply = self._post("chat/completions" if chat else "completions", body)
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] if chat else choice["text"]
        except (KeyError, IndexError, TypeError):
            raise InputError(
                f"{self.url} answers without a choice: {json.dumps(reply)[:300]}",
                remedy="check that it speaks OpenAI's API",
            ) from None
        asked = "".join(f"{turn['content']}\n" for turn in prompt["messages"]) if chat else prompt
        return Answer(asked, text or "", choice.get("finish_reason") == "stop")

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{path}", json.dumps(body).encode(), headers)
        wait, said = FIRST_WAIT, ""
        for attempt in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                    answer: dict[str, Any] = json.load(reply)
                return answer
            except urllib.error.HTTPError as error:
                said = f"{error.code}: {error.read(300).decode(errors='replace')}"
                if error.code not in _PASSING:
                    raise InputError(
                        f"{self.url} refuses: {said}", remedy=f"check `teacher:`, the prompts, and the key in {KEY}"
                    ) from error
                after = error.headers.get("Retry-After", "")
                wait = max(wait, float(after)) if after.replace(".", "", 1).isdigit() else wait
            except (OSError, ValueError) as error:
                said = str(error)
            if attempt < ATTEMPTS - 1:
                self.sleep(wait)
                wait *= 2
        raise TightfitError(
            f"{self.url} gave no answer in {ATTEMPTS} attempts: {said}",
            remedy="start it, or lower `requests_per_minute:`; the answers so far are kept, run the same command again",
        )


def read_prompts(path: Path) -> list[Any]:
    """Return the prompts of a file: a line each of text, or of JSON with `prompt` or `messages`. Raises InputError with the line."""
    if not path.is_file():
        raise InputError(f"no prompts at {path}", remedy="name a .txt file with a prompt a line, or a .jsonl file")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix != ".jsonl":
        return lines
    return [_prompt(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _prompt(line: str, where: str) -> Any:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}", remedy="one JSON object a line") from error
    if isinstance(record, str):
        return record
    if isinstance(record, dict) and isinstance(record.get("prompt"), str):
        return record["prompt"]
    if isinstance(record, dict) and isinstance(record.get("messages"), list):
        return {"messages": record["messages"]}
    raise InputError(f"{where}: no prompt found", remedy="expected one of the fields prompt or messages")


def _kept(path: Path) -> list[dict[str, Any]]:
    """The answers of an earlier attempt; the line at which it was ended may be cut."""
    records: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records
