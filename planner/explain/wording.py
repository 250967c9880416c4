"""From the words that people ask in to those of the forms that are answered: what stands around a condition, beside it or behind it."""

from __future__ import annotations

import re

from planner.explain.tasks import TASKS

#: Numbers as words, and what people count so.
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_COUNTED = r"(?:cards?|gpus?|users?|clients?|machines?|nodes?|requests?)\b|\S*\d"
#: What people call formats, and how candidates are named.
_SPELLED = {"int8": "w8a8", "int4": "4 bit", "fp4": "nvfp4", "bf16": "as it is", "fp16": "as it is"}

_WHO = "(?:i|we|you|they|one|my team|the team)"
_IT = "(?:it|this|that|they|things|everything|the plan|the model|this model|this plan|the answer)"
_MAY = "(?:can|could|should|do|does|would)"
_GIVEN = "(?:with|onto|into|on|in|at|for|if|when|under|using|given|by|of)"
_FITS = (
    "(?:fit|work|run|go|do|be (?:ok|enough|possible|fast enough)|happen|change|keep the goals|meet the goals|suffice)"
)
#: What a plan tells, as people call it.
_FIGURE = "(?:ttft|tpot|latency|first token|decode|decoding|speed|throughput|quality|perplexity|memory|response|responses|answers)"
#: A condition in front of a question, with a comma or a question word between them.
_FRONT = re.compile(
    r"(?:and |but |so )?(?:if|with|on|at|for|using|given|when|suppos(?:e|ing)(?: that)?|assum(?:e|ing)(?: that)?|imagine|say|let's say) "
    r"(?P<said>.+?),? (?P<asked>(?:then )?(?:would|will|does|do|can|could|is|are|how|what|which|why) .+)",
    re.IGNORECASE,
)
#: What such a question asks that a comparison of both plans answers: the model that is named, if one is.
_WHETHER = re.compile(
    rf"(?:would|will|does|do|can|could|is|are) (?P<what>{_IT}|.+?) (?:still |then |also |even )?{_FITS}(?: then| there| still)?|"
    rf"(?:what|how) (?:would|will|does|do|could) (?:{_IT} )?(?:happen|change|be|do|look|fare|perform|work|become)(?: like)?|"
    rf"what happens|is {_IT} (?:ok|enough|possible)",
    re.IGNORECASE,
)
#: Wordings of one kind, each with the form that answers it.
_WORDINGS: tuple[tuple[str, str], ...] = (
    (r"(?:suppos(?:e|ing)|assum(?:e|ing)|imagine|let's say|say|consider|try|given)(?: that)? (.+)", r"what if \1"),
    (
        rf"(?:can|could|may|might|should|would|shall) {_WHO} (?:also |even |just )?"
        rf"(?:run|use|serve|put|host|deploy|load|cram|squeeze|take|have|get|do|handle|fit)(?: {_IT})?(?: {_GIVEN})? (.+)",
        r"what if \1",
    ),
    (
        rf"how (?:well |fast |much )?(?:would|will|does|do|did|could|can) {_IT} "
        rf"(?:do|fare|perform|work|run|look|behave|change|compare|go) {_GIVEN} (?!{TASKS}\b)(.+)",
        r"what if \1",
    ),
    (r"(?:does|do|would|will|could|can|is) (\S+/\S+|\S+-\d+b\S*) (?:fit|work|run|go)(?: there| here| too)?", r"what if model \1"),
    (rf"(?:is|are) (?:the |its |my )?{_FIGURE} (?:good|low|high|fast|short|ok|fine)(?: enough)?", "how fast"),
    (rf"(?:is|are|would|will) (?!{_IT} )(.+?) (?:be )?enough {_GIVEN} (.+)", r"what if \1 and \2"),
    (rf"(?:is|are|would|will) (?!{_IT} )(.+?) (?:be )?(?:enough|ok|sufficient|possible)", r"what if \1"),
    (rf"(?:do|would|will) {_WHO} (?:really |even )?need (.+)", r"why \1"),
    (
        rf"how many (?:cards|gpus)(?: (?:do|would|will|should) {_WHO} (?:need|have|take|use|buy))?(?: {_GIVEN} (.+))?",
        r"what if cards auto and \1",
    ),
    (rf"what (?:do|would) {_WHO} need {_GIVEN} (.+)", r"what if cards auto and \1"),
    (
        rf"why (?:(?:is|are) (?:the |my )?(?:{_IT}|{_FIGURE}) )?(?:so |that |this |too )?"
        r"(?:slow|fast|large|big|small|long|short|high|low|bad|good)",
        "how fast",
    ),
    (
        r"(how many .+?) (?:can |could )?(?:chat|talk|work|use it|be served)?"
        r"(?: at (?:the same time|once)| simultaneously| in parallel| concurrently)",
        r"\1",
    ),
    (rf"why (?:does|do|can|would|is|will)(?: {_IT} not|n't {_IT}| not {_IT}) (?:fit|work|run|meet the goals|possible)", "why"),
    (rf"why (?:can't|won't|cannot) {_IT} (?:fit|work|run|meet the goals)", "why"),
    (
        r"why (?:does |do |did )?nothing (?:fits?|works?|runs?|meets? the goals)|"
        r"why (?:(?:is|was|are) )?(?:there )?(?:no(?:thing| plans?| candidates?| solution))(?: possible| found| at all)?|"
        rf"why did {_WHO} (?:find|get) no(?:thing| plan)",
        "why",
    ),
    (
        rf"(?:how|what) {_MAY} {_WHO} (?:make|get|have|speed|run) (?:{_IT} )?(?:up|faster|quicker)|(?:make {_IT} )?quicker|"
        rf"(?:make|speed) {_IT} (?:up|faster)",
        "faster",
    ),
    (
        rf"(?:how|what) {_MAY} {_WHO} (?:make|get|have|run) (?:{_IT} )?cheaper|make {_IT} cheaper|"
        rf"(?:how {_MAY} {_WHO} )?(?:reduce|lower|cut|save) (?:the )?(?:costs?|money)",
        "cheaper",
    ),
    (rf"why (?:do|does|did|are|is|should|would|shall) (?:{_WHO}|{_IT}) not (?:use |using |take |choose |pick )?(.+)", r"why not \1"),
    (
        rf"why (?:is|was|are|were) (?!{_IT} )(.+?) not (?:chosen|used|taken|picked|selected|considered|recommended|possible)",
        r"why not \1",
    ),
    (
        rf"why (?:can't|cannot|can not|couldn't|shouldn't|won't) {_WHO} (?:use|run|take|have|serve|choose|pick) (.+)",
        r"why not \1",
    ),
    (rf"(?:is|will|would) {_IT} (?:be )?(?:good |fast |large |big )?enough {_GIVEN} (.+)", r"what if \1"),
    (rf"why (?:do|does|did|are|is)n't (?:{_WHO}|{_IT}) (?:use |using |take |choose |pick )?(.+)", r"why not \1"),
)  # fmt: skip
_BETTER = "(?:better|worse|faster|slower|smaller|larger|cheaper)"
#: What people weigh against each other, as a spec says that it prefers it.
_PREFERRED = {
    "speed|latency|fast(?:er|est)?": "speed", "costs?|price|money|cheap(?:er|est)?": "cost", "quality|accuracy|perplexity": "quality",
    "throughput": "throughput", "size|memory|small(?:er|est)?": "size", "context": "context",
}  # fmt: skip
#: Two things of which one is asked to be held against the other.
_VERSUS = (
    r"compare (?P<one>.+?) (?:and|with|to|against|vs\.?) (?P<two>.+)",
    r"(?P<one>.+?) (?:vs\.?|versus|against|compared (?:to|with)) (?P<two>.+)",
    rf"(?:is|are|would) (?P<one>.+?) (?:be )?{_BETTER} than (?P<two>.+)",
    r"why (?:not )?(?P<one>.+?)(?:,? and not|,? not| instead of| rather than| over| in place of) (?P<two>.+)",
    r"what is the difference between (?P<one>.+?) and (?P<two>.+)",
    rf"(?:(?:which|what)(?: is|'s|) {_BETTER},? |(?:is|are) )?(?P<one>\S+) or (?P<two>\S+)(?: {_BETTER})?",
)  # fmt: skip


