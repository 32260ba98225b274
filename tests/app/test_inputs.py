from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.inputs import InputsError, drawings, find


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        *("a.jpg", "b.PNG", "größe 日本.jpeg", "[1].jpg", "x.heic", "notes.txt", ".hidden.jpg"),
        *("sub/a.jpg", "sub/deep/c.gif", ".trash/d.jpg"),
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "photos" / "dir.jpg").mkdir()
    return tmp_path / "photos"


def names(*inputs: str, out: Path | None = None) -> list[str]:
    pictures = find(inputs, out)
    return [pictures.name(path) for path in pictures.paths]


def test_a_folder_is_all_pictures_in_it(photos: Path) -> None:
    pictures = find(["photos"])
    assert pictures.root == photos
    assert pictures.passed_over == 1
    assert pictures.paths == [
        *("photos/[1].jpg", "photos/a.jpg", "photos/b.PNG", "photos/größe 日本.jpeg"),
        *("photos/sub/a.jpg", "photos/sub/deep/c.gif", "photos/x.heic"),
    ]
    assert pictures.name("photos/sub/a.jpg") == "sub/a.jpg"


def test_a_pattern_finds_what_a_shell_would(photos: Path) -> None:
    assert names("photos/*.jpg") == ["[1].jpg", "a.jpg"]
    assert names("photos/**/*.jpg") == ["[1].jpg", "a.jpg", "sub/a.jpg"]
    assert names("photos/s*/*.jpg") == ["sub/a.jpg"]
    assert names("photos/s*") == ["sub/a.jpg", "sub/deep/c.gif"]
    # A name is a name first.
    assert names("photos/[1].jpg") == ["[1].jpg"]
    # Whatever was asked for by its name is tried.
    assert names("photos/notes.*") == ["notes.txt"]


def test_what_is_said_twice_is_taken_once_and_named_below_what_all_share(photos: Path) -> None:
    given = ["photos/sub/deep", "photos/a.jpg", "./photos/../photos/a.jpg", str(photos / "sub")]
    assert names(*given) == ["a.jpg", "sub/a.jpg", "sub/deep/c.gif"]
    assert find(given).root == photos
    assert find(["photos/a.jpg"]).root == photos


def test_links_are_followed_and_loops_end(photos: Path, tmp_path: Path) -> None:
    (photos / "sub" / "up").symlink_to("..")
    (photos / "gone.jpg").symlink_to("nowhere")
    (photos / "linked.jpg").symlink_to("a.jpg")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "e.jpg").touch()
    (photos / "further").symlink_to(elsewhere)
    found = names("photos")
    assert {"gone.jpg", "linked.jpg", "further/e.jpg"} < set(found)
    assert [name for name in found if "up" in name] == []


def test_what_a_command_writes_is_no_input_of_it(photos: Path) -> None:
    before = names("photos")
    for out in (photos, photos / "poses"):
        written = drawings(find(["photos"], out), "simcc", out).values()
        for drawn in written:
            drawn.parent.mkdir(parents=True, exist_ok=True)
            drawn.touch()
        assert names("photos", out=out) == before
        assert "a.simcc.jpg" not in "".join(names("photos/**/*.jpg", out=out))
        # Elsewhere it is a picture like others.
        assert "a.simcc.jpg" in "".join(names("photos", out=photos.parent / "other"))
        for drawn in written:
            drawn.unlink()


def test_no_two_pictures_are_drawn_into_one_file(photos: Path) -> None:
    (photos / "a.png").touch()
    pictures = find(["photos/a.*", "photos/sub/a.jpg"])
    assert drawings(pictures, "pct", Path("out")) == {
        "photos/a.jpg": Path("out/a.pct.jpg"),
        "photos/a.png": Path("out/a.png.pct.jpg"),
        "photos/sub/a.jpg": Path("out/sub/a.pct.jpg"),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["photos/a.jpg", "nowhere.jpg"], "no such file: nowhere.jpg"),
        (["photos/*.webp"], r"no file matches photos/\*.webp"),
        (["photos/dir.jpg"], "no picture in photos/dir.jpg"),
    ],
)
def test_nothing_there_is_told(photos: Path, given: list[str], message: str) -> None:
    with pytest.raises(InputsError, match=message):
        find(given)


def test_names_need_not_be_text(photos: Path) -> None:
    raw = os.fsdecode(b"photos/\xff.jpg")
    Path(raw).touch()
    assert os.fsdecode(b"\xff.jpg") in names("photos")
