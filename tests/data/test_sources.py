"""What becomes a document, and what is said about all that does not."""

import gzip
import json
import random
import sys

import pytest
import zstandard

from apr.data import reading
from apr.data.report import SourceReport
from apr.data.sources import iter_documents
from apr.errors import FeatureUnavailable, InvalidFormat, NotFound, UsageError


def read(*paths, **options):
    report = SourceReport()
    documents = list(iter_documents([str(p) for p in paths], report=report, **options))
    return [d.text for d in documents], report, documents


def jsonl(*texts):
    return "".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(texts)).encode()


def test_a_file_is_one_document_taken_byte_for_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\ttab\r\n")
    texts, report, _ = read(tmp_path / "a.txt")
    assert texts == ["one\r\ntwo\ttab\r\n"]
    assert report.bytes_read == report.bytes_total == (tmp_path / "a.txt").stat().st_size


def test_folders_are_read_recursively_in_order_and_what_is_left_out_has_a_reason(tmp_path):
    for name in ("b/two.py", "a/one.md", "c", ".git/config", ".hidden", "b/__pycache__/x.pyc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "wide.txt").write_bytes("wide".encode("utf-16"))
    texts, report, _ = read(tmp_path)
    assert texts == ["text of a/one.md", "text of b/two.py", "text of c"]
    assert report.skipped == {
        "hidden": 2,
        "binary by its name": 1,
        "binary (a NUL byte near its beginning)": 1,
        "UTF-16 text, only UTF-8 is read": 1,
    }


def test_globs_mean_files_and_folders_and_one_file_counts_once(tmp_path):
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/1.txt").write_text("one")
    (tmp_path / "d/e/2.txt").write_text("two")
    (tmp_path / "d/3.py").write_text("three")
    assert read(tmp_path / "d/*.txt")[0] == ["one"]
    assert read(tmp_path / "d/**/*.txt")[0] == ["one", "two"]
    assert read(tmp_path / "d/*")[0] == ["one", "three", "two"]
    assert read(tmp_path / "d/**")[0] == ["one", "three", "two"]
    texts, report, _ = read(tmp_path / "d/3.py", tmp_path / "d")
    assert texts == ["three", "one", "two"]
    assert report.skipped == {"already included by another path": 1}


def test_a_loop_of_links_ends(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    texts, report, _ = read(tmp_path)
    assert texts == ["a"]
    assert report.skipped == {"already included by another path": 1, "link to nothing": 1}


@pytest.mark.parametrize("path", ["absent.txt", "absent/*.txt"])
def test_a_missing_path_is_not_found(tmp_path, path):
    with pytest.raises(NotFound, match=r"no (such )?file"):
        read(tmp_path / path)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_json_lines_name_every_broken_record_by_file_and_line(tmp_path, ending):
    lines = [
        b'{"text": "good 1"}',
        b'{"text": ',
        b"",
        b'{"body": "no key"}',
        b'{"text": 5}',
        b'"only a string"',
        b'{"text": "bad \xff byte"}',
        b'{"text": "half \\ud800"}',
        b'{"text": "nul \\u0000"}',
        b'{"text": ""}',
        b'{"text": "good 2"}',
    ]
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(packed(b"\n".join(lines)))
    texts, report, documents = read(path)
    assert texts == ["good 1", "good 2"]
    assert [d.line for d in documents] == [1, 11]
    assert [b.line for b in report.bad_examples] == [2, 4, 5, 6, 7, 8, 9]
    assert (report.bad_records, report.empty_documents) == (7, 1)
    assert f"{path}:4: no key 'text' (there are 'body')" in report.lines()[4]
    with pytest.raises(InvalidFormat, match=rf"x\.jsonl{ending}:2: broken record: not json") as e:
        read(path, on_bad_record="stop")
    assert e.value.exit_code == 4


def test_the_text_key_is_chosen(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "def f():"}')
    assert read(tmp_path / "x.jsonl", text_key="prompt")[0] == ["def f():"]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_a_truncated_stream_is_a_bad_record_wherever_it_is_cut(tmp_path, pack):
    rng = random.Random(1)
    texts = ["".join(rng.choices("abcdefgh ", k=200)) for _ in range(300)]
    ending = "gz" if pack is gzip.compress else "zst"
    packed = pack(jsonl(*texts))
    path = tmp_path / f"x.jsonl.{ending}"
    for cut in (len(packed) // 2, len(packed) - 9, len(packed) - 1):
        path.write_bytes(packed[:cut])
        try:
            found, report, _ = read(path)
        except InvalidFormat as error:  # a single zstd block: nothing came out
            assert "no text found" in error.what or "cut short" in error.what
            continue
        assert found == texts[: len(found)]
        assert report.bad_records == 1
        assert "cut short" in report.bad_examples[0].reason
    path.write_bytes(b"this is neither")
    with pytest.raises(InvalidFormat, match="stream is damaged"):
        read(path)


def test_several_frames_in_one_stream_are_all_read(tmp_path):
    (tmp_path / "x.txt.zst").write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    (tmp_path / "y.txt.gz").write_bytes(gzip.compress(b"three ") + gzip.compress(b"four"))
    assert read(tmp_path / "x.txt.zst", tmp_path / "y.txt.gz")[0] == ["one two", "three four"]


def test_a_long_text_streams_in_pieces_cut_at_paragraphs(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", 4000)
    monkeypatch.setattr(reading, "PIECE_BYTES", 1000)
    monkeypatch.setattr(reading, "CHUNK", 256)
    text = "".join(f"paragraph {n} ünï\nsecond line\n\n" for n in range(200))
    (tmp_path / "long.txt").write_text(text)
    texts, report, documents = read(tmp_path / "long.txt")
    assert "".join(texts) == text
    assert all(len(t.encode()) <= 1000 and t.endswith("\n\n") for t in texts)
    assert report.cuts == len(texts) - 1 > 5
    for document in documents:
        before = text[: text.index(document.text)]
        assert document.line == before.count("\n") + 1
    (tmp_path / "same.jsonl").write_bytes(jsonl(text))
    assert read(tmp_path / "same.jsonl")[0] == texts
    (tmp_path / "short.txt").write_text(text[:3500])
    assert read(tmp_path / "short.txt")[0] == [text[:3500]]


def test_text_without_any_border_is_cut_between_characters(monkeypatch):
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(reading, "PIECE_BYTES", 100)
    for text in ("🙂" * 99, "日" * 99, "é" * 99, "x" * 999):
        pieces = reading.cut_text("a" + text)
        assert "".join(pieces) == "a" + text
        assert all(len(piece.encode()) <= 100 for piece in pieces)


def test_a_bad_byte_in_a_text_file_is_named_by_its_line(tmp_path):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"one\ntwo\ncaf\xe9 three")
    texts, report, _ = read(tmp_path)
    assert texts == ["fine"]
    assert str(report.bad_examples[0]).endswith("b.txt:3: not UTF-8 (byte 0xe9)")


def test_a_line_of_json_that_is_too_long_is_stepped_over(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(reading, "CHUNK", 300)
    (tmp_path / "x.jsonl").write_bytes(jsonl("a", "b" * 5000, "c", "d" * 5000))
    texts, report, _ = read(tmp_path / "x.jsonl")
    assert texts == ["a", "c"]
    assert [b.line for b in report.bad_examples] == [2, 4]


def test_parquet_rows_are_documents_and_null_is_a_bad_record(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"text": ["one", None, "three"], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    texts, report, documents = read(tmp_path / "x.parquet")
    assert texts == ["one", "three"]
    assert [d.line for d in documents] == [1, 3]
    assert report.bad_examples[0].line == 2
    with pytest.raises(InvalidFormat, match="no column 'body' \\(there are 'text', 'n'\\)"):
        read(tmp_path / "x.parquet", text_key="body")
    with pytest.raises(InvalidFormat, match="column 'n' holds int64"):
        read(tmp_path / "x.parquet", text_key="n")
    (tmp_path / "bad.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-7])
    with pytest.raises(InvalidFormat, match="not a Parquet file"):
        read(tmp_path / "bad.parquet")


def test_without_pyarrow_parquet_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(FeatureUnavailable, match=r"pip install 'apr\[parquet\]'") as e:
        read(tmp_path / "x.parquet")
    assert e.value.exit_code == 9


def test_no_text_at_all_is_an_error_that_says_what_was_looked_at(tmp_path):
    with pytest.raises(InvalidFormat, match="no text found: looked at 0 files"):
        read(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n ")
    with pytest.raises(InvalidFormat, match="looked at 2 files; 2 empty documents"):
        read(tmp_path)
    for n in range(3):
        (tmp_path / f"g{n}").write_bytes(random.Random(n).randbytes(20_000))
    with pytest.raises(InvalidFormat, match=r"3 left out \(3 binary \(a NUL byte") as e:
        read(tmp_path)
    assert e.value.exit_code == 4


def test_garbage_given_by_name_is_an_error_at_once(tmp_path):
    (tmp_path / "g.bin").write_bytes(random.Random(1).randbytes(20_000))
    with pytest.raises(InvalidFormat, match=r"g\.bin: cannot be read as text: binary"):
        read(tmp_path / "g.bin")


def test_an_unknown_policy_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="write skip or stop"):
        read(tmp_path, on_bad_record="ignore")


def test_the_humaneval_tasks_are_164_documents():
    from pathlib import Path

    path = Path(__file__).resolve().parents[2] / ".." / "shared/data/humaneval/HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip("../shared is absent")
    assert len(read(path, text_key="prompt")[0]) == 164
