"""Nothing half-written, nothing overwritten: the helper that every output goes through."""

import pytest

from apr.atomic import atomic_directory, atomic_file, write_text
from apr.errors import StorageError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target, force=True) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_existing_target_needs_force(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(StorageError, match="--force"):
        write_text(target, "new")
    write_text(target, "new", force=True)
    assert target.read_text() == "new"


def test_a_dangling_link_counts_as_existing(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="exists"):
        write_text(tmp_path / "link", "x")


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be written.*is a file, not a folder"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []
    with atomic_directory(target) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(StorageError, match="--force"), atomic_directory(target) as temporary:
        pass
    with atomic_directory(target, force=True) as temporary:
        (temporary / "b").write_text("2")
    assert names(target) == ["b"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("make", [atomic_file, atomic_directory])
def test_a_failure_leaves_no_folder_that_was_made_for_the_target(make, tmp_path):
    (tmp_path / "there").mkdir()
    for target in (tmp_path / "there" / "new" / "deep" / "out", tmp_path / "there" / "out"):
        with pytest.raises(RuntimeError), make(target):
            raise RuntimeError
        assert names(tmp_path) == ["there"]
        assert names(tmp_path / "there") == []


def test_a_folder_that_another_wrote_into_stays(tmp_path):
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "new" / "a.txt") as temporary:
        (temporary.parent / "other").write_text("x")
        raise RuntimeError
    assert names(tmp_path / "new") == ["other"]
