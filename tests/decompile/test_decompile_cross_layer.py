"""Cross-layer transcoders for all MLPs: the sum they are, the start they have, and tuning."""

import pytest
import torch
from tiny_subject import START, bump, tiny_llama, tiny_rows

from unweave.decompile.cross_layer.network import CrossLayerNetwork
from unweave.decompile.cross_layer.start import members_from_parts
from unweave.decompile.cross_layer.tune import CrossLayerSettings, tune_cross_layer
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.cross_layer import offset_masks, reconstruct
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.pipeline.fitting import part_specs
from unweave.training.checkpoint import Checkpoints

ROWS = tiny_rows(24, 12, seed=4)
SETTINGS = CrossLayerSettings(tokens=8 * 48, rows=4, lr=5e-3)


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture(scope="module")
def parts(subject):
    """Random parts for everything, with the subject's own constants at the start token."""
    specs = part_specs(subject, latents=2, k_mlp=6, k_attention=6, k_query=6, k_key=6, skip=False)
    first = torch.full((1, 1), START)
    starts = subject.run(first, capture=[spec.output_site for spec in specs]).sites
    made = {}
    for i, spec in enumerate(specs):
        made[spec.name] = bump(Part(spec), 0.2, seed=i)
        made[spec.name].start_output.copy_(starts[spec.output_site].flatten())
    return made


def attention_of(parts):
    return {name: part for name, part in parts.items() if not name.endswith("mlp")}


def network_of(subject, parts, *, cross=0.0):
    """A fresh network from copies of the parts; `cross` fills the decoders to later layers."""
    copies = {}
    for name, part in parts.items():
        copies[name] = Part(part.spec)
        copies[name].load_state_dict(part.state_dict())
    members = members_from_parts(subject, copies)
    with torch.no_grad():
        later = members["L0.mlp"].W_dec[:, 32:]
        later.copy_(cross * torch.randn(later.shape, generator=torch.Generator().manual_seed(7)))
    return CrossLayerNetwork(subject, members, attention_of(copies))


def test_it_starts_as_the_transcoders_of_single_layers(subject, parts):
    wanted = DecompiledNetwork(subject, parts)
    with torch.no_grad():
        expected = wanted(ROWS)
        found = network_of(subject, parts)(ROWS)
        other = network_of(subject, parts, cross=0.3)(ROWS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (other - expected).abs().max() > 0.05  # the later decoders are in use


def test_each_mlp_gives_the_sum_of_what_members_write_there(subject, parts):
    network = network_of(subject, parts, cross=0.3)
    sites = tuple(f"blocks.{i}.mlp.{side}" for i in range(2) for side in ("in", "out"))
    with torch.no_grad():
        seen = network.run(ROWS, capture=sites).sites
    vectors = {site: seen[site][:, 1:].flatten(0, 1) for site in sites}
    written = reconstruct(network.members_by_name, vectors)
    for site, sum_of_writes in written.items():
        torch.testing.assert_close(vectors[site], sum_of_writes, atol=1e-5, rtol=1e-4)
    first = subject.run(torch.full((1, 1), START), capture=list(sites)).sites
    for site in sites[1::2]:
        assert torch.allclose(seen[site][:, 0], first[site][:, 0], atol=1e-5)
    assert network.active()["L0.mlp"] <= 6


def test_tuning_lowers_the_kl_and_keeps_a_sites_offset_in_one_member(subject, parts):
    network = network_of(subject, parts)
    log = tune_cross_layer(network, subject, ROWS, seed=1, settings=SETTINGS)
    assert len(log) == 8

    def kl(one):
        with torch.no_grad():
            q = one(ROWS[:8]).log_softmax(-1)
            p = subject.run(ROWS[:8]).logits.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)[:, 1:].mean().item()

    assert kl(network) < 0.95 * kl(network_of(subject, parts))
    members = network.members_by_name
    assert members["L0.mlp"].W_dec[:, 32:].abs().max() > 0
    for name, mask in offset_masks(members).items():
        assert members[name].b_dec[mask == 0].count_nonzero() == 0


def test_it_comes_back_from_disk_as_it_was(subject, parts, tmp_path):
    network = network_of(subject, parts, cross=0.3)
    network.save(tmp_path / "network")
    again = CrossLayerNetwork.load(tmp_path / "network", subject)
    with torch.no_grad():
        assert torch.equal(again(ROWS), network(ROWS))


def test_a_cut_run_ends_in_the_same_bits(subject, parts, tmp_path):
    whole, again = network_of(subject, parts), network_of(subject, parts)
    tune_cross_layer(whole, subject, ROWS, seed=1, settings=SETTINGS)

    class Cut(Checkpoints):
        def offer(self, done, metrics, state):
            super().offer(done, metrics, state)
            if done == 4:
                raise KeyboardInterrupt

    cut = network_of(subject, parts)
    with pytest.raises(KeyboardInterrupt):
        tune_cross_layer(
            cut, subject, ROWS, seed=1, settings=SETTINGS,
            checkpoints=Cut(tmp_path, seconds=0.0),
        )  # fmt: skip
    tune_cross_layer(
        again, subject, ROWS, seed=1, settings=SETTINGS,
        checkpoints=Checkpoints(tmp_path, seconds=0.0),
    )  # fmt: skip
    with torch.no_grad():
        assert torch.equal(again(ROWS), whole(ROWS))


def test_what_does_not_fit_is_refused(subject, parts):
    with pytest.raises(UserError, match=r"no part L1\.mlp"):
        members_from_parts(subject, {n: p for n, p in parts.items() if n != "L1.mlp"})
    members = members_from_parts(subject, parts)
    with pytest.raises(UserError, match="one for each"):
        CrossLayerNetwork(subject, {"L0.mlp": members["L0.mlp"]}, {})
