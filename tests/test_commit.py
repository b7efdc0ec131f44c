"""What may be written in place: tensors that share no entry, with themselves or with others, however they lie in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import updsl
from updsl.runtime.commit import apart, overlapping, shares_with_itself

M = torch.zeros(4, 6)
APART = {
    "columns": (M[:, :3], M[:, 3:]),
    "rows": (M[:2], M[2:]),
    "chess": (M[::2, ::2], M[1::2, 1::2], M[::2, 1::2], M[1::2, ::2]),
    "no entries": (M, M[:0], M[1:1]),
    "transposed": (M.T[:2], M.T[2:]),
    "a point between": (M.view(-1)[::2], M.view(-1)[1]),
}
SHARED = {
    "the same": (M, M),
    "a view": (M, M[2:3, 1:2]),
    "shifted": (M.view(-1)[:10], M.view(-1)[9:]),
    "other type": (M, M.view(torch.float64)[:, 2:]),
    "crossing": (M[1], M[:, 2]),
    "transposed": (M.T[:2], M[3:]),
    "the last of three": (M.view(-1), torch.ones(1), M[3, 5]),
}


@pytest.mark.parametrize("name", APART)
def test_tensors_apart(name: str) -> None:
    assert overlapping(APART[name]) is None
    assert overlapping(APART[name][:1], APART[name][1:]) is None


@pytest.mark.parametrize("name", SHARED)
def test_tensors_that_share_an_entry(name: str) -> None:
    tensors = SHARED[name]
    for order in (tensors, tensors[::-1]):
        assert overlapping(order) is not None
        assert overlapping(order[:1], order[1:]) is not None


def test_tensors_that_are_only_read_may_share() -> None:
    assert overlapping([torch.ones(2)], [M, M, M[0].expand(3, 6)]) is None


def layouts(draw) -> torch.Tensor:
    """A view of 40 entries with any strides."""
    shape = draw(st.lists(st.integers(1, 4), max_size=3))
    strides = [draw(st.integers(0, 5)) for _ in shape]
    reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return torch.zeros(100).as_strided(shape, strides, draw(st.integers(0, 99 - reach)))


MEMORY = torch.zeros(100)
views = st.composite(layouts)()


def offsets(x: torch.Tensor) -> list[int]:
    return torch.arange(100).as_strided(x.shape, x.stride(), x.storage_offset()).flatten().tolist()


@given(x=views)
def test_a_tensor_shares_with_itself_where_two_entries_have_one_place(x: torch.Tensor) -> None:
    assert shares_with_itself(x) == (len(set(offsets(x))) < x.numel())


@given(x=views, y=views)
def test_two_tensors_share_where_they_have_a_place_in_common(x: torch.Tensor, y: torch.Tensor) -> None:
    x, y = (MEMORY.as_strided(v.shape, v.stride(), v.storage_offset()) for v in (x, y))
    assert (overlapping([x], [y]) is not None) == bool({*offsets(x)} & {*offsets(y)})


def test_the_message_names_both() -> None:
    with pytest.raises(updsl.UpdslError, match="the gradient of `a` and the weight of `w` are the same memory"):
        apart({"b": torch.ones(1), "a": M}, "the gradient", {"w": M}, "the weight")
    with pytest.raises(updsl.UpdslError, match="the gradient of `c` and of `a` overlap in memory"):
        apart({"a": M, "b": torch.ones(1), "c": M[1:]}, "the gradient")
