"""What a dataset holds, when it is reused, and what is refused."""

import dataclasses
import errno
import json
from pathlib import Path

import numpy as np
import pytest
from data_standin import ByteTokenizer, decode, sentences

from apr.data import build, shards
from apr.data.dataset import build_dataset, check_vocabulary, end_of_text_id, open_dataset
from apr.data.manifest import read_manifest
from apr.errors import CorruptFile, InvalidFormat, NotFound, StorageError, UsageError

TOKENIZER = ByteTokenizer()


def make(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_every_distinct_document_is_in_one_split_with_its_end_of_text(tmp_path):
    texts = sentences(300)
    make(tmp_path / "x.jsonl", texts + texts[:7] + ["{broken"])
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write("{broken\n")
    dataset = build_dataset([tmp_path / "x.jsonl"], TOKENIZER, tmp_path / "out")
    train, validation = decode(dataset.train), decode(dataset.validation)
    assert sorted(train + validation) == sorted([*texts, "{broken"])
    m = dataset.manifest
    assert m.split.mode == "documents"
    assert (m.documents, m.duplicates, m.bad_records) == (301, 7, 1)
    assert m.train.documents == len(train) and m.validation.documents == len(validation)
    assert m.validation.bytes == sum(len(t.encode()) for t in validation)
    assert m.validation.tokens == m.validation.bytes + m.validation.documents
    assert m.tokens == len(dataset.train) + len(dataset.validation)
    assert 10 <= len(validation) <= 60
    (example,) = m.report["bad_examples"]
    assert example[:2] == [str(tmp_path / "x.jsonl"), 309]


def test_what_was_met_is_told_again_when_the_dataset_is_reused(tmp_path):
    (tmp_path / "s").mkdir()
    make(tmp_path / "s/x.jsonl", [*sentences(80), *sentences(3)])
    with (tmp_path / "s/x.jsonl").open("a") as file:
        file.write("{broken\n")
    (tmp_path / "s/y.png").write_bytes(b"png")
    first = build_dataset([tmp_path / "s"], TOKENIZER, tmp_path / "out").lines()
    again = build_dataset([tmp_path / "s"], TOKENIZER, tmp_path / "out").lines()
    assert again[1:] == first[1:] and again[0] != first[0]
    text = "\n".join(again)
    assert f"{tmp_path / 's/x.jsonl'}:84: not json" in text
    assert f"1 x binary by its name, e.g. {tmp_path / 's/y.png'}" in text
    assert "3 exact duplicates dropped" in text
    assert "10 % of the documents, by a hash" in text


def test_adding_files_moves_no_document_to_the_other_side(tmp_path):
    make(tmp_path / "b.jsonl", sentences(200))
    first = build_dataset([tmp_path], TOKENIZER, tmp_path / "out")
    before = {side: set(decode(getattr(first, side))) for side in ("train", "validation")}
    make(tmp_path / "a.jsonl", ["new " + text for text in sentences(200, seed=1)])
    second = build_dataset([tmp_path], TOKENIZER, tmp_path / "out")
    assert before["train"] <= set(decode(second.train))
    assert before["validation"] <= set(decode(second.validation))
    assert second.note.startswith("rebuilt: source ")
    assert second.note.endswith("a.jsonl was added")


def test_one_big_file_gives_its_tail_to_validation_from_a_line_on(tmp_path):
    lines = [f"line {n} of the play\n" for n in range(1000)]
    (tmp_path / "play.txt").write_text("".join(lines))
    dataset = build_dataset([tmp_path / "play.txt"], TOKENIZER, tmp_path / "out")
    assert dataset.manifest.split.mode == "tails"
    (train,), (validation,) = decode(dataset.train), decode(dataset.validation)
    assert train + validation == "".join(lines)
    assert train.endswith("\n")
    assert 0.09 < len(validation) / len(train + validation) < 0.11


def test_tails_of_few_documents_stay_when_another_is_added(tmp_path):
    for name in "bc":
        (tmp_path / f"{name}.txt").write_text(f"{name} words here\n" * 100)
    first = build_dataset([tmp_path], TOKENIZER, tmp_path / "out")
    before = decode(first.validation)
    (tmp_path / "a.txt").write_text("other text\n" * 50)
    second = build_dataset([tmp_path], TOKENIZER, tmp_path / "out")
    assert set(before) <= set(decode(second.validation))


def test_shakespeare_is_split_as_nanogpt_does():
    path = Path(__file__).resolve().parents[2] / ".." / "shared/data/corpus/shakespeare.txt"
    if not path.exists():
        pytest.skip("../shared is absent")
    from apr.data.split import tail_border

    text = path.read_text()
    border = tail_border(text, 0.1)
    assert 0 <= border - int(len(text) * 0.9) < 100
    assert text[border - 1] == "\n"


@pytest.mark.parametrize("text", ["ab", "a b", "no border at all" * 9, "x\n" * 3, "\n\n", "é日🙂"])
def test_both_sides_of_a_cut_hold_something(text):
    from apr.data.split import tail_border

    for fraction in (0.001, 0.1, 0.5):
        assert 0 < tail_border(text, fraction) < len(text)


def test_the_number_of_workers_and_of_shards_changes_no_token(tmp_path, monkeypatch):
    make(tmp_path / "x.jsonl", sentences(400))
    monkeypatch.setattr(build, "BATCH_BYTES", 500)
    one = build_dataset([tmp_path / "x.jsonl"], TOKENIZER, tmp_path / "one", workers=1)
    monkeypatch.setattr(build, "BATCH_BYTES", 3000)
    four = build_dataset([tmp_path / "x.jsonl"], TOKENIZER, tmp_path / "four", workers=4)
    assert one.manifest.train == four.manifest.train
    assert one.manifest.shards_sha256 == four.manifest.shards_sha256
    monkeypatch.setattr(shards, "SHARD_TOKENS", 777)
    many = build_dataset([tmp_path / "x.jsonl"], TOKENIZER, tmp_path / "many", workers=3)
    assert len(many.manifest.train.shards) > 10
    whole = one.train.slice(0, len(one.train))
    for start, stop in ((0, len(whole)), (776, 779), (700, 3000), (777, 1554), (5, 5)):
        assert np.array_equal(many.train.slice(start, stop), whole[start:stop])
    with pytest.raises(UsageError, match="not inside"):
        many.train.slice(0, len(whole) + 1)


def test_a_wide_vocabulary_is_stored_in_four_bytes(tmp_path):
    class Wide(ByteTokenizer):
        def encode_batch(self, texts):
            return [[id + 69_000 for id in ids] for ids in super().encode_batch(texts)]

    (tmp_path / "x.txt").write_text("some text\n" * 20)
    dataset = build_dataset([tmp_path / "x.txt"], Wide(70_000), tmp_path / "out")
    assert dataset.manifest.dtype == "u32"
    assert dataset.train.slice(0, 1)[0] == 69_000 + ord("s")
    assert dataset.train.slice(0, 1).dtype == np.int64


def test_a_dataset_is_reused_only_while_nothing_changed(tmp_path):
    source = make(tmp_path / "x.jsonl", sentences(80))
    out = tmp_path / "out"

    def note(tokenizer=TOKENIZER, **options):
        dataset = build_dataset([source], tokenizer, out, **options)
        assert dataset.reused == dataset.note.startswith("reused")
        return dataset.note

    assert note() == "built: there was no dataset yet"
    stamp = (out / "manifest.json").stat().st_mtime_ns
    assert note() == "reused: sources and tokenizer are unchanged"
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    assert "the tokenizer changed (fingerprint bytes-0-… -> bytes-1-…)" in note(
        ByteTokenizer(257, 1)
    )
    note()
    make(source, sentences(81))
    assert note() == f"rebuilt: source {source} was changed"
    assert "the validation fraction changed (0.1 -> 0.2)" in note(validation_fraction=0.2)
    note()
    (out / "train-00000.bin").write_bytes(b"xx")
    assert "the dataset there cannot be used (has 2 bytes" in note()
    (out / "sources.json").write_text("[")
    make(source, sentences(82))
    assert "the old list of them is damaged" in note()


def test_a_reuse_that_hid_broken_records_does_not_pass_a_stop(tmp_path):
    source = tmp_path / "x.jsonl"
    source.write_text('{"text": "good text"}\nbad\n')
    build_dataset([source], TOKENIZER, tmp_path / "out")
    with pytest.raises(InvalidFormat, match=r"x\.jsonl:2"):
        build_dataset([source], TOKENIZER, tmp_path / "out", on_bad_record="stop")
    assert open_dataset(tmp_path / "out").manifest.bad_records == 1  # the old one still stands


def test_a_dataset_inside_its_own_sources_is_not_read_as_a_source(tmp_path):
    make(tmp_path / "x.jsonl", sentences(80))
    build_dataset([tmp_path], TOKENIZER, tmp_path / "out")
    assert build_dataset([tmp_path], TOKENIZER, tmp_path / "out").reused


@pytest.mark.parametrize("victim", ["manifest", "size", "missing", "checksum"])
def test_a_damaged_dataset_is_refused(tmp_path, victim):
    make(tmp_path / "x.jsonl", sentences(80))
    out = build_dataset([tmp_path / "x.jsonl"], TOKENIZER, tmp_path / "out").path
    shard = out / "train-00000.bin"
    if victim == "manifest":
        text = (out / "manifest.json").read_text()
        (out / "manifest.json").write_text(text.replace('"documents": 80', '"documents": 81'))
    elif victim == "size":
        shard.write_bytes(shard.read_bytes()[:-2])
    elif victim == "missing":
        shard.unlink()
    else:
        data = bytearray(shard.read_bytes())
        data[100] ^= 4
        shard.write_bytes(data)
        open_dataset(out)  # sizes hold, and more was not asked for
    with pytest.raises(CorruptFile) as e:
        open_dataset(out, verify=True)
    assert e.value.exit_code == 4


def test_opening_what_is_no_dataset_says_so(tmp_path):
    with pytest.raises(NotFound, match=r"holds no manifest\.json"):
        open_dataset(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "else"}')
    with pytest.raises(InvalidFormat, match="format is 'else'"):
        open_dataset(tmp_path)
    (tmp_path / "manifest.json").write_text("[1")
    with pytest.raises(CorruptFile, match="not a JSON object"):
        open_dataset(tmp_path)


def test_another_tokenizer_or_a_narrower_model_is_refused_with_both_names(tmp_path):
    make(tmp_path / "x.jsonl", sentences(80))
    dataset = build_dataset([tmp_path / "x.jsonl"], TOKENIZER, tmp_path / "out")
    with pytest.raises(
        InvalidFormat, match=r"made by the tokenizer bytes-0-0000…, not by bytes-1-"
    ):
        open_dataset(tmp_path / "out", tokenizer=ByteTokenizer(257, 1))
    check_vocabulary(dataset, 257)
    with pytest.raises(InvalidFormat, match="token id 256, the model's vocab_size is 256"):
        check_vocabulary(dataset, 256)


def test_a_folder_that_holds_something_else_is_never_replaced(tmp_path):
    make(tmp_path / "x.jsonl", sentences(80))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    with pytest.raises(
        StorageError, match=r"something else than a token dataset \('thesis\.tex'\)"
    ):
        build_dataset([tmp_path / "x.jsonl"], TOKENIZER, tmp_path / "out")
    assert (tmp_path / "out/thesis.tex").read_text() == "mine"


def test_a_failed_build_leaves_the_old_dataset_and_nothing_half(tmp_path, monkeypatch):
    source = make(tmp_path / "x.jsonl", sentences(80))
    build_dataset([source], TOKENIZER, tmp_path / "out")
    make(source, sentences(90))

    def full(self, ids):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.ShardWriter, "append", full)
    with pytest.raises(StorageError, match="no space left"):
        build_dataset([source], TOKENIZER, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "x.jsonl"]
    assert open_dataset(tmp_path / "out", verify=True).manifest.documents == 80


