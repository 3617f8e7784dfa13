"""The nouns."""

from __future__ import annotations

import dataclasses

import pytest

from serve import errors, records
from serve.records import Message, Sampling, prompt_text


def test_the_prompt_text_is_the_last_user_turn() -> None:
    talk = [Message("user", "one"), Message("assistant", "two"), Message("user", "three"), Message("assistant", "four")]
    assert prompt_text(talk) == "three"
    assert prompt_text([Message("system", "be kind")]) == ""


def test_every_record_is_frozen() -> None:
    found = [noun for noun in vars(records).values() if dataclasses.is_dataclass(noun) and isinstance(noun, type)]
    assert len(found) >= 10
    for noun in found:
        assert noun.__dataclass_params__.frozen, noun  # type: ignore[attr-defined]


def test_default_sampling_is_what_the_contract_says() -> None:
    assert Sampling() == Sampling(max_tokens=256, temperature=0.8, top_p=1.0, top_k=0, stop=())


def test_an_error_from_a_file_names_its_line() -> None:
    error = errors.InvalidInput("label must be true or false", line=7)
    assert (str(error), error.line, error.status) == ("line 7: label must be true or false", 7, 422)


def test_errors_are_also_the_kind_that_python_knows() -> None:
    assert issubclass(errors.InvalidInput, ValueError)
    assert issubclass(errors.NotFound, LookupError)
    assert issubclass(errors.Unauthorized, PermissionError)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.PromptTooLong, 422),
        (errors.Unauthorized, 401),
        (errors.Forbidden, 403),
        (errors.NotFound, 404),
        (errors.AlreadyVoted, 409),
        (errors.RunActive, 409),
        (errors.NothingToLearn, 409),
        (errors.Expired, 410),
        (errors.Unavailable, 503),
    ],
)
def test_each_error_has_its_http_status(error: type[errors.HustingsError], status: int) -> None:
    assert error.status == status


def test_the_error_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, errors.HustingsError):
            assert name in errors.__doc__
