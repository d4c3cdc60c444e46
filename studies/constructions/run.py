"""Three constructions of a decompiled network, from the same parts, on the same axes.

    python studies/constructions/run.py SUBJECT STORE prepare
    python studies/constructions/run.py SUBJECT STORE ARM         # one of ARMS
    python studies/constructions/run.py SUBJECT STORE collect

SUBJECT: a folder with stories260K, or wren; text: its own. STORE keeps what is trained. `prepare`
fits sparse parts to every block and autoencoders to the stream after every block. Every arm then
starts from these and is trained as a whole on as many tokens. Arms write runs/SUBJECT.ARM.json
beside this file; `collect` makes numbers.json and constructions.png of them.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from measure import length, maps_between_layers, modes_of_layers, scored, streams_in_place
from torch import Tensor

from unweave.activations.workers import Workers
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.decompile.cross_layer.network import CrossLayerNetwork
from unweave.decompile.cross_layer.start import members_from_parts
from unweave.decompile.cross_layer.tune import CrossLayerSettings, tune_cross_layer
from unweave.decompile.layers.autoencoders import AutoencoderSettings, train_autoencoders
from unweave.decompile.layers.fit import InteractionSettings, fit_interactions
from unweave.decompile.layers.network import LayerNetwork
from unweave.decompile.layers.start import start_network
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import load_dictionary, save_dictionary
from unweave.dictionaries.part import Part
from unweave.pipeline.fitting import part_specs
from unweave.subject import Subject, load_subject, token_rows
from unweave.training.fit import fit_parts, load_parts, save_parts
from unweave.training.joint import JointSettings, tune_jointly
from unweave.training.local import LocalSettings
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.splice import RowScores, Variant, single_scores, splice_scores

HERE = Path(__file__).parent
ARMS = (
    "component",
    "cross_layer",
    "cross_layer-own_layer",
    "cross_layer-own_attention",
    "layers-features",
    "layers-features-no_skip",
    "layers-matrix",
    "layers-matrix-no_skip",
)
K = {"k_mlp": 16, "k_attention": 16, "k_query": 12, "k_key": 12}


def prepare(subject: Subject, store: Path, asked: argparse.Namespace) -> None:
    """Text, parts and autoencoders, on the same tokens."""
    rows = token_rows(subject, "self", tokens=asked.text, context=128, seed=0)
    save_tensors(store / "text.safetensors", {"train": rows.train, "heldout": rows.heldout})
    with Workers(1) as workers:
        autoencoders = AutoencoderSettings(
            k=asked.k, local_tokens=asked.local, tokens=asked.streams
        )
        for one in train_autoencoders(
            subject, rows.train, workers=workers, seed=1, settings=autoencoders
        ):
            save_dictionary(one, store / one.spec.name)
        specs = part_specs(subject, latents=8, skip=False, **K)
        local = rows.train[: asked.local // 128]
        parts, _ = fit_parts(
            subject, specs, local, workers=workers, seed=2, settings=LocalSettings(lr=5e-3)
        )
        save_parts(parts, store / "parts")


def kept(store: Path, subject: Subject) -> tuple[dict[str, Part], list[Dictionary]]:
    """What `prepare` made."""
    layers = range(subject.n_layers)
    return (
        load_parts(store / "parts"),
        [load_dictionary(store / f"L{n}.stream") for n in layers],
    )


def parameters(*modules: torch.nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for module in modules for p in module.parameters())


def component(subject: Subject, store: Path, text: dict[str, Tensor], tokens: int) -> dict:
    """A part for every block, the stream a sum of all that is written."""
    parts, held = kept(store, subject)[0], text["heldout"]
    before = scored(subject, held, DecompiledNetwork(subject, parts))
    with Workers(1) as workers:
        settings = JointSettings(tokens=tokens, micro_rows=8, micro_batches=1, lr=1e-3)
        tune_jointly(subject, parts, text["train"], workers=workers, seed=3, settings=settings)
        save_parts(parts, store / "component")
        placed = stand_ins(parts.values(), AtStart())
        clean = splice_scores(subject, {"clean": Variant(placed, "clean")}, held, workers=workers)
        alone = single_scores(subject, placed, held[:8], workers=workers)
    every = RowScores(*(np.mean(c, axis=0) for c in zip(*alone.values(), strict=True)))
    tuned = DecompiledNetwork(subject, parts)
    specs = [part.spec for part in parts.values()]
    return {
        "untrained": before,
        "propagated": scored(subject, held, tuned),
        "clean": mean_scores(clean["clean"]),
        "single": mean_scores(every),
        "length": length({s.name: (s.k, s.n_latents) for s in specs}),
        "parameters": parameters(*parts.values()),
        "edges": virtual_edges(subject, parts),
    }


def mean_scores(scores: RowScores) -> dict:
    """As `measure.summary`."""
    from measure import summary

    return summary(scores)


def virtual_edges(subject: Subject, parts: dict[str, Part]) -> int:
    """Weights between features that exist, each reader with all writers before it and logits."""
    writers, edges = subject.vocab_size, 0
    for layer in range(subject.n_layers):
        for kind in ("q", "k", "attn", "mlp"):
            n = parts[f"L{layer}.{kind}"].spec.n_latents
            edges += writers * n
            writers += n if kind in ("attn", "mlp") else 0
    return edges + writers * subject.vocab_size


def cross_layer(
    subject: Subject, store: Path, text: dict[str, Tensor], tokens: int, *, kind: str
) -> dict:
    """Cross-layer transcoders for all MLPs.

    With sparse attention; or the subject's own; or, as a control, with decoders to later layers
    held at nothing, which leaves transcoders of single layers under the same training.
    """
    attention = kind != "own_attention"
    parts, held = kept(store, subject)[0], text["heldout"]
    others = {n: p for n, p in parts.items() if attention and not n.endswith("mlp")}
    network = CrossLayerNetwork(subject, members_from_parts(subject, parts), others)
    before = scored(subject, held, network)
    held_at_nothing = 0
    if kind == "own_layer":
        for member in network.members_by_name.values():
            mask = torch.zeros_like(member.W_dec)
            mask[:, : subject.d_model] = 1
            member.W_dec.register_hook(mask.mul)
            held_at_nothing += int((mask == 0).sum())
    settings = CrossLayerSettings(tokens=tokens, rows=8, lr=1e-3)
    tune_cross_layer(network, subject, text["train"], seed=3, settings=settings)
    network.save(store / f"cross_layer-{kind}")
    members = network.members_by_name
    sizes = {n: (m.activation.k, m.n_latents) for n, m in members.items()}
    sizes |= {n: (p.spec.k, p.spec.n_latents) for n, p in others.items()}
    own = dict.fromkeys(others, False)
    return {
        "untrained": before,
        "propagated": scored(subject, held, network),
        "mlps_alone": scored(subject, held, lambda rows: network.run(rows, attention=own).logits),
        "length": length(sizes),
        "parameters": parameters(*members.values(), *others.values()) - held_at_nothing,
    }


def layers(
    subject: Subject, store: Path, text: dict[str, Tensor], tokens: int, *, form: str, skip: bool
) -> dict:
    """Features of one layer to those of the next."""
    parts, dictionaries = kept(store, subject)
    held, train = text["heldout"], text["train"]
    network = start_network(subject, dictionaries, parts, form=form, skip=skip)
    before = scored(subject, held, lambda rows: network(rows).logits)
    maps = {"start": maps_between_layers(subject, dictionaries, held, network, train[:64])}
    maps["ridge"] = maps_between_layers(subject, dictionaries, held, None, train[:128])
    settings = InteractionSettings(tokens=tokens, rows=8, lr=1e-3)
    log = fit_interactions(network, subject, dictionaries, train, seed=3, settings=settings)
    network.save(store / f"layers-{form}-{skip}")
    maps["trained"] = maps_between_layers(subject, dictionaries, held, network, train[:64])
    return {
        "untrained": before,
        **modes_of_layers(subject, network, dictionaries, held),
        "maps": maps,
        "length": length(active_of(network)),
        "parameters": parameters(network),
        "edges": sum(p.numel() for n, p in network.named_parameters() if ".W_" in f".{n}"),
        "log": log[:: max(1, len(log) // 20)],
    }


def active_of(network: LayerNetwork) -> dict[str, tuple[float, int]]:
    """Active features and how many there are, by kind."""
    found: dict[str, tuple[float, int]] = {}
    for n, block in enumerate(network.spec.blocks):
        found[f"L{n}.stream"] = (block.k_out, block.n_out)
        if block.values:
            found[f"L{n}.value"] = (block.k_value, block.values)
            found[f"L{n}.interaction"] = (block.k_interaction, block.interactions)
    for n, looks in enumerate(network.spec.patterns):
        found[f"L{n}.query"] = (looks.k_query, looks.queries)
        found[f"L{n}.key"] = (looks.k_key, looks.keys)
    return found


def run(subject: Subject, store: Path, arm: str, asked: argparse.Namespace) -> dict:
    """One arm, trained and measured."""
    text = load_tensors(store / "text.safetensors")
    text["heldout"] = text["heldout"][: asked.held // 128]
    begun, (kind, *rest) = time.process_time(), arm.split("-")
    if kind == "component":
        found = component(subject, store, text, asked.joint)
    elif kind == "cross_layer":
        found = cross_layer(subject, store, text, asked.joint, kind="-".join(rest))
    else:
        found = layers(subject, store, text, asked.joint, form=rest[0], skip="no_skip" not in rest)
    if arm == "layers-features":
        found["streams"] = streams_in_place(subject, kept(store, subject)[1], text["heldout"])
    settings = {"held": text["heldout"].numel(), "joint": asked.joint, "k": asked.k, **K}
    seconds = round(time.process_time() - begun)
    return {"arm": arm, "settings": settings, "cpu_seconds": seconds, **found}


def main() -> None:
    """Read the command line and do one thing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject")
    parser.add_argument("store", type=Path)
    parser.add_argument("what", choices=["prepare", *ARMS, "collect"])
    parser.add_argument("--text", type=int, default=820_000)
    parser.add_argument("--local", type=int, default=300_000)
    parser.add_argument("--streams", type=int, default=150_000)
    parser.add_argument("--joint", type=int, default=100_000)
    parser.add_argument("--held", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--name", default="stories260K")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "collect":
        from drawing import collect

        collect(HERE)
        return
    subject = load_subject(asked.subject, dtype="float32")
    if asked.what == "prepare":
        prepare(subject, asked.store, asked)
        return
    found = run(subject, asked.store, asked.what, asked)
    (HERE / "runs").mkdir(exist_ok=True)
    path = HERE / "runs" / f"{asked.name}.{asked.what}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
