"""Recipes that map one site to another, or are judged by the network they stand in."""

from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.cross_layer import cross_layer_specs
from unweave.dictionaries.initial import Start
from unweave.errors import UserError
from unweave.training.dead import AuxK, DeadLatents
from unweave.training.objectives.cross_layer import CrossLayer
from unweave.training.objectives.end_to_end import EndToEnd
from unweave.training.penalties.l0 import PreActivation
from unweave.training.penalties.pointwise import L1, Tanh
from unweave.training.penalties.weighted import Penalty
from unweave.training.recipes.ask import Ask, Built, gao_lr, rooted
from unweave.training.schedule import Schedule
from unweave.training.trainee import TraineeSettings

_NOTHING = DeadLatents(auxk=None)


def transcoder(ask: Ask) -> Built:
    """ReLU transcoder with L1: Dunefsky, Chlenski & Nanda 2024, 2406.11944.

    lr 4e-4, offsets at the mean, batch 4096, 60M tokens, width 32 d. Its L1 weight (1.4e-4) is for
    raw vectors of GPT-2: say k or a penalty. Ghost gradients are left out.
    """
    _between("transcoder", ask)
    settings = TraineeSettings(
        penalties=ask.charged("transcoder", L1(), None, warmup=0.05),
        lr=ask.lr or 4e-4,
        start=Start(offset="mean"),
        dead=_NOTHING,
    )
    return Built({"dictionary": ask.spec(ReLU())}, settings)


def skip_transcoder(ask: Ask) -> Built:
    """TopK transcoder with a linear map beside it: Paulo, Shabalin & Belrose 2025, 2501.18823.

    W_skip starts at zero; k 32; lr 2e-4 / sqrt(F / 2^14) as in EleutherAI's trainer. AuxK is ours.
    """
    _between("skip-transcoder", ask)
    spec = ask.spec(TopK(k=ask.chosen("skip-transcoder")), skip=True)
    settings = TraineeSettings(
        lr=ask.lr or gao_lr(ask.n_latents),
        start=Start(offset="mean"),
        dead=DeadLatents(auxk=AuxK(weight=1 / 32)),
    )
    return Built({"dictionary": spec}, settings)


def e2e_braun(ask: Ask) -> Built:
    """End to end by KL alone: Braun, Taylor, Goldowsky-Dill & Sharkey 2024, 2405.12241.

    Decoder normalised in every pass, no pre-bias, raw vectors, lambda 1.5 (over the width), lr
    5e-4 up over 5% and down a cosine to 10%, clip 10, nothing for dead latents.
    """
    return _braun("e2e-braun", ask, EndToEnd(kl=1.0, relative=False), published=1.5)


def e2e_ds_braun(ask: Ask) -> Built:
    """End to end by KL and later sites: Braun, Taylor, Goldowsky-Dill & Sharkey 2024, 2405.12241.

    As `e2e-braun` with KL 0.5 and 2.5 shared out over the residual stream before every later block
    (the paper's layers 2 and 6; 0.05 at layer 10), lambda 10.
    """
    if not ask.later:
        raise UserError("e2e-ds-braun needs sites that come later: there are none after the last")
    objective = EndToEnd(kl=0.5, downstream=2.5, downstream_sites=ask.later, relative=False)
    return _braun("e2e-ds-braun", ask, objective, published=10.0)


def clt(ask: Ask) -> Built:
    """Cross-layer transcoder: Anthropic 2025, Circuit Tracing, with the January 2025 recipe.

    JumpReLU, tanh with c = 4 on f times the norm of the decoders to all layers, lambda ramped over
    the whole run, pre-activation penalty 3e-6; lr 2e-4 decaying over the last 20%, clip 1. The
    circuit paper's own numbers are not public; those of January 2025 stand in.
    """
    penalties = (
        *ask.charged("clt", Tanh(c=4.0), 10.0, warmup=1.0),
        Penalty(form=PreActivation(), weight=3e-6, warmup=0.0),
    )
    width = ask.writes[0].width
    settings = TraineeSettings(
        objective=CrossLayer(),
        penalties=penalties,
        lr=ask.lr or 2e-4,
        schedule=Schedule(warmup=0.0, decay_from=0.8),
        clip=1 / rooted(width),
        start=Start(
            decoder="uniform",
            encoder=width**0.5 / ask.n_latents**0.5,
            offset="zero",
            fires=min(10_000 / ask.n_latents, 0.5),
        ),
        dead=_NOTHING,
    )
    jump = JumpReLU(threshold=0.1, bandwidth=2.0, gradient_to="all")
    return Built(cross_layer_specs(ask.reads, ask.writes, ask.n_latents, jump), settings)


def _braun(name: str, ask: Ask, objective: EndToEnd, *, published: float) -> Built:
    settings = TraineeSettings(
        objective=objective,
        penalties=ask.charged(name, L1(), published, warmup=0.0, steer_from=published),
        lr=ask.lr or 5e-4,
        schedule=Schedule(shape="cosine", warmup=0.05, decay_from=0.05, rest=0.1),
        clip=10 / rooted(ask.width),
        start=Start(offset="zero"),
        scale=False,
        dead=_NOTHING,
    )
    return Built({"dictionary": ask.spec(ReLU(), decoder="normalised")}, settings)


def _between(name: str, ask: Ask) -> None:
    if ask.same:
        raise UserError(f"{name} maps one site to another: say which one it writes")
