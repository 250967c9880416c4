"""Running a chain: what is done is not done again, what is described is what is on disk, what is refused is refused early."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from passes import chain
from passes.blocks.decoded_weights import DecodedCheckpoint
from passes.errors import GoalMissedError, InputError, TightfitError
from passes.files.checkpoint import Checkpoint
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.fp4 import Mxfp4, Nvfp4
from passes.formats.gptq import Gptq
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.quantize.at_load import QuantizeAtLoad
from passes.quantize.quantize import Quantize
from passes.run.assemble import differences
from passes.run.execute import execute
from passes.run.job import Job, Outcome
from passes.run.result_folder import MARKER
from passes.steps.progress import Progress
from passes.text.source import TextSource, token_blocks
from tests.walk.conftest import save_tokenizer

pytestmark = pytest.mark.slow

CHAIN = (Quantize("gptq", PackQuantized(4, 32)), KVCachePass("fp8", True))


@pytest.fixture
def job(llama: Path, llama_ir: ModelIR, tmp_path: Path) -> Job:
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog; it is seldom seen to rest. " * 40)
    return Job(
        llama_ir, llama, CHAIN, tmp_path / "out", tmp_path / "work",
        calibration=TextSource(str(text), 8, 32), evaluation=TextSource("python-reference", 4, 32),
    )  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def ran(outcome: Outcome) -> list[str]:
    return [step.name for step in outcome.steps if not step.reused]


def test_a_second_run_does_nothing(job: Job) -> None:
    first, before = execute(job), digests(job.out)
    second = execute(job)
    assert ran(first) == ["calibration text", "evaluation text", "walk", "assemble", "evaluate"]
    assert ran(second) == [] and digests(job.out) == before
    assert second.measured == first.measured and second.tensor_bytes == first.tensor_bytes


def test_a_changed_option_redoes_only_what_follows(job: Job) -> None:
    execute(job)
    assert ran(execute(replace(job, evaluation=TextSource("python-reference", 3, 32)))) == [
        "evaluation text",
        "evaluate",
    ]
    assert ran(execute(replace(job, passes=CHAIN[:1]))) == ["walk", "assemble", "evaluate"]


def test_the_same_job_elsewhere_gives_the_same_bytes(job: Job, tmp_path: Path) -> None:
    execute(job)
    execute(replace(job, out=tmp_path / "other", work=tmp_path / "other-work"))
    assert digests(job.out) == digests(tmp_path / "other")


def test_the_source_is_never_touched(job: Job) -> None:
    before = digests(job.folder)
    execute(job)
    assert digests(job.folder) == before


def test_disk_holds_exactly_what_is_described(job: Job) -> None:
    outcome = execute(job)
    assert differences(job.out, outcome.target) == []
    assert outcome.tensor_bytes == sum(t.bytes for t in Checkpoint(job.out).describe())


@pytest.mark.parametrize("damage", ["missing", "extra", "dtype", "shape"])
def test_any_difference_from_the_description_is_seen(job: Job, damage: str) -> None:
    target = execute(job).target
    shard = next(job.out.glob("model-00002*.safetensors"))
    tensors = load_file(shard)
    name = next(name for name in tensors if name.endswith("weight_scale"))
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors["model.layers.1.surprise"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name].half() if damage == "dtype" else tensors[name].reshape(-1)
    shard.unlink()
    save_file(tensors, shard)
    assert len(differences(job.out, target)) == 1


def test_a_result_that_differs_is_never_published(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.run.assemble.differences", lambda folder, target: ["x is missing"])
    with pytest.raises(GoalMissedError, match="x is missing"):
        execute(job)
    assert not job.out.exists()


@pytest.mark.parametrize(
    "storage",
    [PackQuantized(4, 64), PackQuantized(8, -1), PackQuantized(4, 32, symmetric=False), Gptq(4, 32), Gptq(8, -1), IntQuantized(),
     IntQuantized(static=True), FloatQuantized(), FloatQuantized(0), FloatQuantized(-1, (32, 32)), FloatQuantized(static=True),
     Nvfp4(), Nvfp4(activations=False), Mxfp4()],
    ids=lambda form: f"{form.kind}-{form.label}",
)  # fmt: skip
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_every_format_is_written_as_described(job: Job, storage: PackQuantized, method: str) -> None:
    outcome = execute(replace(job, passes=(Quantize(method, storage),)))
    assert differences(job.out, outcome.target) == []
    assert 0 <= outcome.measured.kl < 1


@pytest.mark.parametrize(
    "storage", [IntQuantized(static=True), FloatQuantized(static=True), Nvfp4()], ids=lambda form: form.label
)
def test_stored_scales_of_inputs_are_their_largest_magnitude(job: Job, storage: IntQuantized) -> None:
    from transformers import AutoModelForCausalLM

    execute(replace(job, passes=(Quantize("rtn", storage),)))
    model, seen = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32), [0.0]
    query = model.get_submodule("model.layers.0.self_attn.q_proj")
    query.register_forward_pre_hook(lambda _, args: seen.append(float(args[0].abs().max())))
    with torch.no_grad():
        model(token_blocks(job.calibration, job.folder))
    name = "input_global_scale" if isinstance(storage, Nvfp4) else "input_scale"
    [stored] = Checkpoint(job.out).read([f"model.layers.0.self_attn.q_proj.{name}"]).values()
    expected = 448 * 6 / max(seen) if isinstance(storage, Nvfp4) else max(seen) / storage.grid.bounds[1]
    assert float(stored) == pytest.approx(expected, rel=1e-5)


def test_matrices_that_engines_fuse_share_the_global_scale(job: Job) -> None:
    execute(replace(job, passes=(Quantize("gptq", Nvfp4()),)))
    for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
        read = Checkpoint(job.out).read([f"model.layers.1.{name}.weight_global_scale" for name in names])
        assert len({float(scale) for scale in read.values()}) == 1


def test_transformers_computes_with_the_decoded_weights(job: Job) -> None:
    from transformers import AutoModelForCausalLM

    outcome = execute(replace(job, passes=CHAIN[:1]))  # without KV scales, which transformers would apply too
    loaded = AutoModelForCausalLM.from_pretrained(job.out, dtype=torch.float32)
    decoded = DecodedCheckpoint(Checkpoint(job.out), outcome.target, torch.float32)
    name = "model.layers.1.mlp.down_proj.weight"
    ids = torch.arange(20)[None]
    plain = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
    plain.load_state_dict({key: decoded.read([key])[key] for key, _ in plain.named_parameters()}, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, plain(ids).logits, rtol=1e-2, atol=1e-2)
    assert name in decoded


def test_progress_counts_blocks(job: Job) -> None:
    events: list[Progress] = []
    execute(job, events.append)
    walked = [event.done for event in events if event.step == "walk" and event.total > 1]
    assert walked == [1, 2, 3, 4]
    assert events[-1].step == "evaluate" and events[-1].done == events[-1].total
    judged = [event.done for event in events if event.step == "evaluate" and event.total > 1]
    assert judged == sorted(judged) and judged[-1] > 4, "blocks of both models, then what their heads are asked"


def test_config_tokenizer_and_marker_come_along(job: Job) -> None:
    execute(job)
    config = json.loads((job.out / "config.json").read_text())
    assert config["quantization_config"]["kv_cache_scheme"]["num_bits"] == 8
    assert (job.out / "tokenizer.json").read_bytes() == (job.folder / "tokenizer.json").read_bytes()
    assert chain.from_json(json.loads((job.out / MARKER).read_text())["passes"]) == CHAIN


def test_folders_that_are_not_ours_are_not_overwritten(job: Job) -> None:
    job.out.mkdir()
    (job.out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a result of tightfit"):
        execute(job)
    assert (job.out / "thesis.txt").exists()


def test_output_inside_the_source_is_refused(job: Job) -> None:
    with pytest.raises(InputError, match="overlaps the source"):
        execute(replace(job, out=job.folder / "quantized"))


def test_judging_by_the_calibration_text_is_refused(job: Job) -> None:
    with pytest.raises(InputError, match="calibration and evaluation text are both"):
        execute(replace(job, evaluation=replace(job.calibration, seed=5)))


def test_illegal_chains_are_refused_before_any_work(job: Job) -> None:
    with pytest.raises(InputError, match="order"):
        execute(replace(job, passes=CHAIN[::-1]))
    with pytest.raises(InputError):
        execute(replace(job, passes=(Quantize("gptq", PackQuantized(4, 128)),)))
    assert not job.work.exists()


def test_a_file_in_the_way_of_the_work_folder_is_one_clear_message(job: Job, tmp_path: Path) -> None:
    (tmp_path / "locked").write_text("")
    with pytest.raises((TightfitError, NotADirectoryError)):
        execute(replace(job, work=tmp_path / "locked" / "work"))


def test_nan_weights_end_in_a_clear_message_and_a_resumable_state(job: Job, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in job.folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TightfitError, match=r"model\.layers\.2\.mlp.*NaN"):
        execute(replace(job, folder=broken))
    assert not job.out.exists()
    state = json.loads(next(job.work.glob("walk-*/state.json")).read_text())
    assert state["done"] == 2
    gc.collect()  # the batches that waited in that block are gone now, and have left the gradient mode alone
    assert torch.is_grad_enabled()


def test_a_run_that_was_interrupted_resumes(job: Job) -> None:
    def interrupt(event: Progress) -> None:
        if event.step == "walk" and event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(job, interrupt)
    blocks: list[int] = []
    execute(job, lambda event: blocks.append(event.done) if event.step == "walk" and event.total > 1 else None)
    assert blocks == [3, 4]


_NO_CLASS = {
    "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "torch_dtype": "float32", "bias": False, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def without_class(tmp_path: Path) -> Path:
    """A model of a family that transformers has no class for."""
    folder = tmp_path / "internlm2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_NO_CLASS))
    tensors = {tensor.name: torch.randn(tensor.shape) for tensor in open_model(folder).ir.tensors()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(folder)
    return folder


def test_a_family_without_a_class_is_rounded_and_said_not_to_be_measured(job: Job, without_class: Path) -> None:
    rounded = (Quantize("rtn", FloatQuantized(-1)),)
    outcome = execute(replace(job, source=open_model(without_class).ir, folder=without_class, passes=rounded))
    assert outcome.measured is None and (job.out / MARKER).exists()
    with pytest.raises(InputError, match="no model class for 'internlm2'"):
        execute(replace(job, source=open_model(without_class).ir, folder=without_class))
    with pytest.raises(InputError, match="cannot write its own calibration text"):
        token_blocks(TextSource("self", 2, 16), without_class)


def test_a_family_that_transformers_does_not_know_loses_no_result(job: Job, llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unheard"
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "unheard_of", "architectures": ["UnheardOfForCausalLM"]})
    )
    unheard = replace(job, source=open_model(folder, assume="full-attention").ir, folder=folder)
    assert execute(replace(unheard, passes=(Quantize("rtn", FloatQuantized(-1)),))).measured is None
    with pytest.raises(InputError, match="no model class for 'unheard_of'"):
        execute(unheard)


def test_what_the_engine_rounds_while_it_loads_is_not_measured(job: Job) -> None:
    """The folder holds the dense model: compared with its source it would seem to lose nothing."""
    outcome = execute(replace(job, passes=(QuantizeAtLoad("nf4"),)))
    assert outcome.measured is None
    stored, source = load_file(job.out / "model-00001.safetensors"), load_file(job.folder / "model.safetensors")
    assert all(torch.equal(tensor, source[name]) for name, tensor in stored.items())
