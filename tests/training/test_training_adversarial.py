"""Masks against the network: what they cost where latents balance each other out, and after."""

import copy

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.workers import Workers
from unweave.dictionaries.part import Part
from unweave.training.adversarial import (
    AdversarialLoss,
    AdversarialSettings,
    Masks,
    attributions,
    needed_latents,
)
from unweave.training.fit import fit_parts
from unweave.training.joint import JointSettings, kl_per_token, tune_jointly
from unweave.training.local import LocalSettings
from unweave.training.masked_stand_in import full_strength, masked_stand_ins
from unweave.training.stand_in import AtStart, stand_ins

ROWS = tiny_rows(40, 16, seed=2)


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture(scope="module")
def parts(subject):
    from unweave.pipeline.fitting import part_specs

    specs = part_specs(subject, latents=2, k_mlp=6, k_attention=6, skip=False)
    with Workers(1) as workers:
        found, _ = fit_parts(
            subject, specs, ROWS, workers=workers, seed=0, settings=LocalSettings(batch=300)
        )
    return found


def run(subject, placed, rows=ROWS):
    with torch.no_grad(), subject.swapped(placed):
        return subject.run(rows).logits


def test_full_strength_changes_nothing_and_none_leaves_the_offset(subject, parts):
    ones = full_strength(parts, len(ROWS), 2)
    plain = run(subject, stand_ins(parts.values(), AtStart()))
    torch.testing.assert_close(
        run(subject, masked_stand_ins(parts, ones, AtStart())), plain, atol=1e-4, rtol=1e-4
    )
    nothing = {name: torch.zeros_like(one) for name, one in ones.items()}
    silent = copy.deepcopy(parts)
    for part in silent.values():
        part.W_dec.data.zero_()
    torch.testing.assert_close(
        run(subject, masked_stand_ins(parts, nothing, AtStart())),
        run(subject, stand_ins(silent.values(), AtStart())), atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_a_span_is_masked_alone(subject, parts):
    ones = full_strength(parts, len(ROWS), 2)
    for one in ones.values():
        one[:, 1] = 0
    found = run(subject, masked_stand_ins(parts, ones, AtStart()))
    plain = run(subject, stand_ins(parts.values(), AtStart()))
    torch.testing.assert_close(found[:, :8], plain[:, :8], atol=1e-4, rtol=1e-4)
    assert (found[:, 8:] - plain[:, 8:]).abs().max() > 0.1


def test_latents_let_in_are_those_of_a_larger_k(subject, parts):
    ones = full_strength(parts, len(ROWS), 1)
    wide = copy.deepcopy(parts)
    for part in wide.values():
        part.spec = part.spec.model_copy(update={"k": part.spec.k + 3})
    for let_in, others in ((1.0, wide), (0.0, parts)):
        more = {name: torch.full_like(one, let_in) for name, one in ones.items()}
        found = run(subject, masked_stand_ins(parts, ones, AtStart(), let_in=more, more=3))
        wanted = run(subject, stand_ins(others.values(), AtStart()))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_attribution_is_activation_times_gradient(subject, parts):
    """By differences: a little of one latent taken away at all positions of a row."""
    found = attributions(subject, parts, ROWS[:2], spans=1)
    name = "L1.mlp"
    latent = int(found[name][0, 0].argmax())
    top = []
    for strength in (1.0, 0.99):
        some = full_strength(parts, 2, 1)
        some[name][0, 0, latent] = strength
        logits = run(subject, masked_stand_ins(parts, some, AtStart()), ROWS[:2])
        top.append(logits[0, -1].log_softmax(-1)[plain_top(subject, parts)])
    assert found[name][0, 0, latent].item() == pytest.approx(
        abs((top[0] - top[1]).item()) / 0.01, rel=0.05
    )


def plain_top(subject, parts):
    return run(subject, stand_ins(parts.values(), AtStart()), ROWS[:2])[0, -1].argmax()


def test_what_is_needed_grows_with_the_share(subject, parts):
    few, most, every = (
        needed_latents(
            subject,
            parts,
            ROWS[:4],
            share=share,
            spans=2,
            generator=torch.Generator().manual_seed(0),
        )
        for share in (0.5, 0.9, 1.0)
    )
    counts = [sum(one.sum().item() for one in each.values()) for each in (few, most, every)]
    assert 0 < counts[0] < counts[1] < counts[2]
    for name in few:
        assert not (few[name] & ~most[name]).any()


def masked_kl(subject, parts, settings, rows, seed=5, explain=needed_latents):
    """KL under the masks that a loss would use, mean over predictions."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        logits = subject.run(rows).logits
    needed = explain(subject, parts, rows, share=0.7, spans=1, generator=generator)
    masks = Masks(needed, settings, generator)
    if settings.masks == "adversarial":
        for _ in range(settings.steps):
            masks.worsen(subject, parts, rows, logits)
    with torch.no_grad():
        return masks.kl(subject, parts, rows, logits).mean().item()


def test_the_adversary_does_more_harm_than_chance(subject, parts):
    harm = {
        kind: masked_kl(subject, parts, AdversarialSettings(masks=kind, steps=3), ROWS)
        for kind in ("random", "adversarial")
    }
    assert harm["adversarial"] > 1.1 * harm["random"]


def balanced(parts: dict[str, Part], size: float) -> dict[str, Part]:
    """Two more latents in an MLP, always on, that write against each other: useless together,
    harmful apart."""
    changed = copy.deepcopy(parts)
    old = changed["L0.mlp"]
    spec = old.spec.model_copy(update={"n_latents": old.spec.n_latents + 2, "k": old.spec.k + 2})
    new = Part(spec)
    direction = torch.randn(spec.d_out, generator=torch.Generator().manual_seed(0))
    direction = direction / direction.norm()
    with torch.no_grad():
        for key in ("W_enc", "b_enc", "W_dec"):
            getattr(new, key)[:-2] = getattr(old, key)
        new.b_enc[-2:] = size
        new.W_dec[-2:] = torch.stack([direction, -direction])
        new.b_dec.copy_(old.b_dec)
        new.start_output.copy_(old.start_output)
    changed["L0.mlp"] = new
    return changed


def plain_kl(subject, parts, rows):
    with torch.no_grad():
        logits = subject.run(rows).logits
    made = run(subject, stand_ins(parts.values(), AtStart()), rows)
    return kl_per_token(logits[:, 1:], made[:, 1:]).mean().item()


def all_but_the_pair(subject, parts, rows, *, share, spans, generator):
    """Everything is needed but the two that balance each other out."""
    needed = {n: one > 0 for n, one in full_strength(parts, len(rows), spans).items()}
    needed["L0.mlp"][..., -2:] = False
    return needed


def test_latents_that_balance_each_other_out_are_trained_away_by_masks_alone(subject, parts):
    """The effect is known: free of cost when whole, dear under masks."""
    odd, unseen = balanced(parts, 300.0), tiny_rows(20, 16, seed=50)
    settings = AdversarialSettings(span=16, weight=1.0)
    plain = plain_kl(subject, parts, unseen)
    assert plain_kl(subject, odd, unseen) == pytest.approx(plain, rel=1e-2)
    before = masked_kl(subject, odd, settings, unseen, explain=all_but_the_pair)
    assert before > 1.5 * plain
    after = {}
    joint = JointSettings(tokens=25 * 64, micro_rows=4, micro_batches=1, lr=3e-2)
    losses = {"masks": AdversarialLoss(settings, explain=all_but_the_pair), "plain": None}
    for name, besides in losses.items():
        tuned = copy.deepcopy(odd)
        with Workers(1) as workers:
            metrics = tune_jointly(
                subject, tuned, ROWS, workers=workers, seed=3, settings=joint, besides=besides
            )
        assert ("besides" in metrics[0]) == (besides is not None)
        plainly = plain_kl(subject, tuned, unseen)
        harm = masked_kl(subject, tuned, settings, unseen, explain=all_but_the_pair) - plainly
        after[name] = harm / (before - plain)
    assert after["masks"] < 0.6 * after["plain"]
