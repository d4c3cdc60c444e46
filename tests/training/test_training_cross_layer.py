"""A planted cross-layer network is found again; a transcoder a layer cannot find it."""

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.cross_layer import (
    cross_layer_specs,
    mlp_ports,
    offset_masks,
    reconstruct,
    site_fvu,
)
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.dictionaries.initial import Start
from unweave.errors import UserError
from unweave.training.batches import ArraySource, TokenSource, VectorBatch
from unweave.training.objectives.cross_layer import CrossLayer
from unweave.training.objectives.end_to_end import EndToEnd
from unweave.training.objectives.splice import Splice
from unweave.training.penalties.l0 import PreActivation
from unweave.training.penalties.pointwise import Tanh
from unweave.training.penalties.weighted import Penalty
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import train
from unweave.validate.battery.allocations import Allocations

LAYERS, WIDTH, TRUE, ACTIVE, LATENTS = 2, 16, 20, 2, 30
READS = [Port(site=f"in{i}", width=WIDTH) for i in range(LAYERS)]
WRITES = [Port(site=f"out{i}", width=WIDTH) for i in range(LAYERS)]


def planted(rows, seed, active=(ACTIVE,) * LAYERS):
    """Vectors in which layer l's features write to all sites from l on, and their truths."""
    world, data = (torch.Generator().manual_seed(s) for s in (0, 100 + seed))

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, generator=world), dim=-1)

    E = unit(LAYERS, TRUE, WIDTH)
    D = unit(LAYERS, TRUE, LAYERS, WIDTH)
    offset = torch.randn(LAYERS, WIDTH, generator=world)
    vectors = {f"out{m}": offset[m].expand(rows, WIDTH) for m in range(LAYERS)}
    for layer in range(LAYERS):
        on = torch.rand(rows, TRUE, generator=data).topk(active[layer], dim=1).indices
        strength = 1 + torch.rand(rows, active[layer], generator=data)
        code = torch.zeros(rows, TRUE).scatter(1, on, strength)
        vectors[f"in{layer}"] = code @ E[layer]
        for m in range(layer, LAYERS):
            vectors[f"out{m}"] = vectors[f"out{m}"] + code @ D[layer, :, m]
    return vectors, D


TRAINING, D = planted(12_000, 1)
HELD_OUT, _ = planted(2_000, 2)


def members_of(specs):
    return {name: Dictionary(spec) for name, spec in specs.items()}


def fit(members, *, steps=300, batch=128, vectors=TRAINING, **settings):
    settings = {"objective": CrossLayer(), "lr": 1e-2, **settings}
    source = ArraySource(vectors, batch=batch, steps=steps, seed=3)
    trainee = Trainee(members, TraineeSettings(**settings), steps=steps, batch=batch, seed=5)
    return train([trainee], source)


def found(member, layer):
    """Share of the layer's planted features with a latent whose decoders point the same way."""
    truth = torch.nn.functional.normalize(D[layer, :, layer:].flatten(1), dim=1)
    learned = torch.nn.functional.normalize(member.directions(), dim=1)
    return ((truth @ learned.T).amax(1) > 0.9).float().mean().item()


@pytest.fixture(scope="module")
def topk():
    members = members_of(cross_layer_specs(READS, WRITES, LATENTS, TopK(k=ACTIVE)))
    return members, fit(members)


def test_planted_cross_layer_features_are_found(topk):
    members, log = topk
    held_out = site_fvu(members, HELD_OUT)
    assert max(held_out.values()) < 0.1, held_out
    assert [found(m, i) > 0.9 for i, m in enumerate(members.values())] == [True] * LAYERS
    for i in range(LAYERS):
        assert log[-1][f"out{i}.fvu"] == pytest.approx(held_out[f"out{i}"], abs=0.03)
    assert log[-1]["L1.mlp.l0"] == ACTIVE


def test_a_transcoder_a_layer_cannot_know_what_earlier_layers_wrote():
    specs = {
        f"L{i}.mlp": DictionarySpec(
            reads=(READS[i],), writes=(WRITES[i],), n_latents=LATENTS, decoder="free",
            activation=TopK(k=ACTIVE),
        )
        for i in range(LAYERS)
    }  # fmt: skip
    members = members_of(specs)
    fit(members, steps=150)
    held_out = site_fvu(members, HELD_OUT)
    assert held_out["out0"] < 0.2
    assert held_out["out1"] > 0.4


