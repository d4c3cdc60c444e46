"""Recipes that choose a number of latents per token."""

from itertools import accumulate

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.encoder.kronecker import Kronecker
from unweave.dictionaries.encoder.pursuit import Pursuit
from unweave.dictionaries.encoder.switch import Switch
from unweave.dictionaries.initial import Start
from unweave.errors import UserError
from unweave.training.dead import AuxK, DeadLatents
from unweave.training.objectives.local import Local
from unweave.training.recipes.ask import Ask, Built, gao_lr, rooted
from unweave.training.schedule import Schedule
from unweave.training.trainee import TraineeSettings

_GAO_DEAD = DeadLatents(auxk=AuxK(weight=1 / 32))
_MATRYOSHKA = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
_EXPERTS = 8


def _gao(ask: Ask, **changes: object) -> TraineeSettings:
    """What most of these share. Clip 1 is meant for a loss relative to the variance, d here."""
    return TraineeSettings.model_validate(
        {
            "lr": ask.lr or gao_lr(ask.n_latents),
            "clip": rooted(ask.width),
            "start": Start(offset="median"),
            "dead": _GAO_DEAD,
            **changes,
        }
    )


def topk_gao(ask: Ask) -> Built:
    """TopK with AuxK on layer-normed vectors: Gao et al. 2024, 2406.04093.

    Unit decoder, encoder its transpose, b_pre the geometric median, lr 2e-4 / sqrt(F / 2^14), clip
    1, AuxK 1/32 with half a width of latents. Dead there is silent for 10M tokens; here for a share
    of the run. A transcoder goes without the layer norm.
    """
    spec = ask.spec(TopK(k=ask.chosen("topk-gao")), pre_bias=ask.same, layer_norm=ask.same)
    return Built({"dictionary": spec}, _gao(ask))


def topk_short(ask: Ask) -> Built:
    """TopK for runs of about a million vectors: ours, studies/peers.

    Four times k latents at first, coming down to k at 0.6 of the run, give every latent something
    to learn from before they compete; lr 4e-3, from 0.3 of the run on down to zero; encoder rows
    start at 0.3 of the decoder's, so that they can turn; AuxK with k latents, dead after 0.015 of
    the run.
    """
    k = ask.chosen("topk-short")
    settings = TraineeSettings(
        lr=ask.lr or 4e-3,
        betas=(0.9, 0.995),
        schedule=Schedule(decay_from=0.3),
        start=Start(encoder=0.3),
        dead=DeadLatents(silent_share=0.015, auxk=AuxK(k=k)),
        k_from=4.0,
        k_until=0.6,
    )
    return Built({"dictionary": ask.spec(TopK(k=k))}, settings)


def batchtopk(ask: Ask) -> Built:
    """BatchTopK with AuxK: Bussmann et al. 2024, 2412.06410.

    k per token on average over a batch, afterwards a threshold, the running mean (0.999) of the
    smallest that was kept; AuxK 1/32; lr as Gao et al.
    """
    spec = ask.spec(BatchTopK(k=ask.chosen("batchtopk"), memory=0.999), pre_bias=ask.same)
    return Built({"dictionary": spec}, _gao(ask))


def matryoshka(ask: Ask) -> Built:
    """BatchTopK whose prefixes must reconstruct alone: Bussmann et al. 2025, 2503.17547.

    Groups of 1/32, 1/16, 1/8, 1/4 and the rest of the latents; the loss is the mean over prefixes;
    AuxK 1/32.
    """
    if ask.n_latents < 32:
        raise UserError(f"matryoshka needs 32 latents at least, not {ask.n_latents}")
    sizes = [int(share * ask.n_latents) for share in _MATRYOSHKA]
    nesting = (*accumulate(sizes), ask.n_latents)
    activation = BatchTopK(k=ask.chosen("matryoshka"), memory=0.999)
    return Built(
        {"dictionary": ask.spec(activation, nesting=nesting, pre_bias=ask.same)}, _gao(ask)
    )


def mp_sae(ask: Ask) -> Built:
    """Unrolled matching pursuit with the decoder's own rows: Costa et al. 2025, 2506.03093.

    The architecture is the paper's; lr (1e-3) and schedule are ours. Nothing is done for dead
    latents, which have no encoder row to be revived by.
    """
    if not ask.same:
        raise UserError("mp-sae encodes what it decodes: give it one site, not a pair")
    spec = ask.spec(TopK(k=ask.chosen("mp-sae")), encoder=Pursuit(), pre_bias=True)
    start = Start(decoder="data", offset="median")
    settings = _gao(ask, lr=ask.lr or 1e-3, start=start, dead=DeadLatents(auxk=None))
    return Built({"dictionary": spec}, settings)


def switch(ask: Ask) -> Built:
    """TopK in one of several routed experts: Mudide et al. 2024, 2410.08201.

    k 32, balancing loss 3; the rest as Gao et al. Ours: eight experts.
    """
    if ask.n_latents % _EXPERTS:
        raise UserError(
            f"switch has {_EXPERTS} experts, which do not share {ask.n_latents} latents"
        )
    spec = ask.spec(
        TopK(k=ask.chosen("switch")), encoder=Switch(experts=_EXPERTS), pre_bias=ask.same
    )
    return Built({"dictionary": spec}, _gao(ask, objective=Local(balance=3.0)))


def kron(ask: Ask) -> Built:
    """TopK over products of pairs of small latents: KronSAE, 2505.22255.

    The encoder is the paper's; factors of 4 by 4 a head, lr and the rest are ours, as Gao et al.
    Nothing is done for dead latents, which share their factors.
    """
    if ask.n_latents % 16:
        raise UserError(f"kron has 16 latents a head, and {ask.n_latents} are no multiple of that")
    spec = ask.spec(
        TopK(k=ask.chosen("kron")), encoder=Kronecker(left=4, right=4), pre_bias=ask.same
    )
    return Built({"dictionary": spec}, _gao(ask, dead=DeadLatents(auxk=None)))
