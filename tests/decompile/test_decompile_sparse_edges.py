"""Networks of edges: the same function as the decompiled network, cut, trained, kept and read."""

import pytest
import torch

from tests.decompile.test_decompile_explicit import WIDTH, NoStream, random_parts, subject_of
from tests.tiny_subject import bump, tiny_rows
from unweave.artifact.atomic import write_json
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.decompile.explicit.network import ExplicitNetwork
from unweave.decompile.sparse.edges import edges_of
from unweave.decompile.sparse.factors import factors_of
from unweave.decompile.sparse.incoming import incoming
from unweave.decompile.sparse.interactions import (
    delivered,
    score_pairs,
    strongest_from,
    strongest_into,
)
from unweave.decompile.sparse.stored import SparseEdgeNetwork
from unweave.decompile.sparse.training import EdgeTraining, train_edges
from unweave.decompile.sparse.uses import coins, joint_activity, uses
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.training.checkpoint import Checkpoints
from unweave.training.edges.choosing import keep_highest, keep_random
from unweave.training.edges.schedule import PruningSchedule


@pytest.fixture(scope="module")
def tiny():
    subject = subject_of()
    return subject, random_parts(subject)


def scored(network, rows):
    with torch.no_grad():
        joint = joint_activity(network, network.trace(rows), elsewhere=0.1)
    return uses(network, joint, coins(network, rows, seed=0))


def pruned(tiny, share=0.2):
    network = edges_of(*tiny)
    network.keep(keep_highest(scored(network, tiny_rows(4, 16)), round(share * network.entries)))
    return network


@pytest.mark.parametrize("first", ["start", "other"])
def test_with_all_edges_it_is_the_decompiled_network(tiny, first):
    rows = tiny_rows(3, 16)
    if first == "other":
        rows[1, 0] = 5
    network, explicit = edges_of(*tiny), ExplicitNetwork(*tiny)
    assert network.edges == network.entries == explicit.weights.entries
    with torch.no_grad():
        found = network(rows)
    wanted = explicit(rows)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(SparseEdgeNetwork.of(network)(rows), wanted, atol=1e-4)
    network.tables["L1.mlp"][70] *= 1.5  # the test can fail
    with torch.no_grad():
        assert not torch.allclose(network(rows), wanted, atol=1e-3)


