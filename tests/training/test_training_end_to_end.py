"""End-to-end objectives: the splice itself, its gradients, and what training with them does."""

import pytest
import torch
from tiny_subject import family_subject, tiny_llama, tiny_rows
from torch import Tensor

from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.cross_layer import offset_masks, run_members
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port, autoencoder
from unweave.dictionaries.initial import Start
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.training.batches import TokenBatch, TokenSource, VectorBatch
from unweave.training.dead import DeadLatents
from unweave.training.objectives.divergence import mean_kl
from unweave.training.objectives.end_to_end import EndToEnd
from unweave.training.objectives.loss import State
from unweave.training.objectives.splice import Splice
from unweave.training.penalties.pointwise import L1
from unweave.training.penalties.weighted import Penalty, Steering
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train

D = 32
FIRST, SECOND = "blocks.0.resid_post", "blocks.1.resid_mid"
LATER = ("blocks.1.resid_mid", "blocks.1.resid_post")


def exact(reads: str, writes: str | None = None) -> Dictionary:
    """Latents for both signs of every coordinate, so that y = x."""
    ports = [Port(site=site, width=D) for site in (reads, writes or reads)]
    dictionary = Dictionary(
        DictionarySpec(reads=ports[:1], writes=ports[1:], n_latents=2 * D, activation=ReLU())
    )
    with torch.no_grad():
        both = torch.cat([torch.eye(D), -torch.eye(D)])
        dictionary.W_enc.copy_(both)
        dictionary.W_dec.copy_(both)
    return dictionary


def noisy(spec: DictionarySpec, seed: int = 0) -> Dictionary:
    dictionary = Dictionary(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return dictionary


def batch_of(subject: Subject, rows: Tensor, sites: tuple[str, ...] = ()) -> TokenBatch:
    with torch.no_grad():
        return TokenBatch(subject, rows, subject.run(rows, capture=list(sites)))


def loss_of(objective: EndToEnd, dictionaries: dict[str, Dictionary], batch: TokenBatch, step=0):
    dead = {k: torch.zeros(d.n_latents, dtype=torch.bool) for k, d in dictionaries.items()}
    steering = {k: Steering((Penalty(form=L1(), weight=0.1, warmup=0),)) for k in dictionaries}
    return objective.loss(dictionaries, batch, State(step, 0.5, dead), steering, None)


@pytest.mark.parametrize("site", [FIRST, SECOND, "blocks.1.mlp.out", "blocks.0.attn.z"])
def test_an_exact_dictionary_changes_nothing(site):
    subject, rows = tiny_llama(), tiny_rows(3)
    with torch.no_grad():
        before = subject.run(rows).logits
        after = Splice({"d": exact(site)}).run(subject, rows).logits
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)
    broken = exact(site)
    with torch.no_grad():
        broken.W_dec[0] *= 0.5
        assert (Splice({"d": broken}).run(subject, rows).logits - before).abs().max() > 1e-2


def test_an_exact_transcoder_of_a_linear_map_changes_nothing():
    """mlp.in -> mlp.out, with an MLP that was replaced by the identity on the way."""
    subject, rows = tiny_llama(), tiny_rows(3)
    with subject.swapped({"L1.mlp": torch.nn.Identity()}), torch.no_grad():
        before = subject.run(rows).logits
        transcoder = exact("blocks.1.mlp.in", "blocks.1.mlp.out")
        splice = Splice({"t": transcoder})
        after = splice.run(subject, rows).logits
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(splice.seen["t"].y, splice.seen["t"].passed.y)


def test_position_zero_is_untouched():
    subject, rows = tiny_llama(), tiny_rows(3)
    site = "blocks.1.resid_pre"
    dictionary = noisy(autoencoder(site, D, 48, ReLU()))
    with torch.no_grad():
        before = subject.run(rows, capture=[site])
        after = Splice({"d": dictionary}).run(subject, rows, capture=[site])
    assert torch.equal(before.sites[site][:, 0], after.sites[site][:, 0])
    assert torch.equal(before.logits[:, 0], after.logits[:, 0])
    assert (before.logits[:, 1:] - after.logits[:, 1:]).abs().amax(-1).min() > 1e-3


def test_a_splice_writes_what_the_dictionary_returns_for_raw_vectors():
    subject, rows = tiny_llama(), tiny_rows(3)
    site = "blocks.1.resid_pre"
    dictionary = noisy(autoencoder(site, D, 48, ReLU(), layer_norm=True))
    dictionary.rescale_([0.7], [0.7])
    with torch.no_grad():
        before = subject.run(rows, capture=[site]).sites[site]
        after = Splice({"d": dictionary}).run(subject, rows, capture=[site]).sites[site]
        torch.testing.assert_close(after[:, 1:], dictionary(before[:, 1:]))


