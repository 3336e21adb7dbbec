"""Every gate can fail: one thing is broken at a time, and the gate that owns it names it."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from apr import contracts, qa
from apr.engine import Engine, Session
from apr.formats import open_model, write_gguf, write_hf
from apr.formats.rows import permuted
from apr.qa import behaviour, output, weights
from apr.qa.subject import Settings, Subject
from apr.tensors import from_array, from_torch


def limits(name):
    return next(g["limits"] for g in contracts.load("gates")["gates"] if g["name"] == name)


def gate(report, name):
    return next(g for g in report.gates if g.name == name)


def subject_of(tiny):
    return Subject(tiny.opened().path, "apr", tiny.opened(), None, Settings("cpu"))


# -- integrity, metadata ------------------------------------------------------------------------


def test_one_flipped_bit_in_a_weight_fails_integrity_and_nothing_runs(
    make_tiny, verdicts, tmp_path
):
    path = make_tiny().write(tmp_path / "m.apr")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    report = qa.run(path, device="cpu")
    found = verdicts(report)
    assert found["integrity"] == "fail"
    assert "body checksum" in gate(report, "integrity").message
    assert found["determinism"] == found["tensor_contract"] == "skip"
    assert not report.passed


@pytest.mark.parametrize("key", contracts.load("metadata")["required"])
def test_each_missing_key_is_named_with_the_names_that_were_tried(make_tiny, tmp_path, key):
    drop = (key, "num_heads") if key == "head_dim" else (key,)
    path = make_tiny().write_bare(tmp_path / "m.apr", drop=drop)
    report = qa.run(path, device="cpu")
    found = gate(report, "metadata")
    assert found.verdict == "fail"
    assert key in found.message
    if key in contracts.load("metadata")["aliases"]:
        assert "also tried" in found.message
    assert gate(report, "tokenizer").verdict == "pass"


def test_an_implausible_value_and_a_key_stated_twice_are_named(make_tiny, tmp_path):
    tiny = make_tiny()
    path = tiny.write_bare(tmp_path / "m.apr", rope_theta=2.0, n_embdx=64, param_count=7)
    # Our own writer refuses an alias, so it is put in by hand.
    path.write_bytes(path.read_bytes().replace(b'"n_embdx"', b'"n_embd" '))
    message = gate(qa.run(path, only=["metadata"]), "metadata").message
    assert "LLAMA-THETA" in message
    assert "hidden_size stands beside its other name n_embd" in message
    assert "param_count says 7" in message


# -- tensors ------------------------------------------------------------------------------------


def broken_tensor(make_tiny, name, change):
    tiny = make_tiny(trained=True)
    weight = tiny.weights[name].clone()
    change(weight)
    tiny.weights[name] = weight
    return weights.tensor_contract(subject_of(tiny), limits("tensor_contract"))


DOWN, EMBED, NORM = (
    "model.layers.1.mlp.down_proj.weight",
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (DOWN, lambda w: w.view(-1)[77].fill_(math.nan), "holds 1 values that are not finite"),
        (DOWN, lambda w: w[3, :2].fill_(math.inf), "holds 2 values that are not finite"),
        (DOWN, lambda w: w.zero_(), "is dead: L2 norm 0"),
        (DOWN, lambda w: w.fill_(0.25), "is constant: every element is 0.25"),
        (DOWN, lambda w: w[:60].zero_(), "zeros, at most 80% may be"),
        (EMBED, lambda w: w[:, :40].zero_(), "62.5% zeros, at most 50%"),
        (EMBED, lambda w: w[: len(w) // 3].zero_(), "dead rows of"),
        (NORM, lambda w: w.zero_(), "is dead"),
        (NORM, lambda w: w.fill_(2.0), "is constant: every element is 2"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_each_way_to_be_dead_is_named_with_its_tensor(make_tiny, name, change, message):
    finding = broken_tensor(make_tiny, name, change)
    assert not finding.passed
    assert finding.message.startswith(name)
    assert message in finding.message


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (NORM, lambda w: w.fill_(1.0)),
        (DOWN, lambda w: w[:50].zero_()),
        (EMBED, lambda w: w[: len(w) // 5].zero_()),
        (DOWN, lambda w: w.mul_(1e15)),  # its float32 sum of squares overflows
    ],
    ids=["fresh norm", "78 % zeros", "20 % dead rows", "huge but finite"],
)
def test_what_is_only_unusual_passes(make_tiny, name, change):
    assert broken_tensor(make_tiny, name, change).passed


@pytest.mark.parametrize(
    ("recipe", "value", "said"),
    [
        ("plus_one", 0.0, ""),
        ("plus_one", 1.0, "is constant: every element is 1"),
        ("plain", 1.0, ""),
        ("plain", 0.0, "is dead"),
    ],
)
def test_a_fresh_norm_is_neutral_by_its_factor(recipe, value, said):
    """Gemma's factor is 1 + weight, and its norms begin at 0."""
    from apr.families import Place, TensorSpec

    spec = TensorSpec("n", (8,), "norm", Place(("n",)), Place(("blk.0.n",), recipe))
    figures = weights.measure(from_array("n", np.full(8, value, np.float32)))
    found = weights.verdicts(spec, figures, limits("tensor_contract"))
    assert found == [] if not said else found[0].startswith(said)


