"""Positions take and put the same entries as a view, by one list for all rows, or by a list for each."""

from __future__ import annotations

import pytest
import torch

from guardalign_guardrails.decoding.attention.positions import Positions

AT = torch.tensor([[3, 4, 5], [3, 4, 5]])
WAYS = {
    "a run": Positions(AT, is_uniform=True, run=(3, 6)),
    "one list": Positions(AT, is_uniform=True),
    "a list for each row": Positions(AT, is_uniform=False),
}


@pytest.mark.parametrize("positions", WAYS.values(), ids=WAYS)
def test_taken_put_and_added_entries_are_those_at_the_positions(positions):
    tensor = torch.rand(2, 3, 8, 7)
    assert torch.equal(positions.taken(tensor, 2), tensor[:, :, 3:6])
    assert torch.equal(positions.taken(tensor, 3), tensor[..., 3:6])
    want, new = tensor.clone(), torch.rand(2, 3, 3, 7)
    want[:, :, 3:6] = new
    assert torch.equal(positions.put(tensor.clone(), new, None), want)
    want, extra = tensor.clone(), torch.rand(2, 3, 8, 3)
    want[..., 3:6] += extra
    assert torch.equal(positions.add(tensor.clone(), extra), want)


@pytest.mark.parametrize("positions", WAYS.values(), ids=WAYS)
def test_entries_that_are_not_meant_are_not_written(positions):
    tensor, new = torch.rand(2, 3, 8, 7), torch.rand(2, 3, 3, 7)
    want = tensor.clone()
    want[0, :, 3:5], want[1, :, 5] = new[0, :, :2], new[1, :, 2]
    is_real = torch.tensor([[True, True, False], [False, False, True]])
    assert torch.equal(positions.put(tensor.clone(), new, is_real), want)


def test_rows_with_lists_of_their_own_get_their_own_entries():
    tensor, at = torch.rand(2, 3, 8, 7), torch.tensor([[0, 6], [5, 2]])
    found = Positions(at, is_uniform=False).taken(tensor, 2)
    assert torch.equal(found, torch.stack([tensor[0][:, [0, 6]], tensor[1][:, [5, 2]]]))


def test_only_a_run_is_a_view():
    tensor = torch.rand(2, 3, 8, 7)
    shared = {
        name: positions.taken(tensor, 2).data_ptr() == tensor[:, :, 3].data_ptr() for name, positions in WAYS.items()
    }
    assert shared == {"a run": True, "one list": False, "a list for each row": False}


def test_several_samples_of_a_prompt_lie_side_by_side():
    positions = Positions(torch.tensor([[1, 2], [3, 4]]), is_uniform=False).repeated(2)
    assert positions.at.tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
