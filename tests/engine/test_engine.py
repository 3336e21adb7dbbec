"""The engine against transformers on the same weights, and its own promises."""

import dataclasses

import numpy as np
import pytest
import torch

from apr import engine as engines
from apr.errors import FeatureUnavailable, InferenceError, ModelLoadError, UsageError
from apr.families import llama
from apr.tensors import from_torch

transformers = pytest.importorskip("transformers")

SHAPES = [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "num_kv_heads": 1}]


def peer(decoder):
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**llama.to_hf(decoder.architecture), bos_token_id=None,
                                 eos_token_id=None, pad_token_id=0),
        attn_implementation="eager",
    )  # fmt: skip
    model.load_state_dict(decoder.state_dict())
    return model.eval()


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_logits_and_greedy_text_equal_those_of_transformers(build, changes):
    decoder, model = build(**changes)
    engine = engines.load(model, device="cpu")
    theirs = peer(decoder)
    prompt = [5, 17, 203, 88, 41, 7, 120]
    with torch.no_grad():
        reference = theirs(torch.tensor([prompt])).logits[0].numpy()
        greedy = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None
        )[0, len(prompt) :].tolist()
    logits = engine.logits(prompt)
    assert logits.shape == (7, 300)
    assert logits.dtype == np.float32
    assert np.abs(logits - reference).max() < 2e-5
    generation = engine.generate(prompt, 40, stop_ids=())
    assert generation.ids == greedy
    assert generation.stop_reason == "length"
    assert generation.decode_steps == 39


def test_prefill_decode_and_the_whole_pass_agree_at_every_position(build):
    _, model = build()
    engine = engines.load(model, device="cpu")
    ids = [(37 * i + 11) % 300 for i in range(60)]
    whole = engine.logits(ids)
    session = engine.session()
    assert np.abs(session.prefill(ids[:25]) - whole[24]).max() < 2e-5
    assert np.abs(session.prefill(ids[25:40]) - whole[39]).max() < 2e-5
    for position in range(40, 60):
        assert np.abs(session.decode(ids[position]) - whole[position]).max() < 2e-5
    assert session.length == 60


def test_sessions_do_not_touch_each_other(build):
    _, model = build()
    engine = engines.load(model, device="cpu")
    alone = [engine.session().prefill([1, 2, 3]), engine.session().prefill([9, 8])]
    first, second = engine.session(), engine.session()
    assert np.array_equal(first.prefill([1, 2, 3]), alone[0])
    assert np.array_equal(second.prefill([9, 8]), alone[1])
    a = first.decode(4)
    assert np.array_equal(engine.session().prefill([1, 2, 3]), alone[0])
    again = engine.session()
    again.prefill([1, 2, 3])
    assert np.array_equal(again.decode(4), a)


def test_a_file_of_one_dtype_is_computed_in_place_without_a_copy(build):
    _, model = build()
    pages = {}
    for name, tensor in model.tensors.items():
        raw = tensor.raw()
        raw.flags.writeable = False
        pages[name] = raw
    mapped = dataclasses.replace(
        model,
        tensors={
            name: dataclasses.replace(t, load=lambda name=name: pages[name])
            for name, t in model.tensors.items()
        },
    )
    engine = engines.load(mapped, device="cpu", kernels="torch")
    assert engine.plan.mapped_bytes == engine.plan.weight_bytes == sum(map(len, pages.values()))
    weight = engine._decoder.model.embed_tokens.weight
    assert weight.data_ptr() == pages["model.embed_tokens.weight"].ctypes.data
    same = engines.load(model, "cpu", kernels="torch")
    assert np.array_equal(engine.logits([1, 2, 3]), same.logits([1, 2, 3]))


def test_a_tied_head_is_counted_once_and_shared(build):
    _, model = build(tie_word_embeddings=True)
    engine = engines.load(model, device="cpu", kernels="torch")
    assert engine._decoder.lm_head.weight is engine._decoder.model.embed_tokens.weight
    assert engine.plan.weight_bytes == sum(t.nbytes for t in model.tensors.values())