def test_filler_rows_of_the_embedding_may_be_zero(make_tiny):
    tiny = make_tiny(vocab_size=800)
    tiny.weights[EMBED][320:] = 0.0
    finding = weights.tensor_contract(subject_of(tiny), limits("tensor_contract"))
    assert finding.passed, finding.message
    assert "480 filler rows left out" in finding.message


def test_missing_and_misshapen_tensors_are_named_and_nothing_runs(make_tiny, verdicts, tmp_path):
    tiny = make_tiny()
    del tiny.weights[DOWN]
    tiny.weights[NORM] = torch.ones(63)
    report = qa.run(tiny.write_bare(tmp_path / "m.apr"), device="cpu")
    found = verdicts(report)
    message = gate(report, "tensor_contract").message
    assert DOWN in message
    assert "[63]" in message
    assert found["determinism"] == "skip"
    assert "does not load" in gate(report, "determinism").reason
    assert DOWN in gate(report, "export_readiness").message


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "APR_Q8", "APR_Q4"])
def test_figures_of_every_storage_type_are_those_of_numpy(dtype):
    from apr import quant
    from apr.dtypes import DTYPES

    values = np.random.default_rng(1).normal(size=(700, 96)).astype(np.float32)
    values[5:9] = 0.0
    raw = quant.encode(DTYPES[dtype], values)
    tensor = dataclasses.replace(
        from_array("x", values), dtype=DTYPES[dtype], load=lambda: np.asarray(raw)
    )
    decoded = tensor.float32().astype(np.float64)
    keep = np.delete(decoded, [0, 7], axis=0)
    figures = weights.measure(tensor, skip_rows=[0, 7], dead_row_l2=1e-6)
    assert figures.elements == keep.size
    assert figures.zeros == int((keep == 0).sum())
    assert figures.l2 == pytest.approx(np.linalg.norm(keep), rel=1e-6)
    assert (figures.rows, figures.dead_rows) == (698, 3)
    assert weights.measure(tensor).zeros == int((decoded == 0).sum())


# -- tokenizer ----------------------------------------------------------------------------------


def test_a_tokenizer_that_loses_text_is_named_with_the_place(make_tiny, tmp_path):
    tiny = make_tiny()
    spec = {**tiny.tokenizer.spec, "normalizer": {"type": "Lowercase"}}
    tiny.tokenizer = dataclasses.replace(tiny.tokenizer, spec=spec)
    finding = gate(qa.run(tiny.write(tmp_path / "m.apr"), only=["tokenizer"]), "tokenizer")
    assert finding.verdict == "fail"
    assert "'English: the" in finding.message


def test_a_model_without_end_of_text_is_named(make_tiny, tmp_path):
    tiny = make_tiny()
    tiny.tokenizer = dataclasses.replace(tiny.tokenizer, eos_token_ids=())
    finding = gate(qa.run(tiny.write_bare(tmp_path / "m.apr"), only=["tokenizer"]), "tokenizer")
    assert "no end-of-text token" in finding.message


def test_a_token_list_of_another_length_than_the_embedding_is_named(make_tiny, tmp_path):
    tiny = make_tiny()
    keys = tiny.tokenizer.to_metadata(400)
    report = qa.run(tiny.write_bare(tmp_path / "m.apr", **keys), only=["tokenizer", "metadata"])
    assert "sizes differ: vocab_size 320, token list 400" in gate(report, "tokenizer").message


# -- behaviour: an engine with one defect -------------------------------------------------------