def plain(question: str) -> str:
    """Return a question in the words of the forms that are answered."""
    text = re.sub(r"\s+", " ", question.strip().rstrip("?!.").strip()).replace("\u2019", "'")
    text = re.sub(r"^(?:please|ok|okay|hi|hello|so|and|but|now|then)[, ]+(?=\S)", "", text, flags=re.IGNORECASE)
    text = re.sub(r"[, ]+(?:instead|please|though|then|as well|too|at all)$", "", text, flags=re.IGNORECASE)
    for said, name in _SPELLED.items():
        text = re.sub(rf"(?<!\S){said}(?!\S)", name, text, flags=re.IGNORECASE)  # not inside a model's name
    for number, word in enumerate(_NUMBERS, 1):
        text = re.sub(rf"\b{word}(?= (?:{_COUNTED}))", str(number), text, flags=re.IGNORECASE)
    if found := _FRONT.fullmatch(text):
        text = _behind(found["said"].rstrip(","), found["asked"])
    for pattern, form in _WORDINGS:
        if match := re.fullmatch(pattern, text, re.IGNORECASE):
            return match.expand(form).removesuffix(" and ").strip()
    return text


def preferences_of(this: str, that: str) -> tuple[str, str] | None:
    """Return what a spec prefers by the names of two things that people weigh against each other (`speed and cost`); None for others."""
    bare = [re.sub(r"^(?:the |best |highest |lowest |longest )+", "", said.lower()) for said in (this, that)]
    named = [next((name for words, name in _PREFERRED.items() if re.fullmatch(words, said)), None) for said in bare]
    return (named[0], named[1]) if named[0] and named[1] and named[0] != named[1] else None


def two_of(text: str) -> tuple[str, str] | None:
    """Return the two things that a question holds against each other; None where it is no such question."""
    for pattern in _VERSUS:
        if match := re.fullmatch(pattern, text, re.IGNORECASE):
            return match["one"].strip(), match["two"].strip()
    return None


def _behind(said: str, asked: str) -> str:
    """A question with the condition behind it that stood in front; where it only asks whether that does, the condition alone."""
    asked = re.sub("^then ", "", asked, flags=re.IGNORECASE)
    whether = _WHETHER.fullmatch(asked)
    if whether is None:
        return f"{asked} with {said}"
    what = whether["what"]
    named = what and not re.fullmatch(f"{_IT}|i|we|x|y|there|anything", what, re.IGNORECASE)
    return f"what if {said} and model {what}" if named else f"what if {said}"
