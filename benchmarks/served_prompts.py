"""Forty prompts for a real engine: twenty open questions, and twenty texts that say themselves how they go on.

A question leaves the words to the model. Where two of them compete, one rounding more or less decides, and all later words follow
from that. A text said four times and begun again leaves no choice: SmolLM2-135M-Instruct prefers the next token to the second by
0.25 to 4.8 nats over 16 tokens (median 2.5), so whoever computes the same weights continues with the same words.
"""

from __future__ import annotations

from pathlib import Path

NEW = 16
"""Tokens that each prompt is continued by; no repeated text ends within them."""

QUESTIONS = (
    "What is the capital of France?", "What is the capital of Japan?", "How many days are in a week?", "What colour is the sky?",
    "What do bees make?", "Write one sentence about the sea.", "Name three fruits.", "What is 2 + 2?", "Who wrote Hamlet?",
    "What is the opposite of hot?", "Explain what a river is.", "What is a computer?", "Name a planet of our solar system.",
    "What is the largest ocean?", "Say hello in Spanish.", "What is photosynthesis?", "Why do birds fly south in winter?",
    "What is the freezing point of water?", "Give me advice on how to sleep well.", "What is the purpose of a bridge?",
)  # fmt: skip

_SENTENCES = (
    "The train to the coast leaves at nine from platform four, and the one that goes back in the evening stops at every village.",
    "Every morning the baker opens the small shop at the corner, puts the bread in the window and waits for the first children.",
    "Water the plants in the kitchen twice a week, keep them away from the cold window and turn them a little every Sunday.",
    "The meeting was moved to Thursday because the large room was taken by the choir, which practises there until late at night.",
    "She packed a red scarf, two books about the stars, a jar of honey for her aunt and the letter that had come in the spring.",
    "The printer on the second floor is out of paper again, so please send long documents to the one beside the main stairs.",
    "A lighthouse stands at the end of the long stone pier, and on clear evenings its light is seen from the hills behind the town.",
    "Please return the keys to the front desk before noon, leave the towels in the basket and close the windows of both rooms.",
    "The old bridge over the river was closed for repairs until the spring, so farmers took their carts across by the ferry.",
    "He bought three apples, a loaf of dark bread, some cheese from the mountains and a bottle of milk for the long way home.",
)
_CYCLES = (
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday", "spring, summer, autumn, winter", "A, B, C, D",
    "January, February, March, April, May, June, July, August, September, October, November, December",
    "do, re, mi, fa, so, la, ti", "cat, dog, bird, fish", "red, green, blue, white, black", "north, south, east, west",
    "10, 20, 30, 40, 50, 60, 70, 80, 90", "up, down, left, right",
)  # fmt: skip
REPEATED = (
    *(" ".join([*[sentence] * 4, *sentence.split()[:4]]) for sentence in _SENTENCES),
    *(", ".join([*[cycle] * 5, cycle.partition(",")[0]]) + "," for cycle in _CYCLES),
)


def prompts(model: Path) -> list[list[int]]:
    """Token ids: the questions as the model's chat template has them, then the repeated texts as they are."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    texts = [tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in asked]
    return [list(tokenizer(text).input_ids) for text in (*texts, *REPEATED)]
