"""diff: equal models of other formats are equal, every kind of difference is found and named."""

import json
import subprocess
import sys

import numpy as np
import pytest

from apr.checkpoint import AprFile, write_apr
from apr.cli.diff_view import show
from apr.cli.main import run
from apr.diff import diff
from apr.diff.weights import compare_tensors
from apr.errors import CorruptFile, ModelLoadError, NotFound, UsageError
from apr.formats import open_model, write_gguf, write_hf
from apr.tensors import from_array

WEIGHT = "model.layers.1.mlp.up_proj.weight"


def rewritten(source, target, *, tensors=None, without=(), **changes):
    """The same .apr file with some tensors or metadata changed, or removed."""
    file = AprFile.open(source)
    kept = {k: v for k, v in file.metadata.items() if not (without and k.startswith(without))}
    held = [(tensors or {}).get(n, t) for n, t in file.tensors.items()]
    write_apr(target, {**kept, **changes}, [t for t in held if t is not None])
    return target


def with_weight(source, target, change):
    values = AprFile.open(source).tensors[WEIGHT].float32().copy()
    change(values)
    return rewritten(source, target, tensors={WEIGHT: from_array(WEIGHT, values)})


def names(section):
    return [d.name for d in section.different]


def by_name(found, name=WEIGHT):
    return next(t for t in found.tensors if t.name == name)


# -- the same model ----------------------------------------------------------------------------


def test_a_model_does_not_differ_from_its_own_gguf_and_folder(tiny_apr, tmp_path):
    model = open_model(tiny_apr)
    write_gguf(tmp_path / "m.gguf", model)
    write_hf(tmp_path / "hf", model)
    paths = [tiny_apr, tmp_path / "m.gguf", tmp_path / "hf"]
    for a in paths:
        for b in paths:
            found = diff(a, b)
            assert not found.differs, (a, b, found.to_json(tensors=False))
            assert found.counts == {"identical": 21}
            assert "tokens" in found.tokenizer.equal and "merges" in found.tokenizer.equal
            assert any(n.startswith("ids of") for n in found.tokenizer.equal)


def test_what_a_gguf_cannot_say_is_not_called_equal(tiny_apr, tmp_path):
    write_gguf(tmp_path / "m.gguf", open_model(tiny_apr))
    found = diff(tiny_apr, tmp_path / "m.gguf")
    unsaid = {n.name for n in found.architecture.not_compared}
    assert unsaid == {"initializer_range"}
    assert not unsaid & set(found.architecture.equal)
    assert "chat_template" in {n.name for n in found.tokenizer.not_compared}


def test_another_storage_type_of_equal_values_is_shown_and_is_no_difference(tied_apr, tmp_path):
    write_gguf(tmp_path / "m.gguf", open_model(tied_apr), quantize="f32")
    found = diff(tied_apr, tmp_path / "m.gguf")
    assert not found.differs
    assert found.counts == {"same_values": len(found.tensors)}
    assert all(t.dtype_a == "BF16" and t.dtype_b == "F32" for t in found.tensors)


def test_q8_0_differs_within_the_bound_of_its_type(tiny_apr, tmp_path):
    write_gguf(tmp_path / "q.gguf", open_model(tiny_apr), quantize="q8_0")
    found = diff(tiny_apr, tmp_path / "q.gguf")
    assert found.differs and not names(found.architecture) and not names(found.tokenizer)
    changed = [t for t in found.tensors if t.relation == "values"]
    assert changed and all(t.dtype_b == "Q8_0" and 0 < t.of_bound <= 1 for t in changed)
    assert all(t.figures.cosine > 0.9999 for t in changed)
    largest = max(t.figures.max_abs for t in changed)
    assert not diff(tiny_apr, tmp_path / "q.gguf", tolerance=largest).differs
    assert diff(tiny_apr, tmp_path / "q.gguf", tolerance=largest * 0.99).differs


# -- values ------------------------------------------------------------------------------------


