"""The parts of a decompiled network, as dictionaries that any format can take.

A part that reads heads one by one becomes a dictionary whose encoder rows are zero outside their
head. What a part stores for position 0 (`start_output`) is not kept: a dictionary knows no
positions.
"""

from pathlib import Path

import torch

from unweave.artifact.reading import json_in
from unweave.dictionaries.activation.topk import AbsTopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import load_dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.dictionaries.encoder.glu import GLU
from unweave.dictionaries.formats import configuration as conf
from unweave.dictionaries.formats.plain_weights import PlainWeights
from unweave.dictionaries.part import Part


def read(folder: Path, name: str) -> Dictionary:
    """A dictionary or a part, whichever `spec.json` describes."""
    path = folder / "spec.json"
    content = json_in(path)
    if not isinstance(content, dict) or "input_site" not in content:
        return load_dictionary(folder)
    part = Part.load(folder)
    spec = part.spec
    if spec.gated:
        return _gated(part)
    W_enc = torch.zeros(spec.heads, spec.n_latents // spec.heads, spec.heads, spec.d_read)
    for head, rows in enumerate(part.W_enc.detach().chunk(spec.heads)):
        W_enc[head, :, head] = rows
    skip = None if part.W_skip is None else part.W_skip.detach()
    weights = PlainWeights(
        W_enc.reshape(spec.n_latents, spec.d_in),
        part.b_enc.detach(),
        part.W_dec.detach(),
        part.b_dec.detach(),
        skip,
    )
    return conf.built(
        path,
        weights,
        name=spec.name,
        reads=({"site": spec.input_site, "width": spec.d_in, "scale": spec.input_scale},),
        writes=({"site": spec.output_site, "width": spec.d_out, "scale": spec.output_scale},),
        activation={"kind": "topk", "k": spec.k},
    )


def _gated(part: Part) -> Dictionary:
    """The same function as a dictionary with a GLU encoder."""
    spec = part.spec
    dictionary = Dictionary(
        DictionarySpec(
            name=spec.name,
            reads=(Port(site=spec.input_site, width=spec.d_in, scale=spec.input_scale),),
            writes=(Port(site=spec.output_site, width=spec.d_out, scale=spec.output_scale),),
            n_latents=spec.n_latents,
            activation=AbsTopK(k=spec.k),
            encoder=GLU(),
            decoder="free",
        )
    )
    weights = {name: tensor.detach() for name, tensor in part.named_parameters()}
    encoder = {f"encoder.{n}": weights[n] for n in ("W_enc", "b_enc", "W_gate", "b_gate")}
    decoder = {n: weights[n] for n in ("W_dec", "b_dec")}
    dictionary.load_state_dict(dictionary.state_dict() | encoder | decoder)
    return dictionary
