"""The smoke pipeline: real text -> tokenizer -> training -> qa -> bench -> export -> inspect, then
transformers and llama.cpp load what came out and compute the same.

Everything goes through the command line, as a user would; the peers load the files alone, from a
folder that holds nothing else.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from apr import open_model as apr_open

pytestmark = pytest.mark.slow

PROMPT = "def __init__(self, name, value):\n    self.name = name\n"
GREEDY = 16


def apr(*args, code=0):
    out = subprocess.run(
        [sys.executable, "-m", "apr.cli.main", *map(str, args)], capture_output=True, text=True
    )
    assert out.returncode == code, f"apr {' '.join(map(str, args))}\n{out.stdout}\n{out.stderr}"
    return json.loads(out.stdout) if "--json" in args else out.stdout


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny model trained on a part of the standard library, exported both ways."""
    root = tmp_path_factory.mktemp("smoke")
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = [library / part for part in ("asyncio", "json", "email", "argparse.py")]
    data = [flag for source in sources for flag in ("--dataset", source)]
    said = {
        "tokenize": apr(
            "tokenize", "train", *data, "--vocab-size", 700, "--pre", "qwen2",
            "-o", root / "tok", "--json",
        ),
        "pretrain": apr(
            "pretrain", *data, "--tokenizer", root / "tok", "--preset", "nanogpt-cpu",
            "--num-steps", 60, "--warmup-steps", 5, "--steps-per-epoch", 30, "--seq-length", 128,
            "--run-dir", root / "run", "--device", "cpu",
            "--allow-under-provisioned", "a smoke test", "--json",
        ),
    }  # fmt: skip
    model = root / "run" / "model.apr"
    said["qa"] = apr("qa", model, "--json")
    said["bench"] = apr("bench", model, "-p", 32, "-n", 8, "-r", 3, "--json")
    said["gguf"] = apr("export", model, "--format", "gguf", "-o", root / "m.gguf", "--json")
    said["hf"] = apr("export", model, "--format", "safetensors", "-o", root / "hf", "--json")
    said["inspect"] = apr("inspect", model, "--verify", "--json")
    alone = root / "alone"  # the files, with nothing of ours beside them
    alone.mkdir()
    shutil.copy(root / "m.gguf", alone / "m.gguf")
    shutil.copytree(root / "hf", alone / "hf")
    return {
        "root": root,
        "model": model,
        "gguf": alone / "m.gguf",
        "hf": alone / "hf",
        "said": said,
    }


@pytest.fixture(scope="module")
def engine(pipeline):
    from apr import engine

    return engine.load(pipeline["model"], device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def prompt(engine):
    return engine.tokenizer.encode(PROMPT)


@pytest.fixture(scope="module")
def greedy(engine, prompt):
    return list(engine.generate(prompt, GREEDY, stop_ids=[]).ids)


def test_every_verb_passed_and_skipped_checks_are_not_counted(pipeline):
    said = pipeline["said"]
    assert said["qa"]["passed"] is True
    assert said["qa"]["gates_executed"] >= 10
    for gate in said["qa"]["gates"]:
        assert gate["verdict"] in ("pass", "skip"), gate
        assert gate["verdict"] != "skip" or gate["reason"], gate
    verdicts = {gate["name"]: gate["verdict"] for gate in said["qa"]["gates"]}
    assert verdicts["training_probe"] == "pass"
    assert said["inspect"]["checksum_valid"] is True


def test_every_checkpoint_of_the_run_is_self_contained(pipeline, tmp_path):
    checkpoints = sorted((pipeline["root"] / "run" / "ckpt").glob("epoch-*.apr"))
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints:
        lonely = tmp_path / checkpoint.stem / "only.apr"
        lonely.parent.mkdir()
        shutil.copy(checkpoint, lonely)
        assert apr("qa", lonely, "--json")["passed"] is True
        apr("bench", lonely, "-p", 8, "-n", 4, "-r", 2, "--json")
        apr("export", lonely, "--format", "gguf", "-o", lonely.with_suffix(".gguf"), "--no-peers")


def test_transformers_loads_the_folder_and_agrees(pipeline, engine, prompt, greedy):
    transformers = pytest.importorskip("transformers")
    import torch

    tokenizer = transformers.AutoTokenizer.from_pretrained(pipeline["hf"])
    text = Path(json.__file__).read_text() + "naïve café 東京 🙂 \t\r\n\x07 end"
    assert tokenizer(text)["input_ids"] == engine.tokenizer.encode(text)
    assert tokenizer.eos_token_id in engine.tokenizer.eos_token_ids
    model = transformers.AutoModelForCausalLM.from_pretrained(pipeline["hf"], dtype="float32")
    with torch.no_grad():
        theirs = model(torch.tensor([prompt])).logits[0].numpy()
    assert np.abs(theirs - engine.logits(prompt)).max() < 1e-4
    probe = apr_open(pipeline["model"]).training["probe"]
    with torch.no_grad():
        states = model(torch.tensor([probe["ids"][:-1]])).logits[0]
    loss = torch.nn.functional.cross_entropy(states, torch.tensor(probe["ids"][1:])).item()
    assert loss == pytest.approx(probe["loss"], abs=1e-5)
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=GREEDY, min_new_tokens=GREEDY, do_sample=False
    )
    assert out[0, len(prompt) :].tolist() == greedy


def test_llama_cpp_reads_the_same_ids_and_continues_with_the_same_tokens(
    pipeline, engine, prompt, greedy
):
    pytest.importorskip("xllamacpp")
    from apr.export.peers import ask  # runs llama.cpp in a process of its own

    text = Path(json.__file__).read_text()
    answer = ask("xllamacpp", pipeline["gguf"], texts=[text], prompt=prompt, greedy=GREEDY)
    assert answer.token_ids == [engine.tokenizer.encode(text)]
    assert answer.greedy == greedy


@pytest.mark.exact
def test_llama_cpp_logits_agree_within_1e_4(pipeline, engine, prompt, greedy):
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(
        str(pipeline["gguf"]), n_ctx=128, type_k=0, type_v=0, flash_attn=False, logits_all=True,
        verbose=False,
    )  # fmt: skip
    text = Path(json.__file__).read_text()[:4000]
    ids = llama.tokenize(text.encode(), add_bos=False, special=False)
    assert ids == engine.tokenizer.encode(text)
    sequence = [*prompt, *greedy]
    llama.eval(sequence)
    theirs = np.array(llama.scores[: len(sequence)])
    ours = engine.logits(sequence)
    assert np.abs(theirs - ours).max() < 1e-4
    assert theirs.argmax(-1).tolist() == ours.argmax(-1).tolist()
