"""Whether an explicit network is made of nothing but sums, relus, scores and one scale a norm."""

from unweave.decompile.explicit.network import ExplicitNetwork
from unweave.decompile.explicit.writers import POSITIONS
from unweave.errors import UserError


def refuse_unless_plain(network: ExplicitNetwork, *, gates: bool = False) -> None:
    """Refuse what code that runs tables of edges by itself would get wrong without a word.

    `gates` says that it knows gated latents.

    Raises:
        UserError: a part is missing or gated, positions write, what blocks write passes a norm,
            logits or scores are bent, heads are normed, or a layer sees a window alone.
    """
    weights, layers = network.weights, range(network.layers)
    rules = [one.rule for one in network.attention]
    unknown = {
        "makes some patterns without sparse queries and keys": any(
            f"L{layer}.{kind}" not in network.k for layer in layers for kind in "qk"
        ),
        "has gated latents": bool(weights.gates) and not gates,
        "has learned positions": POSITIONS in weights.writers.first,
        "passes what its blocks write through another norm": bool(weights.posts),
        "bends its logits": network.logit_cap is not None,
        "bends its scores": any(rule.cap is not None for rule in rules),
        "norms its heads": any(rule.q_gain is not None for rule in rules),
        "looks through windows": any(
            rule.window is not None and rule.window < network.context for rule in rules
        ),
    }
    for what, true in unknown.items():
        if true:
            raise UserError(
                f"the decompiled network of {network.name} {what}, which a network of edges does "
                "not know; run it with ExplicitNetwork"
            )