def test_ids_beyond_the_vocabulary_and_a_missing_end_are_errors(tmp_path):
    make(tmp_path / "x.jsonl", sentences(5))
    with pytest.raises(InvalidFormat, match="gave id 240, its vocab_size is 200"):
        build_dataset([tmp_path / "x.jsonl"], ByteTokenizer(200, 0, (10,)), tmp_path / "out")
    with pytest.raises(InvalidFormat, match="no end-of-text token"):
        build_dataset([tmp_path / "x.jsonl"], ByteTokenizer(257, 0, ()), tmp_path / "out")
    assert end_of_text_id(ByteTokenizer(257, 0, (4, 256))) == 256
    assert end_of_text_id(ByteTokenizer(257, 0, (4, 5))) == 4


def test_a_corpus_without_text_says_what_was_looked_at_and_leaves_nothing(tmp_path):
    (tmp_path / "s").mkdir()
    make(tmp_path / "s/x.jsonl", sentences(5))
    (tmp_path / "s/noise").write_bytes(bytes(range(256)))
    with pytest.raises(
        InvalidFormat, match=r"looked at 2 files; 5 broken records .*x\.jsonl:1: no key 'body'"
    ):
        build_dataset([tmp_path / "s"], TOKENIZER, tmp_path / "out", text_key="body")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("fraction", [0, -0.1, 0.6, 1.0])