def test_one_changed_weight_is_found_with_its_figures(tiny_apr, tmp_path):
    def change(values):
        values[3, 5] += 0.25

    found = diff(tiny_apr, with_weight(tiny_apr, tmp_path / "x.apr", change))
    assert [t.name for t in found.differing_tensors] == [WEIGHT]
    before = AprFile.open(tiny_apr).tensors[WEIGHT].float32().astype(np.float64)
    after = AprFile.open(tmp_path / "x.apr").tensors[WEIGHT].float32().astype(np.float64)
    figures = by_name(found).figures
    assert figures.differing == 1
    assert figures.max_abs == np.abs(before - after).max()
    assert figures.rms == pytest.approx(np.sqrt(np.mean((before - after) ** 2)))
    cosine = (before * after).sum() / np.linalg.norm(before) / np.linalg.norm(after)
    assert figures.cosine == pytest.approx(cosine, abs=1e-12)
    assert not diff(tiny_apr, tmp_path / "x.apr", tolerance=0.3).differs


def test_nan_is_beyond_every_tolerance_and_json_stays_json(tiny_apr, tmp_path, capsys):
    def change(values):
        values[0, 0] = np.nan

    found = diff(tiny_apr, with_weight(tiny_apr, tmp_path / "x.apr", change), tolerance=1e30)
    assert found.differs and found.most_different[0].name == WEIGHT
    show(found, tensors=False, as_json=True)
    (entry,) = json.loads(capsys.readouterr().out)["tensors"]
    assert entry["finite"] is False and entry["max_abs"] is None and entry["beyond_tolerance"]


def test_a_negative_zero_is_the_same_value_and_not_the_same_bytes():
    a, b = np.zeros((2, 2), np.float32), np.full((2, 2), -0.0, np.float32)
    (found,) = compare_tensors({"t": from_array("t", a)}, {"t": from_array("t", b)})
    assert found.relation == "same_values" and not found.beyond(0)


@pytest.mark.parametrize(
    ("kind", "one", "other"), [(np.float64, 1.0, 1.0 + 1e-12), (np.int64, 2**60, 2**60 + 1)]
)
def test_values_that_float32_cannot_tell_apart_still_differ(kind, one, other):
    a, b = (from_array("t", np.full((2, 2), value, kind)) for value in (one, other))
    (found,) = compare_tensors({"t": a}, {"t": b})
    assert found.relation == "values" and found.beyond(0)


def test_a_tensor_without_elements_is_not_called_equal():
    empty = from_array("t", np.zeros((0, 4), np.float32))
    (found,) = compare_tensors({"t": empty}, {"t": empty})
    assert found.relation == "not_compared"


def test_a_missing_tensor_and_another_shape_are_named():
    a = {"x": from_array("x", np.ones((2, 3), np.float32)), "y": from_array("y", np.ones(2, "f4"))}
    b = {"x": from_array("x", np.ones((3, 2), np.float32)), "z": from_array("z", np.ones(2, "f4"))}
    found = compare_tensors(a, b)
    assert [(t.name, t.relation) for t in found] == [
        ("x", "shape"), ("y", "only_in_a"), ("z", "only_in_b"),
    ]  # fmt: skip
    assert all(t.beyond(1e9) for t in found)


def test_a_file_that_lacks_a_tensor_differs(tiny_apr, tmp_path):
    path = rewritten(tiny_apr, tmp_path / "x.apr", tensors={WEIGHT: None})
    assert by_name(diff(tiny_apr, path)).relation == "only_in_a"
    assert by_name(diff(path, tiny_apr)).relation == "only_in_b"


# -- what else a model is ----------------------------------------------------------------------


def test_another_architecture_is_named_field_by_field(tiny_apr, tmp_path):
    path = rewritten(tiny_apr, tmp_path / "x.apr", rope_theta=20_000.0, rms_norm_eps=1e-6)
    found = diff(tiny_apr, path)
    assert names(found.architecture) == ["rms_norm_eps", "rope_theta"]
    assert found.differs and found.counts == {"identical": 21}
    assert not names(found.metadata)  # said once, in its own section


def test_a_rotary_scaling_that_a_gguf_lost_is_a_difference(tiny_apr, tmp_path):
    scaling = {"rope_type": "linear", "factor": 2.0}
    path = rewritten(tiny_apr, tmp_path / "x.apr", rope_scaling=scaling)
    write_gguf(tmp_path / "m.gguf", open_model(tiny_apr))
    assert names(diff(path, tmp_path / "m.gguf").architecture) == ["rope_scaling"]


