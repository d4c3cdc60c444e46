"""Where parts start: exact where that is possible, better than chance where it is not."""

import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.dictionaries.start import start_linear, start_mlp
from unweave.subject import MLPWeights


def mlp_spec(d=16, **changes):
    plain = {
        "name": "L0.mlp", "input_site": "blocks.0.mlp.in", "output_site": "blocks.0.mlp.out",
        "d_in": d, "d_out": d, "n_latents": 64, "k": 8,
    }  # fmt: skip
    return PartSpec(**plain | changes)


def relu_mlp(neurons=24, d=16, seed=0) -> MLPWeights:
    """Neurons whose readers, biases and writers differ in size by far."""
    g = torch.Generator().manual_seed(seed)
    size = torch.linspace(0.2, 3.0, neurons)[:, None]
    return MLPWeights(
        W_in=torch.randn(neurons, d, generator=g) * size / d**0.5,
        b_in=0.3 * torch.randn(neurons, generator=g),
        W_gate=None,
        W_out=torch.randn(neurons, d, generator=g) * size.flip(0),
        b_out=torch.randn(d, generator=g),
        activation="relu",
    )


def gated_mlp(neurons=48, d=16, seed=0, gate_bias=None) -> MLPWeights:
    g = torch.Generator().manual_seed(seed)
    return MLPWeights(
        W_in=torch.randn(neurons, d, generator=g) / d**0.5,
        b_in=None,
        W_gate=torch.randn(neurons, d, generator=g) / d**0.5,
        W_out=torch.randn(neurons, d, generator=g),
        b_out=None,
        activation="silu",
        b_gate=gate_bias,
    )


def apply(w: MLPWeights, x):
    up = x @ w.W_in.T + (0 if w.b_in is None else w.b_in)
    if w.W_gate is None:
        mid = up.relu()
    else:
        mid = torch.nn.functional.silu(x @ w.W_gate.T + (0 if w.b_gate is None else w.b_gate)) * up
    return mid @ w.W_out + (0 if w.b_out is None else w.b_out)


def vectors(count=3000, d=16, seed=5):
    g = torch.Generator().manual_seed(seed)
    return 4.0 * torch.randn(count, d, generator=g) @ (torch.randn(d, d, generator=g) / d**0.5)


def fvu(part, x, y):
    with torch.no_grad():
        return ((part(x) - y).square().sum() / (y - y.mean(0)).square().sum()).item()


def random_start(spec: PartSpec, like: Part, y) -> Part:
    """Random directions with the scales, norms and offset of another start."""
    part = Part(like.spec)
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name in ("W_enc", "W_dec"):
            own = getattr(like, name)
            drawn = torch.randn(own.shape, generator=g)
            getattr(part, name).copy_(drawn / drawn.norm(dim=1, keepdim=True))
            getattr(part, name).mul_(own.norm(dim=1, keepdim=True))
        part.b_dec.copy_(y.mean(0) * like.spec.output_scale)
    return part


def test_a_relu_mlp_is_reproduced_exactly_when_all_its_neurons_fit():
    w, x, new = relu_mlp(), vectors(), vectors(seed=6)
    spec = mlp_spec(n_latents=24, k=24)
    part = start_mlp(spec, w, x, apply(w, x), seed=0)
    torch.testing.assert_close(part(new), apply(w, new), rtol=1e-3, atol=1e-3)
    assert fvu(part, new, apply(w, new)) < 1e-8


def test_the_neurons_that_write_most_are_taken_when_not_all_fit():
    w, x = relu_mlp(), vectors()
    kept = start_mlp(mlp_spec(n_latents=12, k=12), w, x, apply(w, x), seed=0)
    written = (x @ w.W_in.T + w.b_in).relu().mean(0) * w.W_out.norm(dim=1)
    wanted = w.W_out[written.topk(12).indices]
    cosine = torch.nn.functional.cosine_similarity(kept.W_dec[:, None], wanted[None], dim=-1)
    assert (cosine.max(dim=0).values > 0.9999).all()


def test_start_decoders_are_unit_vectors_and_scales_are_those_of_the_data():
    w, x = gated_mlp(), vectors()
    y = apply(w, x)
    part = start_mlp(mlp_spec(n_latents=160), w, x, y, seed=0)
    torch.testing.assert_close(part.W_dec.norm(dim=1), torch.ones(160))
    for vecs, scale in ((x, part.spec.input_scale), (y, part.spec.output_scale)):
        torch.testing.assert_close((vecs * scale).norm(dim=1).median(), torch.tensor(4.0))


