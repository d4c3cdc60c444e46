"""What a latent's change should do to the log-probability of the true next tokens.

With c_t the change of the latent at place t and d what one unit of it writes, each predictor says
how much the sum over a row of log p(next token) changes:

    direct     log-probabilities after c_t d is added to the last residual stream, the final norm
               computed anew: exact where the layers in between take no notice
    gradient   sum_t c_t d . g_t with g the gradient of the row's sum at the site: first order
    promoted   the m tokens that d promotes most are said to gain c_t |d| each, all others nothing

None of them runs the changed network. A wrong latent is predicted by the same with another d.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.subject import Subject

Predictor = Literal["direct", "gradient", "promoted"]
PREDICTORS: tuple[Predictor, ...] = ("direct", "gradient", "promoted")


class PredictSettings(BaseModel):
    """Settings of the predictors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    predictors: tuple[Predictor, ...] = PREDICTORS
    """Those asked; `gradient` alone takes no further pass of the network for each latent."""
    promoted: PositiveInt = 10
    """Tokens that a direction is said to promote."""


class Known(NamedTuple):
    """What is known of rows before anything is done to them, and the network's unembedding."""

    rows: Int[Tensor, "rows pos"]
    """Token ids."""
    true: Float[Tensor, "rows pos-1"]
    """Log-probability of each true next token in the original."""
    gradient: Float[Tensor, "rows places d"]
    """Gradient of each row's sum of log p(next token) at the site, position 0 left out."""
    unembed: Float[Tensor, "vocab d"] | None
    """Rows that logits are products with; None where the site is not of the stream's width."""

    def of(self, which: Int[Tensor, " some"]) -> "Known":
        """The same of some of the rows."""
        return Known(self.rows[which], self.true[which], self.gradient[which], self.unembed)


def next_logp(
    logp: Float[Tensor, "rows places vocab"], rows: Int[Tensor, "rows pos"]
) -> Float[Tensor, "rows places"]:
    """Log-probability of each true next token."""
    return logp.gather(2, rows[:, 1:, None].to(logp.device))[:, :, 0]


def known(subject: Subject, site: str, rows: Int[Tensor, "rows pos"], *, batch: int = 16) -> Known:
    """Run the original forwards and backwards once."""
    trues, gradients = [], []
    for group in rows.split(batch):
        held: list[Tensor] = []

        def leaf(tensor: Tensor, held: list[Tensor] = held) -> Tensor:
            held.append(tensor.detach().clone().requires_grad_())
            return held[0]

        with torch.enable_grad():
            logits = subject.run(group, replace={site: leaf}).logits
            assert logits is not None
            logp = logits[:, :-1].float().log_softmax(-1)
            true = next_logp(logp, group)
            (gradient,) = torch.autograd.grad(true.sum(), held)
        trues.append(true.detach())
        gradients.append(gradient[:, 1:].flatten(2).float())
    unembed = subject.unembed().float()
    wide = gradients[0].shape[2] == unembed.shape[1]
    return Known(rows, torch.cat(trues), torch.cat(gradients), unembed if wide else None)


@torch.no_grad()
def predict(
    subject: Subject,
    before: Known,
    change: Float[Tensor, "rows places"],
    direction: Float[Tensor, " d"],
    predictor: Predictor,
    settings: PredictSettings,
) -> Float[Tensor, " rows"]:
    """The predicted change of each row's sum of log p(next token).

    `places` are the positions after the first. `direct` and `promoted` need a site of the residual
    stream's width.
    """
    if predictor == "gradient":
        return (change * (before.gradient @ direction)).sum(1)
    # The last position predicts nothing that is known.
    change, true = change[:, :-1], before.rows[:, 2:]
    if predictor == "direct":
        after = _direct(subject, before, change, direction)
        return (after - before.true).sum(1)
    assert before.unembed is not None
    top = (before.unembed @ direction).topk(settings.promoted).indices
    # Run anew: the probabilities of all tokens of all rows would not fit a large vocabulary.
    logits = subject.run(before.rows).logits
    assert logits is not None
    share = logits[:, 1:-1].float().softmax(-1)[:, :, top].sum(2)
    return (change * direction.norm() * (torch.isin(true, top).float() - share)).sum(1)


def _direct(
    subject: Subject, before: Known, change: Tensor, direction: Tensor
) -> Float[Tensor, "rows places"]:
    moved = change[:, :, None] * direction

    def add(stream: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(moved, (0, 0, 1, 1))
        return stream + padded.to(stream.dtype)

    end = f"blocks.{subject.n_layers - 1}.resid_post"
    logits = subject.run(before.rows, replace={end: add}).logits
    assert logits is not None
    return next_logp(logits[:, :-1].float().log_softmax(-1), before.rows)