def run_gate(name, subject):
    return getattr(behaviour, name)(subject, limits(name))


def test_all_behaviour_gates_pass_without_a_defect(make_tiny):
    subject = subject_of(make_tiny(trained=True))
    for name in ("determinism", "prefill_equals_steps", "cache_equals_recompute",
                 "stream_equals_whole", "isolation"):  # fmt: skip
        assert run_gate(name, subject).passed, name


def test_noise_in_the_logits_fails_determinism(make_tiny, monkeypatch):
    noise = np.random.default_rng(0)
    plain = Engine.run

    def noisy(self, ids, cache, *, last=None):
        logits = plain(self, ids, cache, last=last)
        return logits + noise.normal(0, 1e-7, logits.shape).astype(np.float32)

    monkeypatch.setattr(Engine, "run", noisy)
    assert not run_gate("determinism", subject_of(make_tiny(trained=True))).passed


def test_positions_that_do_not_continue_after_the_cache_fail_prefill_and_cache(
    make_tiny, monkeypatch
):
    from apr.model.rotary import Rotary

    plain = Rotary.tables
    monkeypatch.setattr(Rotary, "tables", lambda self, p, dtype: plain(self, p - p[0], dtype))
    subject = subject_of(make_tiny(trained=True))
    assert not run_gate("prefill_equals_steps", subject).passed
    assert not run_gate("cache_equals_recompute", subject).passed


def test_a_cache_that_forgets_its_first_key_fails_prefill_and_cache(make_tiny, monkeypatch):
    from apr.model.cache import KVCache

    plain = KVCache.append

    def forgetful(self, layer, k, v):
        keys, values = plain(self, layer, k, v)
        keys = keys.clone()
        if keys.shape[2] > k.shape[2]:
            keys[:, :, 0] = 0
        return keys, values

    monkeypatch.setattr(KVCache, "append", forgetful)
    subject = subject_of(make_tiny(trained=True))
    assert not run_gate("prefill_equals_steps", subject).passed
    assert not run_gate("cache_equals_recompute", subject).passed


def test_one_cache_for_all_sessions_fails_isolation(make_tiny, monkeypatch):
    shared = {}
    plain = Session.__init__

    def init(self, engine):
        plain(self, engine)
        cache = shared.setdefault("cache", self._cache)
        self._cache = cache
        if cache.length > 60:
            cache.length = 0

    monkeypatch.setattr(Session, "__init__", init)
    assert not run_gate("isolation", subject_of(make_tiny(trained=True))).passed


def test_a_model_that_ignores_its_input_fails_isolation(make_tiny):
    tiny = make_tiny(trained=True)
    tiny.weights["model.norm.weight"] = torch.zeros(64)
    finding = run_gate("isolation", subject_of(tiny))
    assert "the input has no effect" in finding.message


def test_a_stream_that_cuts_characters_fails(make_tiny, monkeypatch):
    from apr.engine import StreamDecoder

    def cutting(self, token_id):
        return self._tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")

    monkeypatch.setattr(StreamDecoder, "feed", cutting)
    finding = run_gate("stream_equals_whole", subject_of(make_tiny(trained=True)))
    assert not finding.passed
    assert "many scripts" in finding.message


# -- evidence of training -----------------------------------------------------------------------


def evidence(tiny, tmp_path):
    report = qa.run(
        tiny.write(tmp_path / "m.apr"), only=["output_not_degenerate", "training_probe"],
        device="cpu",
    )  # fmt: skip
    return {g.name: g for g in report.gates}


def with_permuted_rows(tiny):
    for name in list(tiny.weights):
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        if heads:
            source = from_torch(name, tiny.weights[name])
            tiny.weights[name] = permuted(source, heads, to_gguf=True).torch().clone()


def with_a_random_layer(tiny):
    generator = torch.Generator().manual_seed(9)
    for name, weight in tiny.weights.items():
        if ".layers.1." in name and weight.ndim > 1:
            noise = torch.randn(weight.shape, generator=generator)
            tiny.weights[name] = noise * weight.std()


def with_rolled_embedding(tiny):
    tiny.weights[EMBED] = tiny.weights[EMBED].roll(1, 0)


