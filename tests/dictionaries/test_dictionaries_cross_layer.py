"""Sets of dictionaries whose writes add up: by hand, on disk, and from a subject's own sites."""

import pytest
import torch
from tiny_subject import tiny_llama

from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.cross_layer import (
    cross_layer_specs,
    load_cross_layer,
    mlp_ports,
    offset_masks,
    reconstruct,
    save_cross_layer,
    site_fvu,
)
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.errors import UserError

READS = [Port(site=f"in{i}", width=3 + i, scale=0.5 + i) for i in range(3)]
WRITES = [Port(site=f"out{i}", width=4, scale=2.0 + i) for i in range(3)]


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def members(activation=None):
    specs = cross_layer_specs(READS, WRITES, 10, activation or TopK(k=2))
    made = {name: Dictionary(spec) for name, spec in specs.items()}
    with torch.no_grad():
        for seed, member in enumerate(made.values()):
            for weight in member.parameters():
                weight.copy_(drawn(*weight.shape, seed=seed))
    return made


VECTORS = {p.site: drawn(7, p.width, seed=20 + i) for i, p in enumerate(READS + WRITES)}


def test_the_sum_of_what_is_written_by_hand():
    made = members(ReLU())
    want = {f"out{i}": torch.zeros(7, 4) for i in range(3)}
    for layer, member in enumerate(made.values()):
        x = VECTORS[f"in{layer}"] * (0.5 + layer)
        code = torch.relu(x @ member.W_enc.T + member.b_enc)
        for place, m in enumerate(range(layer, 3)):
            columns = slice(4 * place, 4 * place + 4)
            part = code @ member.W_dec[:, columns] + member.b_dec[columns]
            want[f"out{m}"] = want[f"out{m}"] + part.detach() / (2.0 + m)
    got = reconstruct(made, VECTORS)
    assert list(got) == ["out0", "out1", "out2"]
    for site, y in want.items():
        torch.testing.assert_close(got[site], y)


def test_fvu_is_zero_for_what_is_written_and_one_for_the_mean():
    made = members()
    assert max(site_fvu(made, {**VECTORS, **reconstruct(made, VECTORS)}).values()) < 1e-10
    with torch.no_grad():
        for name, member in made.items():
            member.W_dec.zero_()
            y = torch.cat([VECTORS[p.site].mean(0) * p.scale for p in member.spec.writes])
            member.b_dec.copy_(y * offset_masks(made)[name])
    for share in site_fvu(made, VECTORS).values():
        assert share == pytest.approx(1.0, abs=1e-5)


def test_a_set_is_read_as_it_was_written(tmp_path):
    made = members()
    save_cross_layer(made, tmp_path / "clt")
    back = load_cross_layer(tmp_path / "clt")
    assert list(back) == ["L0.mlp", "L1.mlp", "L2.mlp"]
    for name, member in made.items():
        assert back[name].spec == member.spec
    for site, y in reconstruct(made, VECTORS).items():
        assert torch.equal(reconstruct(back, VECTORS)[site], y)


def test_a_damaged_set_is_told(tmp_path):
    with pytest.raises(UserError, match=r"No set\.json"):
        load_cross_layer(tmp_path)
    (tmp_path / "set.json").write_text('{"members": ["../elsewhere"]}')
    with pytest.raises(UserError, match="lists no members"):
        load_cross_layer(tmp_path)
    (tmp_path / "set.json").write_text('{"members": ["L0.mlp"]}')
    with pytest.raises(UserError, match=r"spec\.json"):
        load_cross_layer(tmp_path)


def test_the_ports_of_a_subject_are_its_mlps():
    reads, writes = mlp_ports(tiny_llama())
    assert [p.site for p in reads] == ["blocks.0.mlp.in", "blocks.1.mlp.in"]
    assert [p.site for p in writes] == ["blocks.0.mlp.out", "blocks.1.mlp.out"]
    assert {p.width for p in reads + writes} == {32}
    first, second = cross_layer_specs(reads, writes, 8, TopK(k=2)).values()
    assert [p.site for p in first.writes] == ["blocks.0.mlp.out", "blocks.1.mlp.out"]
    assert [p.site for p in second.writes] == ["blocks.1.mlp.out"]
    assert first.decoder == "free"


def test_a_site_that_nobody_names_first_belongs_to_its_first_writer():
    def spec(*sites):
        ports = tuple(Port(site=site, width=2) for site in sites)
        return DictionarySpec(reads=ports[:1], writes=ports, n_latents=4, activation=TopK(k=1))

    made = {"a": Dictionary(spec("x", "z")), "b": Dictionary(spec("y", "z"))}
    masks = {name: mask.tolist() for name, mask in offset_masks(made).items()}
    assert masks == {"a": [1, 1, 1, 1], "b": [1, 1, 0, 0]}
    alone = {"a": made["a"], "b": Dictionary(spec("y", "w"))}
    assert offset_masks(alone) == {}
