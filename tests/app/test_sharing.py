import pytest

from app.sharing import Room, Turns


def fill(room, client, amount=1):
    taken = 0
    while room.take(client, amount):
        taken += amount
    return taken


def test_one_takes_eight_ninths_and_leaves_the_rest_to_who_comes_next():
    room = Room(900)
    assert fill(room, "a") == 800
    assert fill(room, "b") == 88
    assert not room.take("a", 1)


def test_two_share_alike():
    room = Room(1700)
    for _ in range(1700):
        room.take("a", 1)
        room.take("b", 1)
    assert room._held == {"a": 800, "b": 800}


@pytest.mark.parametrize("greedy", [1, 2, 5, 20])
def test_there_is_room_for_who_comes_next_however_many_are_greedy(greedy):
    room = Room(10_000)
    for _ in range(10_000):
        for client in range(greedy):
            room.take(str(client), 1)
    assert room.take("next", 10_000 // (8 * greedy + 1))
    assert room.used <= 10_000


def test_an_empty_room_takes_anything_once():
    room = Room(10)
    assert room.take("a", 11)
    assert not room.take("b", 1)
    room.give_back("a", 11)
    assert room.take("b", 10)


def test_nothing_is_remembered_of_who_has_gone():
    room = Room(10)
    for number in range(100):
        assert room.take(str(number), 2)
        room.give_back(str(number), 2)
    assert room.used == 0
    assert not room._held


def test_how_much_comes_before_ones_turn():
    room = Room(100)
    for client, amount in (("a", 10), ("b", 2)):
        room.take(client, amount)
    assert room.before("c", 1) == 2
    assert room.before("c", 3) == 5
    assert room.before("b", 1) == 5
    assert room.before("a", 1) == 12


def test_clients_take_turns_and_each_ones_own_stay_in_order():
    turns = Turns()
    for client, item in zip("aaabbc", range(6), strict=True):
        turns.append(client, item)
    assert len(turns) == 6
    assert sorted(turns) == list(zip("aaabbc", range(6), strict=True))
    assert [turns.popleft() for _ in range(6)] == [0, 3, 5, 1, 4, 2]
    assert len(turns) == 0
    with pytest.raises(StopIteration):
        turns.popleft()
