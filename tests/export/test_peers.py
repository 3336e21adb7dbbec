"""The other programs that load what was written: they agree, and their failures are named."""

import pytest

from apr.errors import GateFailed
from apr.export import export, peers, samples
from apr.formats import gguf_writer, open_model, write_gguf, write_hf


def check(report, name):
    return next(c.outcome for c in report.checks if c.id == name)


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize("quantize", [None, "f16", "bf16", "q8_0"])
def test_llama_cpp_gives_the_same_ids_and_logits(tiny_apr, tmp_path, quantize):
    pytest.importorskip("llama_cpp")
    report = export(tiny_apr, tmp_path / "m.gguf", format="gguf", quantize=quantize, threads=2)
    outcome = check(report, "llama.cpp")
    assert outcome.verdict == "pass" and outcome.figures["tokens"] > 10_000
    if quantize is None:
        assert outcome.figures["max_abs"] < 1e-4
        assert outcome.figures["top1"] == outcome.figures["positions"]


@pytest.mark.slow
def test_ready_wheel_gives_the_same_ids_and_next_token(tied_apr, tmp_path):
    pytest.importorskip("xllamacpp")
    report = export(tied_apr, tmp_path / "m.gguf", format="gguf", quantize="f32", threads=2)
    outcome = check(report, "llama.cpp (wheel)")
    assert outcome.verdict == "pass" and outcome.figures["max_abs_nats"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 100_000])
def test_transformers_gives_the_same_ids_and_logits(tiny_apr, tmp_path, shard_bytes):
    pytest.importorskip("transformers")
    report = export(
        tiny_apr, tmp_path / "hf", format="safetensors", threads=2, shard_bytes=shard_bytes
    )
    outcome = check(report, "transformers")
    assert outcome.verdict == "pass" and outcome.figures["max_abs"] < 1e-4
    assert "LlamaForCausalLM" in outcome.message


@pytest.mark.slow
@pytest.mark.exact
def test_bytes_without_merges_load_in_llama_cpp(tmp_path):
    pytest.importorskip("llama_cpp")
    from apr_tiny import make_tokenizer, write_tiny

    path = write_tiny(tmp_path / "b.apr", tokenizer=make_tokenizer(257), vocab_size=257)
    report = export(path, tmp_path / "b.gguf", format="gguf", threads=2)
    assert check(report, "llama.cpp").verdict == "pass"


