import re

import app.errors
from app.errors import BusyError, DrainingError, NotReadyError, PosemuxError


def every_error():
    found = [value for value in vars(app.errors).values() if isinstance(value, type)]
    return [error for error in found if issubclass(error, PosemuxError)]


def test_every_error_has_its_own_type_and_title():
    errors = every_error()
    assert len(errors) == 18
    for attribute in ("type", "title"):
        values = [getattr(error, attribute) for error in errors]
        assert len(set(values)) == len(errors), attribute
    for error in errors:
        assert re.fullmatch(r"/problems/[a-z-]+", error.type)
        assert 400 <= error.status < 600


def test_the_drawing_shows_every_error_with_its_status():
    drawn = dict(re.findall(r"(\w+Error) +(\d{3})", app.errors.__doc__))
    assert drawn == {
        error.__name__: str(error.status) for error in every_error() if error is not PosemuxError
    }


def test_the_detail_is_the_message():
    error = DrainingError("shutting down")
    assert error.detail == str(error) == "shutting down"


def test_whoever_is_turned_away_is_told_when_to_come_back():
    assert BusyError("too much", retry_after=7).retry_after == 7
    for error in every_error():
        instance = error("x")
        assert (instance.retry_after is not None) == (error.status in (429, 503)), error
    assert NotReadyError("x").retry_after
