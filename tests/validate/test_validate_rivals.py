"""Classical rivals at a place of a network: as sparse as asked, true where the truth is known."""

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.placed import Placed, run_with
from unweave.validate.rivals.families import (
    FAMILIES,
    RivalSettings,
    checked,
    fits,
    kind_of,
    members,
    next_pattern,
)
from unweave.validate.rivals.spot import Spot, spot

SMALL = RivalSettings(
    k=(2, 8), clusters=(4, 9), independent=12, components=8, random_per_dimension=2
)
STREAM, READ, WRITTEN = "blocks.0.resid_post", "blocks.1.mlp.in", "blocks.1.mlp.out"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tiny_llama(seed=3)


@pytest.fixture(scope="module")
def stream(subject: Subject) -> Spot:
    return spot(subject, (STREAM,), (STREAM,), tiny_rows(40, 12))


@pytest.fixture(scope="module")
def between(subject: Subject) -> Spot:
    return spot(subject, (READ,), (WRITTEN,), tiny_rows(40, 12))


def error(at: Spot, coder, x: torch.Tensor) -> float:
    apart = coder.decode(coder.encode(x)) - at.y
    return float(apart.square().sum() / (at.y - at.y.mean(0)).square().sum())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_as_sparse_as_its_names_say(family: str, stream: Spot) -> None:
    found = dict(members(family, stream, SMALL))
    names = {"clusters": ["n4", "n9"], "polytopes": ["n4", "n9", "k2", "k8"]}
    assert list(found) == names.get(family, ["k2", "k8"])
    for name, coder in found.items():
        most = 1 if name[0] == "n" else int(name[1:])
        assert 0 < coder.encode(stream.y).l0() <= most
        assert error(stream, coder, stream.y) < 1.3
    fewest, most, *_ = found.values()
    assert error(stream, most, stream.y) < error(stream, fewest, stream.y)


def test_all_coordinates_of_a_place_lose_nothing_and_few_do(stream: Spot) -> None:
    found = dict(members("pca", stream, RivalSettings(k=(2, 32))))
    assert error(stream, found["k32"], stream.y) < 1e-6
    assert error(stream, found["k2"], stream.y) > 0.1


def test_behind_a_block_all_its_neurons_are_the_block(subject: Subject, between: Spot) -> None:
    rows = tiny_rows(4, 12, seed=5)
    true = subject.run(rows).logits
    for family, k, bound in (("neurons", 48, 1e-4), ("pca", 32, 1e-4)):
        ((_, coder),) = members(family, between, RivalSettings(k=(k,)))
        standing = [Placed(family, coder, between.reads, between.writes)]
        assert (run_with(subject, rows, standing).logits - true).abs().max() < bound
    ((_, poor),) = members("pca", between, RivalSettings(k=(1,)))
    standing = [Placed("poor", poor, between.reads, between.writes)]
    assert (run_with(subject, rows, standing).logits - true).abs().max() > 1e-2


@pytest.mark.parametrize(("kind", "width"), [("q", 32), ("k", 16)])
def test_queries_and_keys_have_rivals_too(subject: Subject, kind: str, width: int) -> None:
    rows = tiny_rows(4, 12, seed=5)
    true = subject.run(rows).logits
    ends = ("blocks.1.attn.in",), (f"blocks.1.attn.{kind}",)
    at = spot(subject, *ends, tiny_rows(20, 12))
    for k, exact in ((width, True), (1, False)):
        for family in ("neurons", "pca"):
            ((_, coder),) = members(family, at, RivalSettings(k=(k,)))
            apart = run_with(subject, rows, [Placed(family, coder, *ends)]).logits - true
            assert (apart.abs().max() < 1e-4) == exact


def test_the_next_mlps_pattern_is_that_of_the_network_where_attention_writes_nothing(
    subject: Subject,
) -> None:
    rows = tiny_rows(6, 8)
    still = {"blocks.1.attn.out": torch.zeros(1)}
    gate = "model.layers.1.mlp.gate_proj"
    found = subject.run(rows, capture=[STREAM, gate], replace=still).sites
    at = spot(subject, (STREAM,), (STREAM,), rows)
    pattern = next_pattern(at)(found[STREAM].flatten(0, 1))
    assert torch.equal(pattern, (found[gate].flatten(0, 1) > 0).float())
    moved = subject.run(rows, capture=[gate]).sites[gate].flatten(0, 1) > 0
    assert not torch.equal(pattern, moved.float())


def test_what_cannot_stand_somewhere_says_so(subject: Subject, between: Spot) -> None:
    assert kind_of("random") == "control"
    assert kind_of("pca") == "baseline"
    assert not fits("polytopes", between)
    with pytest.raises(UserError, match="site of the stream"):
        list(members("polytopes", between, SMALL))
    with pytest.raises(UserError, match="no one block leads"):
        spot(subject, (STREAM,), (WRITTEN,), tiny_rows(2))
    with pytest.raises(UserError, match="wishes is no baseline"):
        checked(["pca", "wishes"])
    assert checked(["pca", "pca"]) == ["pca"]