@pytest.mark.slow
@pytest.mark.exact
def test_llama_cpp_refusing_the_file_fails_the_export_with_its_reason(
    tiny_apr, tmp_path, monkeypatch
):
    """A key that only llama.cpp wants: our own reader would not miss it."""
    pytest.importorskip("llama_cpp")
    right = gguf_writer.gguf_fields

    def changed(*args):
        fields = dict(right(*args))
        fields["llama.rope.dimension_count"] = 8
        return fields

    monkeypatch.setattr(gguf_writer, "gguf_fields", changed)
    with pytest.raises(GateFailed, match=r"\[llama\.cpp\].*refused"):
        export(tiny_apr, tmp_path / "m.gguf", format="gguf", threads=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_garbage_is_refused_with_a_reason_and_not_our_end(tmp_path):
    pytest.importorskip("xllamacpp")
    path = tmp_path / "garbage.gguf"
    path.write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(peers.PeerFailed, match="xllamacpp"):
        peers.ask("xllamacpp", path, prompt=[1], greedy=1, timeout=60)


def test_a_crash_is_named_by_its_signal(tmp_path, monkeypatch):
    monkeypatch.setattr(peers.sys, "executable", "/bin/sh")
    script = tmp_path / "sh"
    script.write_text("#!/bin/sh\necho about to crash\nkill -SEGV $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(peers.sys, "executable", str(script))
    with pytest.raises(peers.PeerFailed, match=r"crashed \(SIGSEGV\): about to crash"):
        peers.ask("llama_cpp", tmp_path / "m.gguf")


def test_a_hang_ends_and_says_how_to_go_on(tmp_path, monkeypatch):
    script = tmp_path / "sh"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    script.chmod(0o755)
    monkeypatch.setattr(peers.sys, "executable", str(script))
    with pytest.raises(peers.PeerFailed, match="--no-peers"):
        peers.ask("llama_cpp", tmp_path / "m.gguf", timeout=0.2)


def test_a_peer_that_is_not_installed_is_skipped_with_the_reason(tiny_apr, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda package: False)
    report = export(tiny_apr, tmp_path / "m.gguf", format="gguf", threads=2)
    assert check(report, "llama.cpp").verdict == "skip"
    assert check(report, "llama.cpp").message == "the package llama_cpp is not installed"


def test_proof_texts_are_normalised_and_span_scripts_and_code():
    import unicodedata

    texts = samples.proof_texts()
    assert all(text and unicodedata.is_normalized("NFC", text) for text in texts)
    whole = "".join(texts)
    assert len(whole) > 100_000
    for needed in ("狐", "🚀", "ا", "\x1b", "def ", "\u200b"):
        assert needed in whole


def test_writer_gives_gguf_the_keys_that_its_loader_wants(tiny_apr, tmp_path):
    import gguf

    write_gguf(tmp_path / "m.gguf", open_model(tiny_apr), quantize="q8_0")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    keys = gguf.Keys
    wanted = [
        keys.General.ARCHITECTURE, keys.General.NAME, keys.General.FILE_TYPE,
        keys.General.QUANTIZATION_VERSION, keys.General.LICENSE,
        *(k.format(arch="llama") for k in (
            keys.LLM.CONTEXT_LENGTH, keys.LLM.EMBEDDING_LENGTH, keys.LLM.BLOCK_COUNT,
            keys.LLM.FEED_FORWARD_LENGTH, keys.LLM.VOCAB_SIZE, keys.Attention.HEAD_COUNT,
            keys.Attention.HEAD_COUNT_KV, keys.Attention.LAYERNORM_RMS_EPS,
            keys.Attention.KEY_LENGTH, keys.Rope.DIMENSION_COUNT, keys.Rope.FREQ_BASE,
        )),
        keys.Tokenizer.MODEL, keys.Tokenizer.PRE, keys.Tokenizer.LIST, keys.Tokenizer.TOKEN_TYPE,
        keys.Tokenizer.MERGES, keys.Tokenizer.BOS_ID, keys.Tokenizer.EOS_ID,
        keys.Tokenizer.PAD_ID, keys.Tokenizer.ADD_BOS,
    ]  # fmt: skip
    assert [key for key in wanted if key not in fields] == []
    types = {t.name: t.value for t in gguf.LlamaFileType}
    assert fields[keys.General.FILE_TYPE].contents() == types["MOSTLY_Q8_0"]


@pytest.mark.parametrize(("name", "value"), sorted(gguf_writer.FILE_TYPES.items()))
def test_file_types_are_those_of_gguf(name, value):
    import gguf

    known = {t.value: t.name for t in gguf.LlamaFileType}
    if value not in known:
        pytest.skip(f"the installed gguf does not know file type {value}")
    assert name in known[value] or known[value].endswith(name)


@pytest.mark.exact
@pytest.mark.parametrize(
    "peer", ["llama_cpp", pytest.param("transformers", marks=pytest.mark.slow)]
)
def test_the_end_of_a_long_prompt_alone_gives_the_same_logits(peer, tiny_apr, tmp_path):
    pytest.importorskip(peer)
    target = tmp_path / ("m.gguf" if peer == "llama_cpp" else "hf")
    write = write_gguf if peer == "llama_cpp" else write_hf
    write(target, open_model(tiny_apr))
    prompt = [i % 200 for i in range(60)]
    whole = peers.ask(peer, target, prompt=prompt, greedy=4, threads=1)
    end = peers.ask(peer, target, prompt=prompt, greedy=4, threads=1, last=8)
    assert end.logits.shape[0] == 8 and end.greedy == whole.greedy
    assert abs(end.logits - whole.logits[-8:]).max() < 1e-5