def test_what_is_watched_of_a_member_is_what_the_others_leave_to_it(topk):
    members, _ = topk
    trainee = Trainee(members, TraineeSettings(objective=CrossLayer()), steps=1, batch=500)
    batch = VectorBatch({site: rows[:500] for site, rows in HELD_OUT.items()})
    loss = trainee.settings.objective.loss(members, batch, _state(members), trainee.steering, None)
    y_hat = reconstruct(members, batch.vectors)
    seen, member = loss.watched["L0.mlp"], members["L0.mlp"]
    others = {
        site: y_hat[site] - part
        for site, part in zip(
            ("out0", "out1"), (seen.passed.y / member.output_scale).split(WIDTH, 1), strict=True
        )
    }
    want = torch.cat([batch.vectors[site] - others[site] for site in ("out0", "out1")], 1)
    torch.testing.assert_close(seen.y / member.output_scale, want, rtol=1e-4, atol=1e-4)
    assert loss.log["fvu"] == pytest.approx(
        sum(loss.log[f"out{i}.fvu"] for i in range(LAYERS)) / LAYERS, rel=0.3
    )


def _state(members):
    from unweave.training.objectives.loss import State

    dead = {name: torch.zeros(m.n_latents, dtype=torch.bool) for name, m in members.items()}
    return State(0, 0.0, dead)


def test_an_offset_stands_in_one_member_alone(topk):
    members, _ = topk
    for i, member in enumerate(members.values()):
        first, *later = member.b_dec.detach().split(WIDTH)
        assert first.norm() > 0.1, i
        assert all((rows == 0).all() for rows in later)
    masks = offset_masks(members)
    assert [int(mask.sum()) for mask in masks.values()] == [WIDTH] * LAYERS
    assert offset_masks({"L1.mlp": members["L1.mlp"]}) == {}


def test_batchtopk_shares_latents_out_across_layers():
    """One layer has more active features than the other: only a common choice can follow."""
    uneven = (1, 5)
    training, held_out = planted(12_000, 1, uneven)[0], planted(2_000, 2, uneven)[0]
    fvu, members = {}, {}
    for across in (False, True):
        specs = cross_layer_specs(READS, WRITES, LATENTS, BatchTopK(k=3), decoder="unit")
        members[across] = members_of(specs)
        fit(members[across], steps=200, vectors=training, objective=CrossLayer(across=across))
        fvu[across] = sum(site_fvu(members[across], held_out).values()) / LAYERS
    thresholds = {
        k: {m.activation.threshold.item() for m in v.values()} for k, v in members.items()
    }
    assert len(thresholds[True]) == 1
    assert len(thresholds[False]) == LAYERS
    l0 = [m.encode(held_out[f"in{i}"]).l0() for i, m in enumerate(members[True].values())]
    assert sum(l0) == pytest.approx(6, rel=0.15)
    assert l0[1] > 1.5 * l0[0]
    assert fvu[True] < 0.95 * fvu[False], (fvu, l0)


def test_jumprelu_by_anthropics_recipe():
    activation = JumpReLU(threshold=0.1, bandwidth=2.0, gradient_to="all")
    members = members_of(cross_layer_specs(READS, WRITES, LATENTS, activation))
    fit(
        members,
        steps=300,
        lr=1e-2,
        penalties=(
            Penalty(form=Tanh(c=4.0), weight=1.0, warmup=1.0),
            Penalty(form=PreActivation(), weight=3e-6, warmup=0.0),
        ),
        start=Start(decoder="uniform", fires=0.1),
    )
    held_out = site_fvu(members, HELD_OUT)
    l0 = [m.encode(HELD_OUT[f"in{i}"]).l0() for i, m in enumerate(members.values())]
    assert max(held_out.values()) < 0.15, held_out
    assert max(l0) < 2 * ACTIVE, l0


def test_dead_latents_come_back_on_what_the_set_leaves_over():
    members = members_of(cross_layer_specs(READS, WRITES, LATENTS, TopK(k=ACTIVE)))
    trainee = Trainee(members, TraineeSettings(objective=CrossLayer()), steps=10, batch=100)
    batch = VectorBatch({site: rows[:100] for site, rows in TRAINING.items()})
    trainee.begin(batch)
    state = _state(members)
    state.dead["L0.mlp"][:20] = True
    objective, auxk = trainee.settings.objective, trainee.settings.dead.auxk
    without = objective.loss(members, batch, state, trainee.steering, None).total
    loss = objective.loss(members, batch, state, trainee.steering, auxk).total
    assert loss > without
    gradient = torch.autograd.grad(loss - without, members["L0.mlp"].W_dec)[0]
    assert (gradient[:20].norm(dim=1) > 0).any()
    assert gradient[20:].norm() < 1e-4 * gradient.norm()


