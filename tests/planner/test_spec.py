"""The spec: strict, and every error says where, what was expected, and what to do."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.errors import InputError
from passes.quantize.format_names import pass_named
from planner.spec import units
from planner.spec.parse import as_spec, load_spec, parse_spec
from planner.spec.patch import patched
from planner.spec.schema import schema
from planner.spec.spec import Spec

MINIMAL = "model: x\ntarget: { gpu: rtx-4090 }\n"


def test_a_minimal_spec_has_defaults_that_can_be_planned() -> None:
    spec = parse_spec(MINIMAL)
    assert (spec.engine, spec.target.count, spec.goals.prefer) == ("auto", 1, "quality")


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("model: x\ntarget: { gpu: a, coun: 2 }", "s.yaml:2:19", "Did you mean 'count'"),
        ("modl: x\ntarget: { gpu: a }", "s.yaml:1:1", "Did you mean 'model'"),
        (MINIMAL + "goals:\n  ttft: 5", "s.yaml:4:3", "500 ms"),
        (MINIMAL + "goals:\n  decode: 5 tok", "s.yaml:4:3", "20 tok/s"),
        (MINIMAL + "goals: { quality: { max_perplexity_increase: 10 } }", "s.yaml:3:21", "10%"),
        (MINIMAL + "workload:\n  context: -5", "s.yaml:4:3", "should be 1 or more"),
        (MINIMAL + "workload: { context: 100, input_tokens: 200 }", "s.yaml:3:1", "exceed the context"),
        (
            MINIMAL + "workload: { images: { count: 1, tokens: 20000 } }",
            "s.yaml:3:1",
            "(20000 of them images) exceed the context",
        ),
        (MINIMAL + "workload: { input: { mean: 9, p95: 20, max: 8000 } }", "s.yaml:3:1", "exceed the context"),
        (MINIMAL + "workload: { input: { mean: 9, p95: 8 } }", "s.yaml:3:13", "must rise"),
        (MINIMAL + "prefer: speed", "s.yaml:3:1", "It belongs under 'goals'"),
        (MINIMAL + "goals: { engine: vllm }", "s.yaml:3:10", "It belongs under the top"),
        (MINIMAL + "workload: { input: { maen: 9 } }", "s.yaml:3:22", "Did you mean 'mean'"),
        (MINIMAL + "workload: { output: many }", "s.yaml:3:13", "'many' is no number of tokens: write 32768, 32k"),
        (
            MINIMAL + "workload: { context: 32kk }",
            "s.yaml:3:13",
            "'32kk' is no number of tokens: write 32768, 32k (32,768)",
        ),
        (MINIMAL + "workload: { context: '9000' }", "s.yaml:3:13", "write 9000 without quotes"),
        ("model: x\ntarget: { gpu: a, reserve: 2 GX }", "s.yaml:2:19", "24 GiB"),
        (MINIMAL + "engine: { nam: vllm }", "s.yaml:3:11", "Did you mean 'name'"),
        (MINIMAL + "passes: { kv_cache: [fp9] }", "s.yaml:3:22", "'auto', 'fp8'"),
        (MINIMAL + "passes: { kv_cache: fp9 }", "s.yaml:3:11", "did you mean 'fp8'?"),
        (MINIMAL + "passes: { quantize: { methods: [gptqq] } }", "s.yaml:3:33", "did you mean 'gptq'?"),
        (
            MINIMAL + "engine: { name: vllm, max_num_seq: 3 }",
            "s.yaml:3:23",
            "Did you mean 'engine.settings.max_num_seqs'?",
        ),
        (
            MINIMAL + "goals: { quality: { min_accuracy: 3% } }",
            "s.yaml:3:21",
            "keys here: max_perplexity_increase, max_kl",
        ),
        (MINIMAL + "passes:\n  quantize: { metods: [gptq] }", "s.yaml:4:15", "Did you mean 'methods'"),
        ("model: [x\n", "s.yaml:2:1", "not YAML"),
        ("- a\n", "s.yaml:1:1", "is a mapping"),
        ("model: x\n", "s.yaml:1:1", "'target' is missing"),
        (MINIMAL + "calibration: { dataset: a.txt }\nevaluation: { dataset: a.txt }", "s.yaml:1:1", "another source"),
    ],
)
def test_a_bad_spec_is_refused_with_place_and_remedy(text: str, place: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_spec(text, "s.yaml")
    assert str(caught.value.location) == place
    assert says in str(caught.value)
    assert caught.value.remedy


def test_all_names_that_stand_for_nothing_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "model: x/y\ntarget: { gpu: 4O90, reserve: 1 GiB }\nengine: vlm\ncalibration: { dataset: nothere.jsonl }\n"
    )
    with pytest.raises(InputError) as caught:
        load_spec(file)
    said = str(caught.value)
    assert said.count("unknown GPU '4O90'. Did you mean 'RTX 4090'?") == 1
    assert "s.yaml:3:1: unknown engine 'vlm'" in said and "s.yaml:4:16: no text at nothere.jsonl" in said
    assert caught.value.remedy


def test_values_of_a_wrong_kind_and_names_that_stand_for_nothing_are_told_in_one_round(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "modle: x/y\ntarget: { gpu: 4O90, count: two }\nengine: vlm\nworkload: { context: 100, input_tokens: 200 }\n"
        "goals: { prefer: best }\npasses: { quantize: { formats: [w4a16-g127x], metods: gptq } }\nlaunch: compse\n"
        "calibration: { dataset: nothere.jsonl, samples: many }\n"
    )
    with pytest.raises(InputError) as caught:
        load_spec(file)
    said = str(caught.value)
    for wrong in (
        "unknown key 'modle'", "'model' is missing", "unknown GPU '4O90'", "target.count: ", "unknown engine 'vlm'", "exceed the context",
        "goals.prefer: ", "w4a16-g127x", "passes.quantize.metods", "unknown launch target 'compse'", "no text at nothere.jsonl",
        "calibration.samples: ",
    ):  # fmt: skip
        assert said.count(wrong) == 1, (wrong, said)


@pytest.mark.parametrize(
    "wrong", [{"target": {}}, {"target": 5}, {"model": {}}, {"passes": [1]}, {"engine": {"nam": 1}}]
)
def test_what_cannot_be_looked_at_hides_no_other_name(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        as_spec({"model": "m", "target": {"gpu": "L4"}, "launch": "compse"} | wrong)
    assert "unknown launch target 'compse'" in str(caught.value) and next(iter(wrong)) in str(caught.value)


def test_a_missing_spec_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="optimize init"):
        load_spec(tmp_path / "none.yaml")


def test_paths_are_relative_to_the_spec(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "s.yaml").write_text("model: model\ntarget: { gpu: cpu }\n")
    assert load_spec(tmp_path / "s.yaml").model == str(tmp_path / "model")


def test_a_dumped_spec_reads_back_equal() -> None:
    spec = parse_spec(
        MINIMAL
        + "goals: { ttft: 1.5 s, decode: 20 tok/s, quality: { max_perplexity_increase: 10% } }\n"
        + "engine: { name: vllm, version: 0.19.0, settings: { kv_cache_memory: 2 GiB } }\n"
    )
    assert Spec.model_validate(spec.model_dump(mode="json")) == spec


def test_lengths_that_are_not_all_alike_count_for_the_cache_by_p95_and_for_speed_by_the_mean() -> None:
    spec = parse_spec(MINIMAL + "workload: { context: 9000, input: { mean: 800, p95: 3000, max: 8000 }, output: 200 }")
    workload = spec.workload.asked
    assert (workload.input_tokens, workload.output_tokens, workload.request_tokens) == (800, 200, 3200)
    assert Spec.model_validate(spec.model_dump(mode="json")) == spec


def test_gb_and_gib_are_different() -> None:
    assert units.parse_bytes("24 GB") == 24 * 10**9
    assert units.parse_bytes("24 GiB") == 24 * 2**30


@given(st.integers(0, 10**6), st.sampled_from(["B", "KiB", "MB", "GiB"]))
def test_amounts_of_memory_are_read_exactly(count: int, unit: str) -> None:
    size = {"B": 1, "KiB": 1024, "MB": 10**6, "GiB": 2**30}[unit]
    assert units.parse_bytes(f"{count} {unit}") == count * size


@given(st.text(max_size=12))
def test_units_never_fail_in_another_way(text: str) -> None:
    for parse in (units.parse_bytes, units.parse_seconds, units.parse_rate, units.parse_share):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert "such as" in str(error) or "positive" in str(error)


@given(
    st.dictionaries(st.sampled_from(["model", "target", "goals", "x"]), st.none() | st.text(max_size=5) | st.integers())
)
def test_no_document_raises_anything_but_an_input_error(value: dict[str, object]) -> None:
    import yaml

    with contextlib.suppress(InputError):
        assert isinstance(parse_spec(yaml.safe_dump(value)), Spec)


def test_how_many_cards_may_be_left_open() -> None:
    target = parse_spec("model: x\ntarget: { gpu: h100, count: auto }\n").target
    assert (target.fewest, target.cards, target.node) == (True, 8, 8)
    assert parse_spec("model: x\ntarget: { gpu: h100, count: auto, max: 16 }\n").target.cards == 16
    with pytest.raises(InputError, match="leave it out"):
        parse_spec("model: x\ntarget: { gpu: h100, count: 2, max: 4 }\n")


@pytest.mark.parametrize(
    ("text", "clients"),
    [
        ("goals: { prefer: throughput }", "auto"),
        ("goals: { throughput: 900 tok/s }", "auto"),
        ("goals: { prefer: cost }\nworkload: { concurrency: 64 }", 64),
        ("goals: { prefer: speed }", 1),
    ],
)
def test_clients_are_chosen_where_goals_on_all_of_them_leave_them_open(text: str, clients: object) -> None:
    spec = parse_spec(MINIMAL + text)
    assert spec.workload.concurrency == clients
    assert Spec.model_validate(spec.model_dump(mode="json")) == spec


def test_goals_on_percentiles_are_written_as_they_are_read() -> None:
    spec = parse_spec(MINIMAL + "goals: { ttft: { p95: 800 ms }, tpot: 30 ms }")
    said = spec.model_dump(mode="json", exclude_none=True)
    assert said["goals"]["ttft"] == {"p95": "0.8 s"} and said["goals"]["tpot"] == "0.03 s"
    assert Spec.model_validate(said) == spec


def test_loads_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"time": 0, "input": 5000, "output": 100}\n')
    text = f"{MINIMAL}workload: {{ context: 4096, trace: {trace}"
    with pytest.raises(InputError, match="a request of 5,100 tokens"):
        (tmp_path / "spec.yaml").write_text(text.replace("model: x", "model: Qwen/Qwen2.5-7B-Instruct") + " }")
        load_spec(tmp_path / "spec.yaml")
    with pytest.raises(InputError, match="not both"):
        parse_spec(text + ", rate: 2/s }")
    with pytest.raises(InputError, match="longer than the prompts"):
        parse_spec(MINIMAL + "workload: { shared_prefix: 3000 }")


def test_a_number_of_cards_in_a_patch_takes_the_most_of_auto_away() -> None:
    spec = parse_spec("model: x\ntarget: { gpu: h100, count: auto, max: 4 }\n")
    assert patched(spec, {"target": {"count": 2}}).target.cards == 2


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("workload: { input: 500, input_tokens: 600 }", "input and input_tokens are one length"),
        ("goals: { ttft: { p95: 800 } }", "goals.ttft.p95: 800 has no unit"),
        ("goals: { tpot: { p95: -1 s } }", "goals.tpot.p95: '-1 s' is negative"),
        ("goals: { ttft: { p95: 1 s, p99: 2 s } }", "name one percentile"),
        ("goals: { decode: { p95: 20 tok/s } }", "percentiles are of times: tpot: { p95: 50 ms }"),
        ("workload: { rate: { mean: 4 } }", "should be a rate of requests, such as 4/s, or inf, and is a mapping"),
    ],
)
def test_what_is_wrong_of_lengths_and_goals_is_said_at_its_place(written: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_spec(MINIMAL + written)
    assert said in refused.value.message


def test_the_schema_has_keys_as_users_write_them_described_and_with_examples() -> None:
    document = schema()
    parts = document["$defs"]
    assert (
        parts["Target"]["properties"]["reserve"]["type"] == "string"
        and parts["Target"]["properties"]["reserve"]["default"] == "0 B"
    )
    ttft = parts["Goals"]["properties"]["ttft"]
    assert (
        ttft["anyOf"][0]["type"] == "string"
        and "500 ms" in ttft["anyOf"][0]["examples"]
        and "p95" in ttft["description"]
    )
    assert parts["Goals"]["properties"]["confidence"]["default"] == "80%"
    assert {"input", "input_tokens"} <= parts["WorkloadSpec"]["properties"].keys()
    numbers = {
        (part, key)
        for part, definition in parts.items()
        for key, field in definition["properties"].items()
        for kind in (field, *field.get("anyOf", ()))
        if kind.get("type") == "number"
    }
    assert not {key for _, key in numbers} & {"ttft", "tpot", "decode", "throughput", "reserve", "rate", "share", "p95"}


def test_what_people_type_is_taken() -> None:
    spec = parse_spec(
        "model: Qwen2.5-7B-Instruct\ntarget: { gpu: 4090 }\n"
        "workload: { context: 32k, input_tokens: { mean: 1k, p95: 2K } }\n"
        "passes: { quantize: { methods: gptq, formats: int4 } }"
    )
    assert spec.target.gpu == "4090"
    assert (spec.workload.context, spec.workload.input.p95) == (32768, 2048)
    assert spec.passes.quantize.methods == ("gptq",)  # type: ignore[union-attr]
    assert spec.passes.quantize.formats == ("int4",)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        ("quantize: awq", {"quantize": {"methods": ["awq"]}}), ("quantize: 4bit", {"quantize": {"formats": ["4bit"]}}),
        ("quantize: [gptq, w4a16-g64]", {"quantize": {"methods": ["gptq"], "formats": ["w4a16-g64"]}}),
        ("quantize: no", {"quantize": "forbid"}), ("quantize: allow", {}), ("quantize: yes", {}), ("prune: yes", {"prune": "allow"}),
        ("prune: no", {}), ("kv_cache: fp8", {"kv_cache": ["fp8"]}),
    ],
)  # fmt: skip
def test_a_choice_of_passes_is_named_as_people_do(typed: str, means: dict[str, object]) -> None:
    minimal = {"model": "x", "target": {"gpu": "rtx-4090"}}
    assert parse_spec(MINIMAL + f"passes: {{ {typed} }}") == Spec.model_validate(minimal | {"passes": means})


@pytest.mark.parametrize(
    ("typed", "means"), [("4bit", "w4a16-g128"), ("INT4", "w4a16-g128"), ("awq", "awq-4-g128"), ("gptq", "gptq-4-g128")]
)
def test_a_format_is_named_as_people_do(typed: str, means: str) -> None:
    assert pass_named(typed) == pass_named(means)


def test_errors_come_all_at_once_each_with_its_place() -> None:
    with pytest.raises(InputError) as caught:
        parse_spec("model: m\ntarget: { gpu: L4, count: two }\nworkload: { context: lots }\ngoals: { prefer: best }\n")
    text = str(caught.value)
    assert all(place in text for place in ("spec:2:20: ", "spec:3:13: ", "spec:4:10: "))
    assert text.count("target.count") == 1
    assert all(
        meaning in text for meaning in ("count: Cards at hand", "context: The longest sequence", "prefer: `speed`")
    )


def test_errors_of_a_mapping_come_all_at_once_too() -> None:
    with pytest.raises(InputError) as caught:
        as_spec({"target": {"gpu": "L4", "count": "two"}, "workload": {"context": "lots"}})
    assert all(key in str(caught.value) for key in ("target.count: ", "workload.context: ", "'model' is missing"))


def test_a_misspelt_key_of_the_top_is_told_to_belong_there() -> None:
    with pytest.raises(InputError, match=r"'target.engnie'. Did you mean 'engine' at the top"):
        parse_spec("model: m\ntarget: { gpu: L4, engnie: vllm }\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("target: { gpu: L4, reserve: 2 }", ("reserve: Memory to keep free", "0.5 GiB")),
        ("target: L4", ("for example `target: {count: 1, gpu: rtx-4090",)),
        ("target: { gpu: L4 }\ngoals: { prefer: best }", ("prefer: `speed`", "`prefer: quality`")),
    ],
)
def test_an_error_says_what_its_key_means_and_how_it_is_written(text: str, says: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        parse_spec(f"model: m\n{text}\n")
    assert all(part in (caught.value.remedy or "") for part in says), caught.value.remedy


def test_lengths_that_nobody_told_fit_a_short_context() -> None:
    load = parse_spec(MINIMAL + "workload: { context: 512 }").workload
    assert (load.input.longest, load.output.longest) == (410, 102)
    assert parse_spec(MINIMAL + "workload: { context: 2048 }").workload.input.mean == 512


@pytest.mark.parametrize("typed", ["vllm 0.32", "vllm==0.32", "vllm:v0.32", "vllm@0.32", "vllm=0.32"])
def test_an_engine_with_its_version_in_one_is_taken_apart(typed: str) -> None:
    engine = parse_spec(f"model: Llama-3.1-8B-Instruct\ntarget: {{ gpu: L4 }}\nengine: '{typed}'\n").engine
    assert not isinstance(engine, str) and (engine.name, engine.version) == ("vllm", "0.32")