@pytest.mark.parametrize(
    "damage",
    [with_permuted_rows, with_a_random_layer, with_rolled_embedding],
    ids=lambda f: f.__name__,
)
def test_the_probe_sees_weights_that_are_not_those_that_were_trained(make_tiny, tmp_path, damage):
    tiny = make_tiny(trained=True)
    damage(tiny)
    found = evidence(tiny, tmp_path)["training_probe"]
    assert found.verdict == "fail"
    assert "the trainer measured" in found.message


def test_another_rotary_base_than_that_of_training_fails_the_probe(make_tiny, tmp_path):
    tiny = make_tiny(trained=True)
    tiny.architecture = dataclasses.replace(tiny.architecture, rope_theta=500_000.0)
    assert evidence(tiny, tmp_path)["training_probe"].verdict == "fail"


@pytest.mark.parametrize("scale", [0.02, 20.0], ids=["flat", "collapsed"])
def test_a_model_far_from_its_recorded_loss_fails_the_output_gate(make_tiny, tmp_path, scale):
    tiny = make_tiny(trained=True)
    tiny.weights["model.norm.weight"] = tiny.weights["model.norm.weight"] * scale
    found = evidence(tiny, tmp_path)["output_not_degenerate"]
    assert found.verdict == "fail"
    assert ("collapsed" if scale > 1 else "lost what it learned") in found.message


def test_a_text_less_certain_than_the_validation_set_is_no_failure(make_tiny, tmp_path):
    """Seen on a healthy 10 M model: first tokens at 1.46 times the loss over whole documents."""
    tiny = make_tiny(trained=True)
    entropy = evidence(tiny, tmp_path)["output_not_degenerate"].value
    tiny.training["validation_loss"] = tiny.training["train_loss"] = entropy / 1.6
    (tmp_path / "m.apr").unlink()
    assert evidence(tiny, tmp_path)["output_not_degenerate"].verdict == "pass"


def test_a_model_at_chance_is_skipped_not_passed(make_tiny, tmp_path):
    tiny = make_tiny(trained=True)
    tiny.training["validation_loss"] = math.log(320)
    del tiny.training["probe"]
    found = evidence(tiny, tmp_path)
    assert found["output_not_degenerate"].verdict == "skip"
    assert "chance" in found["output_not_degenerate"].reason
    assert found["training_probe"].verdict == "skip"
    tiny.training["step"] = 0
    (tmp_path / "m.apr").unlink()
    assert "untrained" in evidence(tiny, tmp_path)["output_not_degenerate"].reason


@pytest.mark.parametrize("probe", [{"ids": []}, {"ids": ["a", "b"], "loss": 1.0}, {"ids": [1, 2]}])
def test_a_malformed_probe_fails_instead_of_being_ignored(make_tiny, tmp_path, probe):
    tiny = make_tiny(trained=True)
    tiny.training["probe"] = probe
    found = evidence(tiny, tmp_path)["training_probe"]
    assert (found.verdict, "malformed" in found.message) == ("fail", True)


ENGLISH = "It was the best of times, it was the worst of times, it was the age of wisdom."


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        ("aaaaaaaaaaaaaaaaaaaa", "100% of it is 'a'"),
        ("the cat the cat the cat the cat the cat the cat ", "fragments three times in a row"),
        ("ab\ufffd\ufffd\ufffd\ufffdcd", "no character"),
        ("это не английский текст вовсе", "not ASCII"),
    ],
)
def test_each_rule_of_garbage_is_named(text, what):
    found = output.garbage(text, ENGLISH, limits("output_not_degenerate"))
    assert len(found) == 1
    assert what in found[0]


@pytest.mark.parametrize(
    "text",
    [ENGLISH, "def f(x):\n" + " " * 40 + "return x\n", "# " + "-" * 20 + "\nx = [0, 0, 0, 0, 0]"],
)
def test_what_code_and_prose_look_like_is_no_garbage(text):
    assert output.garbage(text, ENGLISH, limits("output_not_degenerate")) == []


# -- export, parity -----------------------------------------------------------------------------


