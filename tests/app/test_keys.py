import logging

import pytest

from app import keys
from app.errors import TooManyRequestsError
from app.keys import KeyFile, Limits

ALICE, BOB = "alice-0123456789", "bob:0123456789==/+"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(keys, "monotonic", made)
    return made


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "keys"
    made.write_text(f"# Who may ask.\n\nalice:{ALICE}\r\n  bob:{BOB}\n")
    return made


def replace(path, text):
    """As one replaces a file that others read."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_a_key_is_its_names(path):
    file = KeyFile(path)
    assert file.names == ["alice", "bob"]
    assert (file.name_of(ALICE), file.name_of(BOB)) == ("alice", "bob")
    for other in ("", "alice", ALICE[:-1], f"{ALICE} ", f"alice:{ALICE}", "é" * 20):
        assert file.name_of(other) is None


def test_every_known_key_is_compared(path, monkeypatch):
    compared = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(b) or a == b)
    assert KeyFile(path).name_of(ALICE) == "alice"
    assert len(set(compared)) == 2
    assert {len(digest) for digest in compared} == {32}


def test_keys_are_not_kept(path):
    file = KeyFile(path)
    assert ALICE not in repr(vars(file))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no keys"),
        ("# alice\n\n", "has no keys"),
        (f"alice:{ALICE}\nsecret-without-a-name\n", "line 2"),
        ("alice:short\n", "line 1"),
        (f"alice:{ALICE} {ALICE}\n", "line 1"),
        (f"al ice:{ALICE}\n", "line 1"),
        (f":{ALICE}\n", "line 1"),
        (f"alice:{ALICE}\n\nbob:{ALICE}\n", "line 3: the key is another name's"),
        ("alice:\x00\xff0123456789abcdef\n", "line 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_without_its_keys(path, text, told):
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=told) as refused:
        KeyFile(path)
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    for secret in ("secret", "short", "0123456789"):
        assert secret not in message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="absent: No such file"):
        KeyFile(tmp_path / "absent")


def test_a_changed_file_is_read_again(path, clock):
    file = KeyFile(path)
    replace(path, "alice:another-0123456789\n")
    assert file.name_of(ALICE) == "alice"  # for a moment
    clock.now += 1
    assert file.name_of(ALICE) is None
    assert file.name_of("another-0123456789") == "alice"
    assert file.names == ["alice"]


def test_two_keys_of_one_name_make_way_for_each_other(path, clock):
    replace(path, f"alice:{ALICE}\nalice:another-0123456789\n")
    file = KeyFile(path)
    assert file.name_of(ALICE) == file.name_of("another-0123456789") == "alice"


def test_a_replacement_through_links_is_noticed(tmp_path, clock):
    # As Kubernetes mounts secrets.
    for version, key in (("1", ALICE), ("2", BOB)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(f"alice:{key}\n")
    data = tmp_path / "data"
    data.symlink_to("1")
    file = KeyFile(data / "keys")
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").replace(data)
    clock.now += 1
    assert file.name_of(BOB) == "alice"


@pytest.mark.parametrize("broken", ["rubbish-0123456789", "", None])
def test_a_broken_file_leaves_the_keys_and_one_line(path, clock, caplog, broken):
    caplog.set_level("INFO")
    file = KeyFile(path)
    if broken is None:
        path.unlink()
    else:
        replace(path, broken)
    for _ in range(3):
        clock.now += 1
        assert file.name_of(ALICE) == "alice"
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "stay as they were" in record.getMessage()
    assert "rubbish" not in record.getMessage()

    replace(path, f"carol:{ALICE}\n")
    clock.now += 1
    assert file.name_of(ALICE) == "carol"
    assert "read again" in caplog.records[-1].getMessage()


# ------------------------------------------------------------------------------------- how much


def admitted(limits, name="alice"):
    with limits.admit(name):
        pass


def test_a_bucket_of_tokens(clock):
    limits = Limits(rate=0.5, burst=3, concurrency=0)
    for _ in range(3):
        admitted(limits)
    for passed, wait in ((0, 2), (0.5, 2), (0.75, 1)):
        clock.now += passed
        with pytest.raises(TooManyRequestsError, match=r"0\.5 a second.*3 at once") as refused:
            admitted(limits)
        assert refused.value.retry_after == wait
    clock.now += 0.75  # who was turned away has lost nothing
    admitted(limits)
    with pytest.raises(TooManyRequestsError):
        admitted(limits)
    admitted(limits, "bob")
    clock.now += 1000
    for _ in range(3):
        admitted(limits)
    with pytest.raises(TooManyRequestsError):
        admitted(limits)


def test_waiting_as_long_as_told_is_enough(clock):
    limits = Limits(rate=3, burst=1, concurrency=0)
    for _ in range(50):
        admitted(limits)
        with pytest.raises(TooManyRequestsError) as refused:
            admitted(limits)
        clock.now += refused.value.retry_after


def test_so_many_at_the_same_time():
    limits = Limits(rate=0, burst=1, concurrency=2)
    with limits.admit("alice"):
        with pytest.raises(KeyError), limits.admit("alice"):
            raise KeyError
        with limits.admit("alice"):
            with pytest.raises(TooManyRequestsError, match="2 are accepted") as refused:
                admitted(limits)
            assert refused.value.retry_after == 1
            admitted(limits, "bob")
        admitted(limits)


def test_no_limits():
    limits = Limits(rate=0, burst=1, concurrency=0)
    for _ in range(1000):
        admitted(limits)
