"""Rules on models that lie in parts on several ranks: what they give is what one process gives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ranks import Ranks
from trained import model, trained, with_fsdp

import updsl

OFTEN = "adamw autoclip clip_z galore lamb muon quantize sinkgd sparsify zclip add_noise".split()
"""Between them they have sums, norms, variances and extrema of all scopes, windows, blocks, order, draws, `every`, matrices of other grids, and weights."""


@pytest.fixture(scope="module", params=(2, 3), ids=["2-ranks", "3-ranks"])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    found = Ranks(request.param)
    yield found
    found.close()


@pytest.mark.parametrize("rule", OFTEN)
def test_x1_a_rule_gives_what_one_process_gives(ranks: Ranks, rule: str) -> None:
    """FSDP2, with uneven parts and parts without an entry. In float64: in float32 some matrix functions make much of the last bit."""
    expected = trained(model(), [rule])
    for found in ranks.run(with_fsdp, [rule]):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.nightly
def test_x1_every_rule_gives_what_one_process_gives(ranks: Ranks) -> None:
    """Of the library, but those that are to be given something at each step."""
    for rule in updsl.library():
        if not updsl.load(rule).inputs:
            test_x1_a_rule_gives_what_one_process_gives(ranks, rule)
