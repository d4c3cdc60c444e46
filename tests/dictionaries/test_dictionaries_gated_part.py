"""Gated parts: the formula, its gradient, the disk, and a start that is the network's own MLP."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny_subject import family_subject, tiny_llama, tiny_rows
from torch.nn.functional import silu

from unweave.dictionaries.gated_start import start_gated
from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.errors import UserError


def spec(**changes):
    plain = {
        "name": "L0.mlp", "input_site": "blocks.0.mlp.in", "output_site": "blocks.0.mlp.out",
        "d_in": 8, "d_out": 6, "n_latents": 20, "k": 3, "input_scale": 0.37, "output_scale": 2.9,
        "gated": True,
    }  # fmt: skip
    return PartSpec(**plain | changes)


def random_part(**changes) -> Part:
    part = Part(spec(**changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in part.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return part


def test_the_output_is_the_docstrings_formula():
    part = random_part(k=5)
    x = torch.randn(40, 8)
    w, rows = part.state_dict(), 0.37 * x
    z = silu(rows @ w["W_gate"].T + w["b_gate"]) * (rows @ w["W_enc"].T + w["b_enc"]).relu()
    on = z.abs().topk(5, dim=1).indices
    f = torch.zeros_like(z).scatter(1, on, z.gather(1, on))
    torch.testing.assert_close(part(x), (f @ w["W_dec"] + w["b_dec"]) / 2.9, rtol=1e-4, atol=1e-5)
    code = part.encode(x)
    assert code.value.min() < 0 < code.value.max()
    dense = torch.zeros_like(z).scatter(1, code.latent, code.value)
    torch.testing.assert_close(dense, f, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_slope_of_output_and_code():
    part = random_part(k=6).double()
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in part.named_parameters()]

    def both(x, *weights):
        y, code = torch.func.functional_call(
            Run(part), {f"part.{n}": w for n, w in zip(names, weights, strict=True)}, (x,)
        )
        return y, code.square().sum(1)

    assert torch.autograd.gradcheck(both, (x, *part.parameters()), eps=1e-7, atol=1e-5)


class Run(torch.nn.Module):
    """A part's `run` as a module's forward."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        y, code = self.part.run(x)
        return y, code.value


def test_a_saved_part_comes_back_and_one_without_gates_is_refused(tmp_path):
    part = random_part()
    part.save(tmp_path)
    again = Part.load(tmp_path)
    x = torch.randn(9, 8)
    assert again.spec == part.spec
    assert torch.equal(again(x), part(x))
    path = tmp_path / "weights.safetensors"
    weights = load_file(path)
    save_file({n: t for n, t in weights.items() if n != "W_gate"}, path)
    with pytest.raises(UserError, match="W_gate"):
        Part.load(tmp_path)
    save_file(weights | {"b_gate": torch.zeros(19)}, path)
    with pytest.raises(UserError, match="b_gate"):
        Part.load(tmp_path)


def test_gates_with_a_skip_or_heads_are_refused():
    for changes in ({"skip": True}, {"heads": 2}):
        with pytest.raises(ValidationError, match="gated"):
            spec(**changes)


def vectors(subject, rows):
    sites = ["blocks.1.mlp.in", "blocks.1.mlp.out"]
    run = subject.run(rows, capture=sites, logits=False)
    return [run.sites[site][:, 1:].flatten(0, 1) for site in sites]


def started(subject, n_latents, k):
    sizes = {"d_in": subject.d_model, "d_out": subject.d_model, "n_latents": n_latents, "k": k}
    x, y = vectors(subject, tiny_rows(30))
    return start_gated(spec(**sizes), subject.mlp_weights(1), x, y, seed=0)


def gap(subject, part):
    x, y = vectors(subject, tiny_rows(20, seed=7))
    return ((part(x) - y).square().sum() / (y - y.mean(0)).square().sum()).item()


def test_all_signed_neurons_are_the_networks_own_mlp():
    subject = tiny_llama()
    n = 2 * subject.geometry.d_mlp
    assert gap(subject, started(subject, n, n)) < 1e-10
    assert gap(subject, started(subject, n, n // 2)) < 1e-10  # the other sign of each is zero
    assert gap(subject, started(subject, n, n // 6)) > 1e-3
    without_dips = started(subject, n, n)
    with torch.no_grad():
        without_dips.b_gate -= 0.1
    assert gap(subject, without_dips) > 1e-5


def test_more_latents_than_neurons_start_at_what_is_missing():
    subject = tiny_llama()
    few, n = 24, 2 * subject.geometry.d_mlp
    own, more = started(subject, n, few), started(subject, n + 40, few)
    torch.testing.assert_close(more.W_enc[:n], own.W_enc)
    torch.testing.assert_close(more.W_dec.norm(dim=1), torch.ones(n + 40))
    assert torch.all(more.b_gate[n:] == 1)


def test_an_mlp_without_gates_cannot_start_gated_latents():
    subject = family_subject("gpt2")
    with pytest.raises(UserError, match="not gated"):
        start_gated(
            spec(d_in=32, d_out=32), subject.mlp_weights(1), torch.randn(50, 32),
            torch.randn(50, 32), seed=0,
        )  # fmt: skip
