"""Multiply-adds a token, by product: of the original, and of both executions of what replaces it.

With S positions looked at, d the stream's width, H heads over G key heads of width e, a vocabulary
of V, and parts of n latents of which k are on:

    original    d (H + 2G) e + H e d     projections      2 S H e     scores, mixing
                2 or 3 d d_mlp           MLP              d V         unembedding
    factored    n d_read + k d_out       a part, encoder and decoder (n twice where gated), in the
                                         place of what it replaces; the rest is the original's
    explicit    on n                     reads: all that writes and is on, times readers
                on w + w + w w + w       squares: w = k + 2 writers join those that are on
                4 m F H e/2 / Q          products of m query features (min(F_Q, m Q) for Q queries
                                         at once) and F key features
                m F H e                  what each key feature would add to this query's scores
                S (w_k + 1) H e          its sum at S keys, w_k features each, and their angles
                S n                      what attention latents read there, moved
                on V                     logits

`on` is 1 for the token, 1 where positions are learned, and k + 2 for each part that has written.
F, the distinct key features of S keys, is at most min(F_K, S w_k), which is what is counted. Norms,
activations, softmax and choosing the k largest are no products and not counted.
"""

from collections.abc import Mapping

from unweave.decompile.explicit.pairs import QUERIES_AT_ONCE
from unweave.decompile.explicit.writers import CONSTANTS
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import KINDS
from unweave.subject import Subject

Work = dict[str, float]
"""Multiply-adds a token, by what they are for."""


def original_work(subject: Subject, seen: int) -> Work:
    """Of the subject, for a token that looks at `seen` positions, its own among them."""
    d, e, heads = subject.d_model, subject.d_head, subject.n_heads
    kinds = {
        "queries": d * heads * e,
        "keys": d * subject.n_kv_heads * e,
        "values": d * subject.n_kv_heads * e,
        "scores": seen * heads * e,
        "mixing": seen * heads * e,
        "attention output": heads * e * d,
        "MLP": (2 + (subject.mlp_weights(0).W_gate is not None)) * d * subject.d_mlp,
    }
    layers = {kind: float(count * subject.n_layers) for kind, count in kinds.items()}
    return layers | {"unembedding": float(d * subject.vocab_size)}


REPLACED = {"q": "queries", "k": "keys", "attn": "attention output", "mlp": "MLP"}
"""What of the original a part of each kind replaces."""


def factored_work(subject: Subject, parts: Mapping[str, Part], seen: int) -> Work:
    """Of the network with parts in place, run through their encoders and decoders.

    Where a subject has one projection for queries, keys and values (GPT-2, GPT-NeoX), all of it
    still runs for the sake of the values.
    """
    work = original_work(subject, seen)
    fused = subject.place("blocks.0.attn.q").module == subject.place("blocks.0.attn.v").module
    encoders = decoders = 0.0
    for name, part in parts.items():
        spec, kind = part.spec, REPLACED[name.partition(".")[2]]
        if not (fused and kind in ("queries", "keys")):
            work[kind] -= original_work(subject, seen)[kind] / subject.n_layers
        encoders += spec.n_latents * spec.d_read * (1 + spec.gated)
        decoders += spec.k * spec.d_out + spec.skip * spec.d_in * spec.d_out
    return work | {"encoders": encoders, "decoders": decoders}


def explicit_work(
    subject: Subject, parts: Mapping[str, Part], seen: int, *, queries: int = 1
) -> Work:
    """Of the network on virtual weights, where `queries` of a row's positions are run at once.

    Every part must be there, queries and keys too, and heads have no norms of their own.
    """
    work = dict.fromkeys(("reads", "squares", "products", "adds", "sums", "mixing"), 0.0)
    queries = min(queries, QUERIES_AT_ONCE)
    on = 1
    if subject.positions() is not None:
        work["squares"] += _square(1, 1)
        on += 1
    for layer in range(subject.n_layers):
        before = on
        for kind in KINDS:
            spec = parts[f"L{layer}.{kind}"].spec
            reads = before if kind != "mlp" or subject.geometry.parallel else on
            work["reads"] += reads * spec.n_latents * (1 + spec.gated)
            if kind in ("attn", "mlp"):
                work["squares"] += _square(on, spec.k + CONSTANTS)
                work["squares"] += _own(spec.k + CONSTANTS) * subject.norms_writes
                on += spec.k + CONSTANTS
            if kind == "attn":
                work["mixing"] += seen * spec.n_latents
        q, k = (parts[f"L{layer}.{kind}"].spec for kind in "qk")
        m, w_k, e = q.k + CONSTANTS, k.k + CONSTANTS, subject.n_heads * subject.d_head
        asking = min(q.n_latents + CONSTANTS, m * queries)
        asked = min(k.n_latents + CONSTANTS, w_k * seen)
        work["products"] += 2 * asking * asked * e / queries
        work["adds"] += m * asked * e
        work["sums"] += seen * (w_k + 1) * e
    return work | {"logits": float(on * subject.vocab_size)}


def _square(on: int, more: int) -> int:
    """|a + b|^2 from |a|^2."""
    return on * more + more + _own(more)


def _own(more: int) -> int:
    return more * more + more
