"""What an edge is used for: its weight times how strongly its two ends are active together.

    use(w, t)^2 = V[w, t]^2 * E over positions of (a_w / s)^2 * need_t

`need_t` says how much it matters that reader t is right at a position:

    latents    one where t is active, `elsewhere` where it is not: there edges only keep t down
    attention  the same at the queries, carried to the sources along the pattern
    logits     p_t (1 - p_t), the diagonal of the Fisher information of the prediction

times, for each part, the mean square of the gradient that a prediction drawn from the network sends
to its active latents, so that uses of different parts are in the same coin.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.decompile.explicit.virtual import LOGITS
from unweave.decompile.sparse.edges import EdgeNetwork
from unweave.decompile.sparse.machine import Trace
from unweave.decompile.sparse.spec import norm_before, part_of
from unweave.dictionaries.kernels.sparse import product_dtype

ROWS_AT_ONCE = 16
"""Rows that are run at once."""


def joint_activity(
    network: EdgeNetwork, found: Trace, *, elsewhere: float
) -> dict[str, Float[Tensor, "writers readers"]]:
    """Mean over positions of (a_w / s)^2 need_t, a table for each reader."""
    out = {}
    for name in network.tables:
        need = _need(network, found, name, elsewhere)
        out[name] = meetings(network, found, name, need, power=2)
    return out


def _need(
    network: EdgeNetwork, found: Trace, name: str, elsewhere: float
) -> Float[Tensor, "rows readers"]:
    if name == LOGITS:
        p = found.pre[LOGITS].detach().softmax(1)
        return p * (1 - p)
    on = (found.strength[part_of(name)].detach() != 0).float()
    return carried(network, found, name, elsewhere + (1 - elsewhere) * on)


def carried(
    network: EdgeNetwork, found: Trace, name: str, need: Float[Tensor, "rows readers"]
) -> Float[Tensor, "rows readers"]:
    """What readers need at a position, brought to where they read: for attention the sources."""
    if not name.endswith(".attn"):
        return need
    pattern = found.pattern[name].detach()
    by_head = need.view(len(pattern), pattern.shape[2], network.spec.heads, -1)
    return torch.einsum("bhts,bthi->bshi", pattern, by_head).reshape(need.shape)


def meetings(
    network: EdgeNetwork,
    found: Trace,
    name: str,
    need: Float[Tensor, "rows readers"],
    *,
    power: int,
) -> Float[Tensor, "writers readers"]:
    """Mean over positions of (a_w / s)^power times need."""
    strengths, vocab = found.strengths, network.spec.vocab
    assert strengths is not None
    scaled = need / found.scale[norm_before(name)].detach().pow(power)[:, None]
    seen = network.spec.seen(name) - vocab
    on = strengths.on.detach()[:, :seen].pow(power)
    dtype = product_dtype()
    out = need.new_zeros(vocab + seen, need.shape[1])
    out[:vocab].index_add_(0, strengths.token, scaled)
    out[vocab:] = on.to(dtype).T @ scaled.to(dtype)
    return out / len(need)


def coins(network: EdgeNetwork, tokens: Int[Tensor, "batch pos"], *, seed: int) -> dict[str, float]:
    """For each part the mean square of gradients at its active latents; one for logits.

    Gradients of the log probability of next tokens drawn from the network itself.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        offsets = {n: t.detach().clone().requires_grad_() for n, t in network.offsets.items()}
        twin = _with_offsets(network, offsets)
        found = twin.trace(tokens)
        assert found.logits is not None
        flat = found.logits.flatten(0, 1)
        drawn = torch.multinomial(flat.detach().softmax(1), 1, generator=generator)[:, 0]
        loss = F.cross_entropy(flat, drawn, reduction="sum")
        names = [name for name in found.pre if name != LOGITS]
        gradients = torch.autograd.grad(loss, [found.pre[name] for name in names])
    result = {LOGITS: 1.0}
    for name, gradient in zip(names, gradients, strict=True):
        on = found.strength[part_of(name)] != 0
        result[name] = float(gradient[on].square().mean()) if bool(on.any()) else 0.0
    return result


def _with_offsets(network: EdgeNetwork, offsets: Mapping[str, Tensor]) -> EdgeNetwork:
    """The same tables behind offsets that want gradients, so that a graph is built."""
    twin = EdgeNetwork(
        network.spec, {n: t.detach() for n, t in network.tables.items()}, offsets,
        {n: t.detach() for n, t in network.queries.items()},
        {n: t.detach() for n, t in network.keys.items()}, network.theta, network.gram_root,
    )  # fmt: skip
    twin.kept, twin.dtype = network.kept, network.dtype
    return twin


def uses(
    network: EdgeNetwork,
    joint: Mapping[str, Float[Tensor, "writers readers"]],
    coin: Mapping[str, float],
) -> dict[str, Float[Tensor, "writers readers"]]:
    """Scores of all edges."""
    return {
        name: table.detach().abs() * (joint[name] * coin[name]).sqrt()
        for name, table in network.tables.items()
    }


def measured_joint(
    network: EdgeNetwork, rows: Int[Tensor, "rows pos"], *, elsewhere: float
) -> dict[str, Float[Tensor, "writers readers"]]:
    """Joint activity on rows of text, a few at a time."""
    joint: dict[str, Tensor] = {}
    groups = rows.split(ROWS_AT_ONCE)
    for group in groups:
        with torch.no_grad():
            fresh = joint_activity(network, network.trace(group), elsewhere=elsewhere)
        for name, table in fresh.items():
            table *= len(group) / len(rows)
            joint[name] = joint[name].add_(table) if name in joint else table
    return joint


def measured_uses(
    network: EdgeNetwork, rows: Int[Tensor, "rows pos"], *, elsewhere: float, seed: int
) -> dict[str, Float[Tensor, "writers readers"]]:
    """Scores of all edges, measured on rows of text."""
    joint = measured_joint(network, rows, elsewhere=elsewhere)
    return uses(network, joint, coins(network, rows[:ROWS_AT_ONCE], seed=seed))