def test_a_pre_tokenizer_that_llama_cpp_does_not_know_fails_export_readiness(make_tiny, tmp_path):
    tiny = make_tiny()
    steps = [{"type": "Digits", "individual_digits": True}, tiny.tokenizer.spec["pre_tokenizer"]]
    spec = {**tiny.tokenizer.spec, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    tiny.tokenizer = dataclasses.replace(tiny.tokenizer, spec=spec)
    path = tiny.write_bare(tmp_path / "m.apr")
    found = gate(qa.run(path, only=["export_readiness"]), "export_readiness")
    assert found.verdict == "fail"
    assert "pre-tokenizer that llama.cpp knows" in found.message


def parity(path, other):
    report = qa.run(path, against=other, only=["format_parity"], device="cpu")
    return gate(report, "format_parity")


def test_parity_holds_for_the_rounding_of_a_type_and_not_for_other_weights(make_tiny, tmp_path):
    tiny = make_tiny(trained=True)
    source = tiny.write(tmp_path / "a.apr")
    model = open_model(source)
    for kind in ("f16", "bf16", "q8_0"):
        write_gguf(tmp_path / f"{kind}.gguf", model, quantize=kind)
        found = parity(tmp_path / f"{kind}.gguf", source)
        assert found.verdict == "pass", found.message
    with_permuted_rows(tiny)
    found = parity(tiny.write(tmp_path / "b.apr"), source)
    assert found.verdict == "fail"
    for kind in ("bf16", "q8_0"):
        write_gguf(tmp_path / f"b{kind}.gguf", open_model(tmp_path / "b.apr"), quantize=kind)
        assert parity(tmp_path / f"b{kind}.gguf", source).verdict == "fail"


def test_parity_names_vocabularies_that_differ(make_tiny, tmp_path):
    source = make_tiny().write(tmp_path / "a.apr")
    found = parity(make_tiny(vocab_size=400).write(tmp_path / "b.apr"), source)
    assert "vocabularies differ: 400 and 320 rows" in found.message


def test_parity_names_the_first_token_id_that_differs(make_tiny, tmp_path):
    tiny = make_tiny()
    source = tiny.write(tmp_path / "a.apr")
    spec = {**tiny.tokenizer.spec, "normalizer": {"type": "Lowercase"}}
    tiny.tokenizer = dataclasses.replace(tiny.tokenizer, spec=spec)
    found = parity(tiny.write(tmp_path / "b.apr"), source)
    assert "token ids of many scripts differ at token" in found.message


# -- aprender #1698: three defects that its own checks let through ------------------------------


def test_1698_a_checkpoint_without_its_tokenizer_is_named(make_tiny, verdicts, tmp_path):
    path = make_tiny().write_bare(tmp_path / "m.apr", drop=("tokenizer", "special_tokens"))
    report = qa.run(path, device="cpu")
    found = verdicts(report)
    assert "no embedded tokenizer (tokenizer.vocabulary)" in gate(report, "tokenizer").message
    assert found["tokenizer"] == found["export_readiness"] == "fail"
    assert found["determinism"] == found["isolation"] == "pass"
    assert found["stream_equals_whole"] == "skip"
    assert not report.passed


def test_1698_a_checkpoint_without_hidden_size_is_named(make_tiny, verdicts, tmp_path):
    path = make_tiny().write_bare(tmp_path / "m.apr", drop=("hidden_size",))
    report = qa.run(path, device="cpu")
    assert "missing hidden_size (also tried n_embd" in gate(report, "metadata").message
    assert verdicts(report)["tokenizer"] == "pass"
    assert gate(report, "determinism").reason == "needs metadata, which failed"
    assert not report.passed


def test_1698_a_gguf_with_the_class_name_as_its_architecture_is_named(
    make_tiny, verdicts, tmp_path
):
    gguf = pytest.importorskip("gguf")
    tiny = make_tiny()
    good = tmp_path / "good.gguf"
    write_gguf(good, tiny.opened())
    bad = tmp_path / "bad.gguf"
    writer = gguf.GGUFWriter(bad, "LlamaForCausalLM")
    for tensor in gguf.GGUFReader(good).tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.add_embedding_length(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = qa.run(bad, device="cpu")
    found = verdicts(report)
    assert "unknown GGUF architecture 'LlamaForCausalLM'" in gate(report, "metadata").message
    assert found["integrity"] == "pass"
    assert found["metadata"] == found["tokenizer"] == "fail"
    assert not report.passed


def test_a_hugging_face_folder_without_tokenizer_or_size_is_named(make_tiny, verdicts, tmp_path):
    import json

    folder = tmp_path / "hf"
    write_hf(folder, make_tiny().opened())
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    report = qa.run(folder, device="cpu")
    assert "hidden_size" in gate(report, "metadata").message
    assert "tokenizer.json" in gate(report, "tokenizer").message
    assert verdicts(report)["integrity"] == "pass"