def test_a_gated_mlp_starts_better_than_random_directions():
    w, x, new = gated_mlp(), vectors(), vectors(seed=6)
    spec = mlp_spec(n_latents=128, k=32)
    part = start_mlp(spec, w, x, apply(w, x), seed=0)
    started = fvu(part, new, apply(w, new))
    control = fvu(random_start(spec, part, apply(w, x)), new, apply(w, new))
    assert started < 0.75
    assert control > 1.0


def test_the_bias_of_a_gate_counts():
    w = gated_mlp(gate_bias=torch.linspace(-4, 4, 48))
    x, new = vectors(), vectors(seed=6)
    spec = mlp_spec(n_latents=96, k=32)
    started = fvu(start_mlp(spec, w, x, apply(w, x), seed=0), new, apply(w, new))
    blind = MLPWeights(**{**vars(w), "b_gate": None})
    assert started < 0.9 * fvu(start_mlp(spec, blind, x, apply(w, x), seed=0), new, apply(w, new))


def test_a_few_enormous_vectors_do_not_decide_the_start():
    w, x, new = gated_mlp(), vectors(), vectors(seed=6)
    x[:10] *= 200
    y = apply(w, x)
    spec = mlp_spec(n_latents=128, k=32)
    assert fvu(start_mlp(spec, w, x, y, seed=0), new, apply(w, new)) < 0.8


def test_the_skip_recovers_a_planted_linear_map():
    g = torch.Generator().manual_seed(0)
    A, b = torch.randn(16, 16, generator=g), torch.randn(16, generator=g)
    x, new = torch.randn(3000, 16, generator=g) + 1, torch.randn(500, 16, generator=g) + 1
    y = x @ A.T + b
    silent = MLPWeights(
        W_in=torch.randn(8, 16), b_in=None, W_gate=None, W_out=torch.zeros(8, 16), b_out=None,
        activation="relu",
    )  # fmt: skip
    part = start_mlp(mlp_spec(n_latents=8, k=2, skip=True), silent, x, y, seed=0)
    found = part.W_skip * part.spec.input_scale / part.spec.output_scale
    assert (found - A).norm() / A.norm() < 0.05  # ridge shrinks a little
    assert fvu(part, new, new @ A.T + b) < 0.001


def test_attention_starts_better_than_its_mean_and_than_random_directions():
    subject = tiny_llama()
    sites = ["blocks.1.attn.z", "blocks.1.attn.out"]
    run = subject.run(tiny_rows(120), capture=sites, logits=False)
    z, out = (run.sites[site][:, 1:].flatten(0, 1) for site in sites)
    half = len(z) // 2
    spec = PartSpec(
        name="L1.attn", input_site=sites[0], output_site=sites[1], d_in=32, d_out=32,
        n_latents=128, k=16, heads=4,
    )  # fmt: skip
    part = start_linear(
        spec, subject.attention_weights(1).W_O.flatten(0, 1), z[:half], out[:half], seed=0
    )
    started = fvu(part, z[half:], out[half:])
    control = fvu(random_start(spec, part, out[:half]), z[half:], out[half:])
    assert started < 0.6
    assert control > 0.95  # the mean has 1.0


def test_an_attention_latent_writes_what_its_head_makes_of_what_it_reads():
    subject = tiny_llama()
    z = torch.randn(500, 32)
    w = subject.attention_weights(0)
    spec = PartSpec(
        name="L0.attn", input_site="blocks.0.attn.z", output_site="blocks.0.attn.out", d_in=32,
        d_out=32, n_latents=40, k=4, heads=4,
    )  # fmt: skip
    part = start_linear(spec, w.W_O.flatten(0, 1), z, z @ w.W_O.flatten(0, 1), seed=0)
    for latent in range(40):
        writes = part.W_enc[latent] @ w.W_O[latent // 10]
        cosine = torch.nn.functional.cosine_similarity(writes, part.W_dec[latent], dim=0)
        assert cosine > 0.9999


def test_a_start_depends_on_nothing_but_its_arguments():
    w, x = gated_mlp(), vectors()
    y = apply(w, x)
    one, two, other = (start_mlp(mlp_spec(n_latents=160), w, x, y, seed=s) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.W_enc, other.W_enc)


def test_silent_sites_do_not_break_the_start():
    w = MLPWeights(
        W_in=torch.zeros(24, 16), b_in=None, W_gate=None, W_out=torch.zeros(24, 16), b_out=None,
        activation="relu",
    )  # fmt: skip
    zeros = torch.zeros(100, 16)
    part = start_mlp(mlp_spec(n_latents=32, k=4, skip=True), w, zeros, zeros, seed=0)
    for name, tensor in part.state_dict().items():
        assert torch.isfinite(tensor).all(), name
    torch.testing.assert_close(part(zeros), zeros)