def test_a_fraction_that_empties_a_side_is_a_usage_error(tmp_path, fraction):
    make(tmp_path / "x.jsonl", sentences(5))
    with pytest.raises(UsageError, match="validation-fraction"):
        build_dataset(
            [tmp_path / "x.jsonl"], TOKENIZER, tmp_path / "o", validation_fraction=fraction
        )


def test_the_manifest_reads_back_as_it_was_written(tmp_path):
    make(tmp_path / "x.jsonl", sentences(80))
    dataset = build_dataset([tmp_path / "x.jsonl"], TOKENIZER, tmp_path / "out")
    assert read_manifest(tmp_path / "out") == dataset.manifest
    summary = json.loads(json.dumps(dataset.manifest.summary()))
    assert summary["train"]["tokens"] == len(dataset.train)
    assert dataclasses.asdict(dataset.manifest.split) == {"mode": "documents", "fraction": 0.1}


def test_progress_goes_up_to_all_the_bytes(tmp_path):
    make(tmp_path / "x.jsonl", sentences(80))
    states = []
    build_dataset([tmp_path / "x.jsonl"], TOKENIZER, tmp_path / "out", progress=states.append)
    assert states[-1].bytes_read == states[-1].bytes_total == (tmp_path / "x.jsonl").stat().st_size
    assert states[-1].tokens > 0