def test_cross_layer_writes_add_up():
    subject, rows = tiny_llama(), tiny_rows(3)
    outs = ["blocks.0.mlp.out", "blocks.1.mlp.out"]
    ports = [Port(site=site, width=D) for site in outs]
    reads = [Port(site=f"blocks.{layer}.mlp.in", width=D) for layer in (0, 1)]
    low = noisy(DictionarySpec(reads=reads[:1], writes=ports, n_latents=40, activation=ReLU()), 1)
    high = noisy(
        DictionarySpec(reads=reads[1:], writes=ports[1:], n_latents=40, activation=TopK(k=4)), 2
    )
    with torch.no_grad():
        capture = [*outs, "blocks.0.mlp.in", "blocks.1.mlp.in"]
        splice = Splice({"low": low, "high": high})
        sites = splice.run(subject, rows, capture=capture).sites
        first, second = low(sites["blocks.0.mlp.in"][:, 1:]).split(D, dim=-1)
        torch.testing.assert_close(sites[outs[0]][:, 1:], first)
        third = high(sites["blocks.1.mlp.in"][:, 1:])
        torch.testing.assert_close(sites[outs[1]][:, 1:], second + third)
        # Watched against what the MLP makes of the spliced stream, less what the other writes.
        own = subject.run(rows, capture=outs, replace={outs[0]: sites[outs[0]]}).sites[outs[1]]
    left = {"high": (own[:, 1:] - second), "low": (own[:, 1:] - third)}
    for name, y in left.items():
        torch.testing.assert_close(splice.seen[name].y[:, -D:], y.flatten(0, 1))