def test_gates_have_edges_of_their_own():
    subject = subject_of()
    parts = random_parts(subject)
    for name in ("L0.mlp", "L1.mlp"):
        spec = parts[name].spec.model_copy(update={"gated": True})
        parts[name] = bump(Part(spec), 0.4, seed=5)
    network, explicit = edges_of(subject, parts), ExplicitNetwork(subject, parts)
    rows = tiny_rows(3, 16)
    assert network.spec.gated == ("L0.mlp", "L1.mlp")
    assert network.entries == explicit.weights.entries
    with torch.no_grad():
        assert torch.allclose(network(rows), explicit(rows), atol=1e-5)
    network.keep(keep_highest(scored(network, rows), network.entries // 3))
    with torch.no_grad():
        assert torch.allclose(SparseEdgeNetwork.of(network)(rows), network(rows), atol=1e-4)
        network.tables["L0.mlp.gate"].zero_()
        assert not torch.allclose(network(rows), explicit(rows), atol=1e-2)


def test_vectors_behind_a_mask_are_the_edges_that_they_make(tiny):
    rows, network = tiny_rows(3, 16), factors_of(*tiny)
    for _ in (1, 2):  # whole, then cut
        with torch.no_grad():
            found = network(rows)
        settled = network.settle().copy()
        with torch.no_grad():
            assert torch.allclose(settled(rows), found, atol=1e-4)
        gradient, slope = sloped(network, rows)
        assert gradient == pytest.approx(slope, rel=0.05)
        network.keep({n: torch.rand(t.shape) > 0.3 for n, t in network.tables.items()})
        network.settle()


def sloped(network, rows):
    """How a sum of logits moves with one reader's vector: by the gradient, and by moving it."""
    reads = network.reads["logit"].requires_grad_()
    direction = torch.randn(reads.shape, generator=torch.Generator().manual_seed(0))
    gradient = torch.autograd.grad(network(rows).square().sum(), reads)[0]
    sums = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            reads += step * direction
            sums.append(float(network(rows).square().sum()))
            reads -= step * direction
    reads.requires_grad_(False)
    return float((gradient * direction).sum()), (sums[0] - sums[1]) / 2e-3


def test_a_pruned_network_runs_on_the_edges_it_has_left_and_is_kept(tiny, tmp_path):
    rows = tiny_rows(3, 16)
    network = pruned(tiny)
    stored = SparseEdgeNetwork.of(network)
    assert stored.edges == network.edges == round(0.2 * network.entries)
    with torch.no_grad():
        wanted = network(rows)
    assert torch.allclose(stored(rows), wanted, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(edges_of(*tiny)(rows), wanted, atol=1e-2)
    stored.save(tmp_path / "edges")
    again = SparseEdgeNetwork.load(tmp_path / "edges")
    assert torch.equal(again(rows), stored(rows))
    assert again.bits < 32 * network.entries


def test_the_stream_exists_nowhere_while_it_runs(tiny):
    stored = SparseEdgeNetwork.of(pruned(tiny))
    rows = tiny_rows(2, 12)
    assert WIDTH not in stored.gram.shape  # made once, of what writers write
    with NoStream():
        stored(rows)


def test_incoming_edges_sum_to_the_pre_activation_exactly(tiny):
    rows, network = tiny_rows(3, 16), SparseEdgeNetwork.of(pruned(tiny))
    found = network.trace(rows)
    for name in [*network.spec.parts, "logit"]:
        for row, latent in ((3, 0), (20, 7), (45, 13)):
            edges = incoming(network, found, name, latent, row)
            total = sum(edge.amount for edge in edges) + float(network.offsets[name][latent])
            assert total == pytest.approx(float(found.pre[name][row, latent]), abs=1e-4)
    edges = incoming(network, found, "L1.mlp", 7, 20)
    assert edges
    assert {edge.writer_part for edge in edges} <= {"token", "L0.attn", "L0.mlp", "L1.attn"}
    # Without its strongest edge the sum is another: the test can fail.
    largest = max(edges, key=lambda edge: abs(edge.amount))
    left = sum(e.amount for e in edges if e is not largest) + float(network.offsets["L1.mlp"][7])
    assert abs(left - float(found.pre["L1.mlp"][20, 7])) > 1e-3


def test_the_graph_is_read_in_both_directions_with_its_sign(tiny):
    network, rows = edges_of(*tiny), tiny_rows(4, 16)
    used = delivered(network, rows)
    found = network.trace(rows)
    # What is delivered where a latent is active sums to its mean pre-activation there.
    on = found.strength["L1.mlp"][:, 7] > 0
    wanted = (found.pre["L1.mlp"][:, 7] - network.offsets["L1.mlp"][7])[on].mean()
    assert float(used["L1.mlp"][:, 7].sum()) == pytest.approx(float(wanted), rel=0.02)
    into = strongest_into(network, used, "L1.mlp", 7, count=500)
    assert {each.source_part for each in into} == {"token", "L0.attn", "L0.mlp", "L1.attn"}
    assert any(each.used < 0 for each in into)
    best = next(each for each in into if each.source_part == "L0.mlp")
    back = strongest_from(network, used, "L0.mlp", best.source, count=1000)
    assert best in back
    assert {each.target_part for each in back} == {"L1.q", "L1.k", "L1.attn", "L1.mlp", "logit"}


def test_pairs_of_query_and_key_features_add_what_they_say_to_a_score(tiny):
    subject, parts = tiny
    network, pairs = edges_of(subject, parts), ExplicitNetwork(subject, parts).pairs[1]
    pair = score_pairs(network, 1, distance=0)[0]
    one = torch.ones(1, 1)
    query, key = ((torch.tensor([[n]]), one) for n in (pair.query, pair.key))
    score = pairs.scores(query, key)[pair.head, 0, 0]
    assert pair.weight == pytest.approx(float(score), rel=1e-4)
    assert score_pairs(network, 1, distance=3)[0].weight != pytest.approx(pair.weight, rel=1e-3)


def test_edges_of_use_are_worth_more_than_as_many_drawn_blindly(tiny):
    rows = tiny_rows(6, 16, seed=3)
    whole = edges_of(*tiny)
    with torch.no_grad():
        wanted = whole(rows)
    by_use, blind = pruned(tiny, 0.4), edges_of(*tiny)
    blind.keep(keep_random(by_use.kept, seed=1))
    assert blind.edges == by_use.edges
    with torch.no_grad():
        gaps = [(n(rows) - wanted).square().mean() for n in (by_use, blind)]
    assert gaps[0] < 0.8 * gaps[1]


def test_masks_have_the_size_that_was_asked_for():
    scores = {"a": torch.tensor([[3.0, 0.0, 1.0]]), "b": torch.tensor([[2.0], [1.0], [1.0]])}
    sizes = [sum(int(m.sum()) for m in keep_highest(scores, n).values()) for n in range(7)]
    assert sizes == [0, 1, 2, 3, 4, 5, 5]  # what does nothing is never kept
    two = keep_highest(scores, 2)
    assert two["a"].tolist() == [[True, False, False]]
    assert two["b"].flatten().tolist() == [True, False, False]


def test_training_cuts_on_schedule_and_wins_back_what_cutting_costs(tiny):
    subject, parts = tiny
    rows, held = tiny_rows(32, 16, seed=1), tiny_rows(8, 16, seed=2)
    naive, trained = pruned(tiny, 0.3), factors_of(subject, parts)
    settings = EdgeTraining(
        tokens=30 * 4 * 16, rows=4, lr=3e-2, pruning=PruningSchedule(final=0.3, until=0.5, every=5)
    )
    log = train_edges(trained, subject, parts, rows, seed=0, settings=settings)
    assert trained.edges == naive.edges == round(0.3 * trained.entries)
    counts = [line["edges"] for line in log]
    assert counts == sorted(counts, reverse=True)
    assert all(bool((t[~trained.kept[n]] == 0).all()) for n, t in trained.tables.items())
    original = subject.run(held).logits.log_softmax(-1)

    def kl(network):
        with torch.no_grad():
            found = network(held).log_softmax(-1)
        return float((original.exp() * (original - found)).sum(-1).mean())

    assert kl(trained) < 0.5 * kl(naive)


def test_a_run_that_was_stopped_ends_in_the_same_bits(tiny, tmp_path):
    subject, parts = tiny
    rows = tiny_rows(8, 12, seed=1)
    settings = EdgeTraining(
        tokens=8 * 2 * 12, rows=2, pruning=PruningSchedule(final=0.3, until=0.9, every=2)
    )

    def stop(log):
        if len(log) == 5:
            raise KeyboardInterrupt

    ran = edges_of(subject, parts)
    train_edges(ran, subject, None, rows, seed=0, settings=settings)
    kept = Checkpoints(tmp_path, seconds=0)
    with pytest.raises(KeyboardInterrupt):
        train_edges(
            edges_of(subject, parts), subject, None, rows, seed=0, settings=settings,
            checkpoints=kept, at_step=stop,
        )  # fmt: skip
    resumed = edges_of(subject, parts)
    train_edges(resumed, subject, None, rows, seed=0, settings=settings, checkpoints=kept)
    for name, tensor in ran.parameters().items():
        assert torch.equal(tensor, resumed.parameters()[name]), name


def test_what_does_not_fit_is_refused_in_a_sentence(tiny, tmp_path):
    network = SparseEdgeNetwork.of(pruned(tiny))
    network.save(tmp_path / "edges")
    tensors = load_tensors(tmp_path / "edges" / "edges.safetensors")
    save_tensors(
        tmp_path / "edges" / "edges.safetensors",
        tensors | {"target/L1.q": tensors["target/L1.q"] + 9},
    )
    with pytest.raises(UserError, match=r"edges into L1\.q do not fit"):
        SparseEdgeNetwork.load(tmp_path / "edges")
    del tensors["weight/logit"]
    save_tensors(tmp_path / "edges" / "edges.safetensors", tensors)
    with pytest.raises(UserError, match="weight/logit"):
        SparseEdgeNetwork.load(tmp_path / "edges")
    spec = network.spec.model_dump(mode="json") | {"layers": 0}
    write_json(tmp_path / "edges" / "spec.json", spec)
    with pytest.raises(UserError, match="layers"):
        SparseEdgeNetwork.load(tmp_path / "edges")