def test_a_trained_tokenizer_decodes_the_shards_to_the_texts(tmp_path):
    tokenizers = pytest.importorskip("apr.tokenizer")
    texts = sentences(120)
    make(tmp_path / "x.jsonl", texts)
    tokenizer = tokenizers.train(iter(texts), 400, "gpt-2")
    dataset = build_dataset([tmp_path / "x.jsonl"], tokenizer, tmp_path / "out", workers=2)
    found = []
    for side in (dataset.train, dataset.validation):
        ids = side.slice(0, len(side))
        ends = np.flatnonzero(ids == dataset.manifest.end_of_text)
        parts = np.split(ids, ends + 1)[:-1]
        found += [tokenizer.decode(part[:-1].tolist()) for part in parts]
    assert sorted(found) == sorted(texts)
    assert open_dataset(tmp_path / "out", tokenizer=tokenizer).manifest.split.mode == "documents"


@pytest.mark.slow
def test_memory_stays_flat_however_long_the_sources_are(tmp_path):
    import subprocess
    import sys

    script = """
import resource, sys
sys.path.insert(0, sys.argv[3])
from apr.data.dataset import build_dataset
from data_standin import ByteTokenizer
build_dataset([sys.argv[1]], ByteTokenizer(), sys.argv[2], workers=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    peaks = []
    for megabytes in (6, 24):
        path = tmp_path / f"{megabytes}.txt"
        with path.open("w") as file:
            for n in range(megabytes * 20_000):
                file.write(f"line {n:09d} of a long text, as it goes\\n" + " " * 9 + "\n")
        root = Path(__file__).resolve().parent
        command = [
            sys.executable,
            "-c",
            script,
            str(path),
            str(tmp_path / f"o{megabytes}"),
            str(root),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout))
    assert peaks[1] < peaks[0] + 60, peaks
