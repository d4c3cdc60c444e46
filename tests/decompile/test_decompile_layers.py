"""Layers of features: exact where nothing is lost, without a stream, saved and loaded whole."""

import pytest
import torch
from test_decompile_explicit import WIDTH, NoStream, random_parts, subject_of
from tiny_subject import START, tiny_rows

from unweave.decompile.explicit.network import ExplicitNetwork
from unweave.decompile.layers.codes import code_stream, decode_stream
from unweave.decompile.layers.network import LayerNetwork
from unweave.decompile.layers.start import start_network, start_stream
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError


def lossless(subject, *, k=None):
    """After every block, each coordinate of the stream as two latents, x_i and -x_i."""
    made, width = [], subject.d_model
    for layer in range(subject.n_layers):
        active = TopK(k=k or 2 * width)
        dictionary = Dictionary(autoencoder(f"blocks.{layer}.resid_post", width, 2 * width, active))
        signed = torch.cat([torch.eye(width), -torch.eye(width)])
        with torch.no_grad():
            dictionary.W_enc.copy_(signed)
            dictionary.W_dec.copy_(signed)
        made.append(dictionary.eval())
    return made


@pytest.fixture(scope="module")
def subject():
    return subject_of()


@pytest.fixture(scope="module")
def parts(subject):
    """Random parts whose constants at the start token are the subject's own."""
    found = random_parts(subject)
    first = torch.tensor([[START]])
    sites = [part.spec.output_site for part in found.values()]
    starts = subject.run(first, capture=sites).sites
    for part in found.values():
        part.start_output.copy_(starts[part.spec.output_site].flatten())
    return found


def test_parts_with_lossless_autoencoders_are_a_network_of_layers(subject, parts):
    rows = tiny_rows(3, 16)
    wanted = ExplicitNetwork(subject, parts)(rows)
    network = start_network(subject, lossless(subject), parts)
    with torch.no_grad():
        found = network(rows).logits
        explicit = network(rows, explicit=True).logits
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(explicit, found, atol=2e-4, rtol=1e-3)
    # Autoencoders that lose much make another network.
    lossy = start_network(subject, lossless(subject, k=8), parts)
    with torch.no_grad():
        assert (lossy(rows).logits - wanted).abs().max() > 0.1


def test_features_after_each_block_are_those_of_the_spliced_stream(subject, parts):
    """With the subject's own patterns given, and read as the codes of its own stream."""
    rows, dictionaries = tiny_rows(2, 12), lossless(subject)
    network = start_network(subject, dictionaries, parts)
    sites = [f"blocks.{layer}.resid_post" for layer in range(2)]
    looks = [f"blocks.{layer}.attn.pattern" for layer in range(2)]
    placed = DecompiledNetwork(subject, {n: p for n, p in parts.items() if n[-1] not in "qk"})
    with torch.no_grad():
        seen = placed.subject.run(rows, capture=[*sites, *looks]).sites
        run = network(rows, patterns=[seen[site] for site in looks])
    for layer, site in enumerate(sites):
        stream = seen[site]
        assert torch.allclose(
            run.features[layer], code_stream(dictionaries[layer], stream), atol=1e-3
        )
        features, dictionary = run.features[layer], dictionaries[layer]
        assert torch.allclose(features, code_stream(dictionary, stream), atol=1e-3)
        decoded = decode_stream(dictionary, features, start_stream(subject, layer))
        assert torch.allclose(decoded, stream, atol=1e-3)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("form", ["matrix", "features"])
def test_no_vector_of_the_stream_exists_while_it_runs(subject, parts, form, skip):
    network = start_network(subject, lossless(subject, k=9), parts, form=form, skip=skip)
    rows = tiny_rows(2, 12)
    with NoStream(), torch.no_grad():
        network(rows, explicit=True)
    with pytest.raises(AssertionError, match="made"), NoStream():
        subject.run(rows)


def test_matrices_start_as_the_subjects_own_attention(subject, parts):
    """MLPs that write nothing: then plain matrices lose nothing but what the codes lose."""
    rows = tiny_rows(2, 12)
    network = start_network(subject, lossless(subject), {}, form="matrix")
    looks = [f"blocks.{layer}.attn.pattern" for layer in range(2)]
    nothing = {
        f"blocks.{layer}.mlp.out": torch.zeros(1, 1, WIDTH).expand(2, 12, -1) for layer in range(2)
    }

    def keep_first(site):
        # What stands at the start token holds the whole network's own output there.
        first = subject.run(rows, capture=[site]).sites[site][:, :1]
        return torch.cat([first, nothing[site][:, 1:]], 1)

    run = subject.run(rows, replace={site: keep_first(site) for site in nothing}, capture=looks)
    with torch.no_grad():
        found = network(rows, patterns=[run.sites[site] for site in looks]).logits
        wrong = network(rows, patterns=[run.sites[site].flip(1) for site in looks]).logits
    torch.testing.assert_close(found, run.logits, atol=2e-4, rtol=1e-3)
    assert (wrong - run.logits).abs().max() > 0.05


def test_it_comes_back_from_disk_as_it_was(subject, parts, tmp_path):
    network = start_network(subject, lossless(subject, k=9), parts)
    rows = tiny_rows(2, 12)
    network.save(tmp_path / "layers")
    again = LayerNetwork.load(tmp_path / "layers", subject)
    with torch.no_grad():
        assert torch.equal(again(rows).logits, network(rows).logits)
    with pytest.raises(UserError, match="other weights"):
        LayerNetwork.load(tmp_path / "layers", subject_of(seed=3))


def test_what_it_cannot_run_is_refused(subject, parts):
    own = start_network(subject, lossless(subject, k=9), {}, form="matrix")
    with pytest.raises(UserError, match="no query and key features"):
        own(tiny_rows(1, 8))
    rows = tiny_rows(1, 8)
    rows[:, 0] = 7
    with pytest.raises(UserError, match="start token"):
        start_network(subject, lossless(subject), parts)(rows)
    with pytest.raises(UserError, match="one of the stream after every block"):
        start_network(subject, lossless(subject)[:1], parts)
