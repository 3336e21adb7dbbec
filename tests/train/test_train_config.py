"""Flags, YAML and combinations: what is wrong is said with what to write instead."""

import pytest

from apr.errors import NotFound, UsageError
from apr.train.config import TrainConfig, check, from_mapping, merge, read_yaml

GOOD = {"dataset": ("a.txt",), "tokenizer": "tok", "run_dir": "run", "preset": "1m"}


def test_a_complete_configuration_is_accepted():
    check(TrainConfig(**GOOD))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "finetune"}, ["--mode", "from-scratch", "continue"]),
        ({"mode": "continue"}, ["--mode continue", "--init FILE.apr"]),
        ({"init": "m.apr", "preset": None, "mode": "from-scratch"}, ["--mode continue"]),
        ({"init": "m.apr"}, ["--preset", "contradicts --init"]),
        ({"resume": True, "force": True}, ["--resume", "--force"]),
        ({"resume": True, "plan": True}, ["--plan", "--resume"]),
        ({"preset": None}, ["--preset", "nanogpt-cpu", "370m"]),
        ({"tokenizer": None}, ["--tokenizer", "apr tokenize train"]),
        ({"dataset": ()}, ["--dataset"]),
        ({"run_dir": None}, ["--run-dir DIR"]),
        ({"num_steps": 0}, ["--num-steps", "1 or more"]),
        ({"lr": -1.0}, ["--lr", "outside"]),
        ({"schedule": "linear"}, ["--schedule", "cosine or wsd"]),
        ({"on_exhausted": "wrap"}, ["--on-exhausted", "repeat or stop or error"]),
        ({"allow_under_provisioned": " "}, ["--allow-under-provisioned", "reason is empty"]),
    ],
    ids=str,
)
def test_a_contradiction_is_a_usage_error_that_says_what_to_write(changes, words):
    with pytest.raises(UsageError) as caught:
        check(TrainConfig(**{**GOOD, **changes}))
    for word in words:
        assert word in caught.value.line()


def test_yaml_has_the_names_of_the_flags_and_flags_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("num-steps: 100\nlr: 1e-3\ndataset: a.txt\nseed: 7\n")
    merged = merge(read_yaml(str(path)), {"lr": 0.5, "dataset": ["b.txt", "c.txt"]}, str(path))
    assert (merged.num_steps, merged.lr, merged.seed) == (100, 0.5, 7)
    assert merged.dataset == ("b.txt", "c.txt")


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(UsageError, match="did you mean 'num_steps'"):
        from_mapping({"num_step": 3}, "run.yaml")


@pytest.mark.parametrize("value", [{"num_steps": "many"}, {"resume": 3}, {"lr": True}], ids=str)
def test_a_value_of_another_type_is_refused(value):
    with pytest.raises(UsageError, match=next(iter(value))):
        from_mapping(value, "run.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1", "\x00"])
def test_a_file_without_a_mapping_is_refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_yaml(str(path))


def test_a_missing_file_is_not_found():
    with pytest.raises(NotFound, match="--config takes a YAML file"):
        read_yaml("nowhere.yaml")