def test_the_plan_says_what_is_stored_what_computes_and_why(build):
    _, model = build(dtype=torch.float16)
    plan = engines.load(model, device="cpu", threads=1, kernels="torch").plan
    assert plan.weights == "float32"
    assert "widened to float32" in plan.reason
    assert plan.threads == 1
    assert plan.device == "cpu"
    assert "stored F16" in str(plan)
    asked = engines.load(model, device="cpu", dtype="bfloat16").plan
    assert asked.weights == asked.cache == "bfloat16"
    assert "bfloat16 was asked for, the file stores F16" in str(asked)
    assert set(plan.to_json()) == {f.name for f in dataclasses.fields(plan)}


def test_float32_norms_beside_bfloat16_matrices_compute_in_the_matrices_type(build):
    decoder, model = build(dtype=torch.bfloat16)
    norms = {
        name: from_torch(name, value)
        for name, value in decoder.canonical_state().items()
        if name.endswith("norm.weight")
    }
    mixed = dataclasses.replace(model, tensors={**model.tensors, **norms})
    engine = engines.load(mixed, device="cpu", dtype="bfloat16")
    assert list(engine.plan.stored) == ["BF16", "F32"]
    assert engine.plan.weights == "bfloat16"
    reference = engines.load(model, device="cpu", dtype="float32").logits([1, 2, 3])
    scale = np.abs(reference).max()
    assert np.abs(engine.logits([1, 2, 3]) - reference).max() / scale < 0.05


def test_missing_and_unexpected_tensors_are_all_named(build):
    _, model = build()
    tensors = dict(model.tensors)
    del tensors["model.norm.weight"]
    tensors["extra"] = from_torch("extra", torch.ones(2))
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight.*extra"):
        engines.load(dataclasses.replace(model, tensors=tensors), device="cpu")


def test_what_cannot_be_run_is_one_clear_error(build):
    _, model = build()
    engine = engines.load(model, device="cpu")
    with pytest.raises(InferenceError, match="100 prompt tokens and 30 new ones need 129 posit"):
        engine.generate([1] * 100, 30)
    assert len(engine.generate([1] * 100, 29, stop_ids=()).ids) == 29
    with pytest.raises(InferenceError, match="129 positions"):
        engine.logits([1] * 129)
    session = engine.session()
    session.prefill([1] * 128)
    with pytest.raises(InferenceError, match="129 positions"):
        session.decode(1)
    with pytest.raises(InferenceError, match="token id 300 is outside the vocabulary of 300"):
        engine.logits([300])
    with pytest.raises(InferenceError, match="token id -1"):
        engine.logits([3, -1])
    with pytest.raises(InferenceError, match="no tokens"):
        engine.session().prefill([])
    with pytest.raises(UsageError, match="max_tokens"):
        engine.generate([1], 0)
    with pytest.raises(UsageError, match="threads"):
        engines.load(model, threads=0)
    with pytest.raises(UsageError, match="1000000 is more than 1024"):
        engines.load(model, threads=1_000_000)
    if not torch.cuda.is_available():
        with pytest.raises(FeatureUnavailable, match="cuda"):
            engines.load(model, device="cuda")


def test_generation_stops_at_any_of_several_stop_ids_and_leaves_it_out(build):
    _, model = build()
    engine = engines.load(model, device="cpu")
    free = engine.generate([5, 6, 7], 20, stop_ids=()).ids
    stop = next(i for i in free[3:] if i not in free[:3])
    at = free.index(stop)
    seen: list[int] = []
    generation = engine.generate([5, 6, 7], 20, stop_ids=[299, stop], on_token=seen.append)
    assert generation.ids == seen == free[:at]
    assert (generation.stop_reason, generation.stop_id) == ("stop", stop)
    assert generation.decode_steps == at


def test_a_seed_repeats_its_text_and_another_changes_it(build):
    _, model = build()
    engine = engines.load(model, device="cpu")
    texts = [
        engine.generate([5], 30, temperature=1.0, top_k=50, top_p=0.95, seed=s, stop_ids=()).ids
        for s in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_times_and_rates_are_consistent(build):
    _, model = build()
    generation = engines.load(model, device="cpu").generate([5] * 10, 8, stop_ids=())
    assert generation.time_to_first_token >= generation.prefill_seconds > 0
    rate = generation.decode_tokens_per_second
    assert rate == pytest.approx(7 / generation.decode_seconds)
    assert generation.prefill_tokens_per_second == pytest.approx(10 / generation.prefill_seconds)
