from __future__ import annotations

from pathlib import Path

import pytest

from app.journal import FILE_NAME, Entry, Journal, JournalError, stamp

ASKED = {"model": "simcc-small", "min_score": 0.3}
PERSON = {"bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5, "keypoints": [1.0, 2.0, 0.25] * 17}
ENTRIES = [
    Entry("b.jpg", (10, 20), 640, 480, [PERSON, PERSON]),
    Entry("größe \udcff.jpg", (11, 21), 64, 48, []),
    Entry("a.jpg", None, error="The image is empty."),
    Entry("a/a.jpg", (12, 22), 64, 48, [PERSON]),
]


def add(folder: Path, *entries: Entry) -> None:
    with Journal(folder, ASKED) as journal:
        for entry in entries:
            journal.add(entry)


def test_what_was_noted_is_known_afterwards(tmp_path: Path) -> None:
    add(tmp_path / "new" / "out", *ENTRIES)
    with Journal(tmp_path / "new" / "out", ASKED) as journal:
        assert list(journal.entries()) == [ENTRIES[3], ENTRIES[0], ENTRIES[1]]
        assert journal.knows("b.jpg", (10, 20))
        # Another picture by now, one that failed, one that never was.
        assert not journal.knows("b.jpg", (10, 21))
        assert not journal.knows("a.jpg", None)
        assert not journal.knows("c.jpg", None)


def test_the_latest_word_counts(tmp_path: Path) -> None:
    changed = Entry("b.jpg", (13, 23), 1, 1, [])
    add(tmp_path, ENTRIES[0], ENTRIES[3], changed)
    add(tmp_path, Entry("a/a.jpg", None, error="gone"))
    with Journal(tmp_path, ASKED) as journal:
        assert list(journal.entries()) == [changed]


def test_wherever_it_is_cut_no_picture_is_known_by_halves(tmp_path: Path) -> None:
    add(tmp_path, *ENTRIES)
    whole = (tmp_path / FILE_NAME).read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole)):
        (tmp_path / FILE_NAME).write_bytes(whole[:cut])
        # An entry that lacks nothing but the end of its line is an entry.
        ended = [end for end in range(first, len(whole)) if whole[end : end + 1] == b"\n"]
        intact = ENTRIES[: sum(end <= cut for end in ended)]
        with Journal(tmp_path, ASKED) as journal:
            known = [entry for entry in intact if entry.error is None]
            assert list(journal.entries()) == sorted(known, key=lambda entry: entry.name)
            for entry in ENTRIES:
                journal.add(entry)
        with Journal(tmp_path, ASKED) as journal:
            assert list(journal.entries()) == [ENTRIES[3], ENTRIES[0], ENTRIES[1]]


def test_answers_to_different_questions_are_kept_apart(tmp_path: Path) -> None:
    add(tmp_path, ENTRIES[0])
    for other, told in (
        ({**ASKED, "model": "dark-small"}, "results of model simcc-small, not of dark-small"),
        ({"model": "simcc-small"}, "results of min_score 0.3, not of None"),
        ({**ASKED, "max_people": 3}, "results of max_people None, not of 3"),
    ):
        with pytest.raises(JournalError, match=told):
            Journal(tmp_path, other)
    add(tmp_path)


def test_a_question_without_answers_gives_way(tmp_path: Path) -> None:
    add(tmp_path, ENTRIES[2])
    other = {**ASKED, "model": "dark-small"}
    with Journal(tmp_path, other) as journal:
        journal.add(ENTRIES[0])
    with pytest.raises(JournalError, match="dark-small, not of simcc-small"):
        Journal(tmp_path, ASKED)


def test_only_one_process_writes(tmp_path: Path) -> None:
    with (
        Journal(tmp_path, ASKED),
        pytest.raises(JournalError, match=f"another process writes into {tmp_path}"),
    ):
        Journal(tmp_path, ASKED)


@pytest.mark.parametrize("content", ["my diary\n", "my diary", "[1]\n"])
def test_another_file_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(JournalError, match="no journal of posemux"):
        Journal(tmp_path, ASKED)
    assert (tmp_path / FILE_NAME).read_text() == content


def test_a_changed_file_has_another_stamp(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    before = stamp(str(path))
    path.write_bytes(b"three")
    assert stamp(str(path)) != before