def test_the_divergence_is_the_formula_and_its_gradient():
    torch.manual_seed(0)
    original, spliced = torch.randn(2, 7, 11, dtype=torch.float64).unbind(0)
    spliced.requires_grad_()
    torch.autograd.gradcheck(lambda s: mean_kl(original, s), (spliced,))
    plain = torch.nn.functional.kl_div(
        spliced.log_softmax(-1), original.log_softmax(-1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(mean_kl(original, spliced), plain)
    assert mean_kl(original, original.clone()) == 0


@pytest.mark.parametrize("downstream", [0.0, 2.0])
def test_gradients_agree_with_finite_differences(downstream):
    # GPT-2's norms stay in float64; Llama's go through float32.
    subject, rows = family_subject("gpt2"), tiny_rows(2, context=6)
    subject.model.double()
    objective = EndToEnd(downstream=downstream, downstream_sites=LATER)
    low = noisy(autoencoder("blocks.0.resid_mid", D, 20, ReLU()), 1).double()
    ports = [Port(site=f"blocks.1.mlp.{end}", width=D) for end in ("in", "out")]
    spec = DictionarySpec(reads=ports[:1], writes=ports[1:], n_latents=20, activation=ReLU())
    dictionaries = {"low": low, "high": noisy(spec, 2).double()}
    batch = batch_of(subject, rows, LATER)
    total = loss_of(objective, dictionaries, batch).total
    parameters = [p for d in dictionaries.values() for p in d.parameters()]
    gradients = torch.autograd.grad(total, parameters)
    generator = torch.Generator().manual_seed(3)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        step = torch.randn(parameter.shape, generator=generator).double()
        ends = []
        for sign in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += sign * step
                ends.append(loss_of(objective, dictionaries, batch).total.item())
                parameter -= sign * step
        slope = (ends[0] - ends[1]) / 2e-6
        assert slope == pytest.approx((gradient * step).sum().item(), rel=1e-4, abs=1e-9)


def test_mixed_steps_leave_some_out_and_the_others_are_all_in():
    subject, rows = tiny_llama(), tiny_rows(2)
    dictionaries = {"a": exact(FIRST), "b": exact("blocks.1.resid_post")}
    batch = batch_of(subject, rows)
    seen = [
        frozenset(loss_of(EndToEnd(mixed=1.0), dictionaries, batch, step).watched)
        for step in range(24)
    ]
    assert set(seen) == {frozenset("a"), frozenset("b"), frozenset("ab")}
    all_in = [loss_of(EndToEnd(), dictionaries, batch, step).watched for step in range(4)]
    assert all(set(watched) == {"a", "b"} for watched in all_in)


def test_downstream_sites_must_have_been_captured():
    subject, rows = tiny_llama(), tiny_rows(2)
    objective = EndToEnd(downstream=1.0, downstream_sites=LATER)
    with pytest.raises(UserError, match=r"blocks\.1\.resid_mid.*capture"):
        loss_of(objective, {"d": exact(FIRST)}, batch_of(subject, rows))


STEPS, ROWS = 80, 8


def trained(subject: Subject, objectives: dict[str, EndToEnd], *, steps: int = STEPS):
    """One dictionary per objective on the same tokens, TopK so that L0 is equal."""
    site = "blocks.0.resid_post"
    text = tiny_rows(64, 12, seed=1)
    source = TokenSource(subject, text, rows=ROWS, steps=steps, capture=LATER, seed=2)
    found = subject.run(text, capture=[site], logits=False).sites[site][:, 1:].flatten(0, 1)
    settings = {"lr": 5e-3, "dead": DeadLatents(auxk=None), "start": Start(decoder="random")}
    trainees = [
        Trainee(
            {"d": Dictionary(autoencoder(site, D, 64, TopK(k=4)))},
            TraineeSettings(objective=objective, **settings),
            steps=steps,
            batch=source.batch,
            seed=7,
            name=name,
        )
        for name, objective in objectives.items()
    ]
    begin = VectorBatch({site: found})
    log = train(trainees, source, begin=begin, settings=TrainSettings(log_every=10))
    return {trainee.name: trainee.dictionaries["d"] for trainee in trainees}, log


def test_training_lowers_kl_and_the_downstream_term_keeps_the_stream():
    subject = tiny_llama()
    pure = EndToEnd(downstream_sites=LATER)
    kept = EndToEnd(downstream=3.0, downstream_sites=LATER)
    dictionaries, log = trained(subject, {"pure": pure, "kept": kept})
    start = [line for line in log if line["step"] == 10]
    end = {line["trainee"]: line for line in log if line["step"] == STEPS}
    for line in start:
        assert end[line["trainee"]]["kl"] < 0.7 * line["kl"]
    held = batch_of(subject, tiny_rows(48, 12, seed=5), LATER)
    control = {"pure": noisy(dictionaries["pure"].spec, 4)}
    with torch.no_grad():
        scores = {k: loss_of(pure, {"d": d}, held).log for k, d in dictionaries.items()}
        random = loss_of(pure, {"d": control["pure"]}, held).log
    assert scores["kept"]["downstream"] < 0.9 * scores["pure"]["downstream"]
    assert max(s["kl"] for s in scores.values()) < 0.6 * random["kl"]


def cross_layer(*sites: str) -> dict[str, Dictionary]:
    """Members that write their own layer's MLP output and all later ones, offset in the first."""
    ports = [Port(site=site, width=D) for site in sites]
    members = {}
    for layer, port in enumerate(ports):
        read = Port(site=port.site.replace("out", "in"), width=D)
        spec = DictionarySpec(
            reads=(read,), writes=ports[layer:], n_latents=40, activation=ReLU()
        )  # fmt: skip
        members[f"L{layer}"] = noisy(spec, layer)
    for name, mask in offset_masks(members).items():
        members[name].b_dec.data.mul_(mask)
    return members


def test_mixed_steps_of_a_cross_layer_set_write_a_site_whole_or_not_at_all():
    subject, rows = tiny_llama(), tiny_rows(2)
    sites = ["blocks.0.mlp.out", "blocks.1.mlp.out"]
    members, batch = cross_layer(*sites), batch_of(subject, rows)
    capture = [*sites, "blocks.0.mlp.in", "blocks.1.mlp.in"]
    drawn = set()
    for step in range(16):
        objective = EndToEnd(mixed=1.0)
        watched = loss_of(objective, members, batch, step).watched
        with torch.no_grad():
            on = objective._drawn(members, step)
            run = Splice(members, on).run(subject, rows, capture=capture).sites
            own = subject.run(rows, capture=sites, replace={s: run[s] for s in on}).sites
            vectors = {site: rows[:, 1:].flatten(0, 1) for site, rows in run.items()}
            whole = run_members(members, vectors).written
        for site in sites:
            wanted = whole[site] if site in on else own[site][:, 1:].flatten(0, 1)
            torch.testing.assert_close(vectors[site], wanted)
        drawn.add(frozenset(on))
        # The second member writes the second site alone; both write where both belong.
        assert set(watched) == ({"L0"} if on == {sites[0]} else {"L0", "L1"})
        for name, seen in watched.items():
            others = [m for m in members if m != name]
            at = members[name].spec.writes[-1].site
            if at == sites[1]:
                left = sum(members[m](vectors[f"blocks.{m[1]}.mlp.in"])[:, -D:] for m in others)
                network = subject.run(
                    rows, capture=[at], replace={s: run[s] for s in on if s != at}
                ).sites[at]
                torch.testing.assert_close(seen.y[:, -D:], network[:, 1:].flatten(0, 1) - left)
    assert drawn == {frozenset(sites[:1]), frozenset(sites[1:]), frozenset(sites)}