def test_another_model_differs_in_shapes(tiny_apr, tied_apr):
    found = diff(tiny_apr, tied_apr)
    assert {"tie_word_embeddings", "attention_bias"} <= set(names(found.architecture))
    assert by_name(found, "lm_head.weight").relation == "only_in_a"


def test_another_tokenizer_is_found(tiny_apr, tmp_path, tokenizer):
    from apr.tokenizer import train

    other = train(iter(["wholly other words for other merges " * 20]), 300, "llama-bpe")
    path = rewritten(
        tiny_apr, tmp_path / "x.apr", without=("tokenizer.",), **other.to_metadata(416)
    )
    found = diff(tiny_apr, path)
    assert {"tokens", "merges", "pre_type"} <= set(names(found.tokenizer))
    assert any(name.startswith("ids of") for name in names(found.tokenizer))
    assert not names(found.metadata)


def test_a_tokenizer_that_one_side_lacks_is_a_difference_and_none_at_all_is_said(
    tiny_apr, tmp_path
):
    bare = rewritten(tiny_apr, tmp_path / "x.apr", without=("tokenizer.", "special_tokens"))
    assert names(diff(tiny_apr, bare).tokenizer) == ["tokenizer"]
    found = diff(bare, bare)
    assert not found.tokenizer.equal
    assert [n.reason for n in found.tokenizer.not_compared] == ["neither model has one"]


def test_metadata_that_both_state_is_compared_and_provenance_is_not(tiny_apr, tmp_path):
    record = dict(AprFile.open(tiny_apr).metadata["training"])
    record |= {"step": 11, "receipt": {"command": "another"}}
    del record["seed"]
    path = rewritten(tiny_apr, tmp_path / "x.apr", license="MIT", author="me", training=record)
    found = diff(tiny_apr, path)
    assert names(found.metadata) == ["license", "training.step"]
    unsaid = {n.name for n in found.metadata.not_compared}
    assert {"author", "training.seed", "training.receipt"} <= unsaid


# -- the verb ----------------------------------------------------------------------------------


def test_exit_codes_and_output(tiny_apr, tied_apr, tmp_path, capsys):
    assert run(["diff", str(tiny_apr), str(tiny_apr), "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["differs"] is False and same["tensor_counts"] == {"identical": 21}
    assert same["tensors"] == []
    assert run(["diff", str(tiny_apr), str(tied_apr), "--json", "--tensors"]) == 5
    other = json.loads(capsys.readouterr().out)
    assert other["differs"] and len(other["tensors"]) > 21
    assert run(["diff", str(tiny_apr), str(tmp_path / "none.apr")]) == 3
    assert run(["diff", str(tiny_apr), str(tiny_apr), "--tolerance", "-1"]) == 2
    assert run(["diff", str(tiny_apr), str(tiny_apr), "--tolerance", "nan"]) == 2


def test_people_see_the_summary_first_and_no_control_characters(tiny_apr, tmp_path, capsys):
    path = rewritten(tiny_apr, tmp_path / "x.apr", name="evil\x1b[2J\nname", rope_theta=20_000.0)
    show(diff(tiny_apr, path), tensors=True, as_json=False)
    text = capsys.readouterr().out
    assert text.index("DIFFERENT") < text.index("rope_theta: 10000.0 in A, 20000.0 in B")
    assert "\x1b" not in text and WEIGHT in text and "equal to the bit" in text


def test_errors_keep_their_codes(tiny_apr, tmp_path):
    with pytest.raises(NotFound):
        diff(tmp_path / "none.gguf", tiny_apr)
    (tmp_path / "cut.apr").write_bytes(tiny_apr.read_bytes()[:-70_000])
    with pytest.raises(CorruptFile):
        diff(tiny_apr, tmp_path / "cut.apr")
    empty = tmp_path / "empty.apr"
    write_apr(empty, dict(AprFile.open(tiny_apr).metadata), [])
    with pytest.raises(ModelLoadError, match="nothing to compare"):
        diff(empty, empty)
    with pytest.raises(UsageError):
        diff(tiny_apr, tiny_apr, tolerance=float("inf"))


def test_torch_is_not_imported(tiny_apr):
    code = (
        "import sys; from apr.cli.main import run; code = run(['diff', *sys.argv[1:]])\n"
        "bad = {'torch', 'transformers', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else code)"
    )
    args = [sys.executable, "-c", code, str(tiny_apr), str(tiny_apr)]
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