def test_no_dense_code_is_made():
    rows, latents = 256, 8192
    members = members_of(cross_layer_specs(READS, WRITES, latents, TopK(k=ACTIVE)))
    trainee = Trainee(members, TraineeSettings(objective=CrossLayer()), steps=10, batch=rows)
    batch = VectorBatch({site: v[:rows] for site, v in TRAINING.items()})
    trainee.begin(batch)
    passed = {n: m.run(batch.vectors[f"in{i}"]) for i, (n, m) in enumerate(members.items())}
    assert all(p.latents is None for p in passed.values())
    with Allocations() as made:
        for p in passed.values():
            p.y.sum().backward()
    # The decoder's gradient, [latents, sites * width], is the largest there is.
    assert made.largest <= latents * LAYERS * WIDTH < rows * latents


def test_the_splice_adds_the_members_up():
    subject, rows = tiny_llama(), tiny_rows(6)
    members = members_of(cross_layer_specs(*mlp_ports(subject), 16, TopK(k=3)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for member in members.values():
            for weight in member.parameters():
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    first, second = members.values()
    early: list[torch.Tensor] = []
    own: list[torch.Tensor] = []

    def at_1(y):
        own.append(y[:, 1:])
        return torch.cat([y[:, :1], (early[0][..., 32:] + early[-1])[:, 1:]], 1)

    def at_0(x):
        early.append(first(x))
        return early[0][..., :32]

    def keep(x):
        early.append(second(x))
        return x

    with torch.no_grad():
        want = subject.run(
            rows,
            capture=["blocks.0.mlp.out", "blocks.1.mlp.out"],
            replace={
                "blocks.0.mlp.in": lambda x: at_0(x) * 0 + x,
                "blocks.0.mlp.out": lambda y: torch.cat([y[:, :1], early[0][:, 1:, :32]], 1),
                "blocks.1.mlp.in": keep,
                "blocks.1.mlp.out": at_1,
            },
        )
        splice = Splice(members)
        got = splice.run(subject, rows, capture=["blocks.1.mlp.out"])
    torch.testing.assert_close(got.sites["blocks.1.mlp.out"], want.sites["blocks.1.mlp.out"])
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-4)
    early_part = early[0][:, 1:, 32:].flatten(0, 1)
    seen = splice.seen["L1.mlp"]
    torch.testing.assert_close(seen.y, own[-1].flatten(0, 1) - early_part)


def test_end_to_end_brings_the_prediction_closer():
    subject, rows = tiny_llama(), tiny_rows(64)
    members = members_of(cross_layer_specs(*mlp_ports(subject), 96, TopK(k=8)))
    sites = [p.site for side in mlp_ports(subject) for p in side]
    captured = subject.run(rows, capture=sites, logits=False).sites
    begin = VectorBatch({site: v[:, 1:].flatten(0, 1) for site, v in captured.items()})
    source = TokenSource(subject, rows, rows=4, steps=60, seed=1)
    settings = TraineeSettings(objective=EndToEnd(local=0.1), lr=1e-2)
    trainee = Trainee(members, settings, steps=source.steps, batch=source.batch)
    trainee.begin(begin)
    start = trainee.step(source.at(0)).log["kl"]
    log = train([trainee], source)
    assert log[-1]["kl"] < 0.5 * start
    for member in members.values():
        assert all((part == 0).all() for part in member.b_dec.detach().split(32)[1:])


def test_what_cannot_be_added_up_is_refused():
    specs = cross_layer_specs(READS, WRITES, LATENTS, Gated())
    with pytest.raises(UserError, match="no gated"):
        reconstruct(members_of(specs), HELD_OUT)
    specs = cross_layer_specs(READS, WRITES, LATENTS, TopK(k=2))
    with pytest.raises(UserError, match="in1, of which there are no vectors"):
        reconstruct(members_of(specs), {k: v for k, v in HELD_OUT.items() if k != "in1"})
    with pytest.raises(UserError, match="batchtopk everywhere"):
        fit(members_of(specs), objective=CrossLayer(across=True), steps=2)
    with pytest.raises(UserError, match="do not pair up"):
        cross_layer_specs(READS[:1], WRITES, LATENTS, TopK(k=2))
