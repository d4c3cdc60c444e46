"""Recipes in which a penalty makes latents sparse."""

from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.initial import Start
from unweave.training.dead import DeadLatents, Resample
from unweave.training.penalties.l0 import L0, PreActivation
from unweave.training.penalties.pointwise import L1, Lp, Tanh
from unweave.training.penalties.weighted import Penalty
from unweave.training.recipes.ask import Ask, Built, rooted
from unweave.training.schedule import Schedule
from unweave.training.trainee import TraineeSettings

_NOTHING = DeadLatents(auxk=None)
_TO_THE_END = Schedule(warmup=0.0, decay_from=0.8)


def l1_bricken(ask: Ask) -> Built:
    """ReLU, unit decoder, L1, resampling: Bricken et al. 2023, Towards Monosemanticity.

    Resampling at steps 25k, 50k, 75k and 100k of a million, of latents silent for 12.5k steps. The
    paper gives its L1 weight in other units: say k or a penalty. Ours: lr 1e-3 as in Cunningham et
    al. 2023.
    """
    settings = TraineeSettings(
        penalties=ask.charged("l1-bricken", L1(), None, warmup=0.0),
        lr=ask.lr or 1e-3,
        schedule=Schedule(shape="constant", warmup=0.0),
        clip=None,
        start=Start(offset="median"),
        dead=DeadLatents(
            silent_share=0.0125,
            auxk=None,
            resample=Resample(at=(0.025, 0.05, 0.075, 0.1), height=0.2),
        ),
    )
    return Built({"dictionary": ask.spec(ReLU(), pre_bias=ask.same)}, settings)


def anthropic_2024_04(ask: Ask) -> Built:
    """ReLU, free decoder, L1 on f ||d||: Anthropic, Circuits Updates, April 2024.

    Lambda 5 over a warm-up of 5%, lr 5e-5 for 200k steps of 4096, decaying over the last 20%, clip
    1, decoder rows of norm 0.1, encoder its transpose, offsets zero. Fold the lengths into the
    encoder when done (`Dictionary.fold_lengths_`). A short run needs a higher lr.
    """
    settings = TraineeSettings(
        penalties=ask.charged("anthropic-2024-04", L1(), 5.0, warmup=0.05),
        lr=ask.lr or 5e-5,
        betas=(0.9, 0.999),
        schedule=_TO_THE_END,
        clip=1 / rooted(ask.width),
        start=Start(decoder_norm=0.1, encoder=1.0 if ask.same else 0.1, offset="zero"),
        dead=_NOTHING,
    )
    return Built({"dictionary": ask.spec(ReLU(), decoder="free")}, settings)


def jumprelu_2025_01(ask: Ask) -> Built:
    """JumpReLU, tanh and pre-activation penalty: Anthropic, Circuits Updates, January 2025.

    Thresholds 0.1, window 2 with gradient to all, lambda_S 10 (of 10 to 20) ramped over the whole
    run, c 4, lambda_P 3e-6, lr 2e-4 decaying over the last 20%, batch 32768, clip 1, W_dec from
    U(-1, 1) / sqrt(d), W_enc its transpose times d / F, 10000 latents firing per token. Ours: at
    most half of them fire at first, and with k the ramp ends after a fifth.
    """
    shrunk = ask.width / ask.n_latents
    penalties = (
        *ask.charged("jumprelu-2025-01", Tanh(c=4.0), 10.0, warmup=1.0),
        Penalty(form=PreActivation(), weight=3e-6, warmup=0.0),
    )
    settings = TraineeSettings(
        penalties=penalties,
        lr=ask.lr or 2e-4,
        schedule=_TO_THE_END,
        clip=1 / rooted(ask.width),
        start=Start(
            decoder="uniform",
            encoder=shrunk,
            offset="zero",
            fires=min(10_000 / ask.n_latents, 0.5),
        ),
        dead=_NOTHING,
    )
    jump = JumpReLU(threshold=0.1, bandwidth=2.0, gradient_to="all")
    return Built({"dictionary": ask.spec(jump, decoder="free")}, settings)


def jumprelu_2024(ask: Ask) -> Built:
    """JumpReLU with an L0 penalty: Rajamanoharan et al. 2024, 2407.14435.

    Thresholds and window 1e-3 and lambda for vectors of unit mean-square norm (here times sqrt(d),
    and d), lr 7e-5, betas 0 and 0.999, lambda over 10k steps; ours: that is 2% of the run. The
    paper sweeps lambda: say k or a penalty in the paper's units.
    """
    scaled = None if ask.penalty is None else ask.penalty * ask.width
    wanted = ask.model_copy(update={"penalty": scaled})
    root = rooted(ask.width)
    settings = TraineeSettings(
        penalties=wanted.charged("jumprelu-2024", L0(), None, warmup=0.02),
        lr=ask.lr or 7e-5,
        betas=(0.0, 0.999),
        schedule=Schedule(shape="constant", warmup=0.002),
        start=Start(),
        dead=_NOTHING,
    )
    jump = JumpReLU(threshold=1e-3 * root, bandwidth=1e-3 * root)
    return Built({"dictionary": ask.spec(jump)}, settings)


def gated(ask: Ask) -> Built:
    """Gated SAE, L1 on its gate: Rajamanoharan et al. 2024, 2404.16014.

    Unit decoder, betas 0 and 0.999, lr from 5e-5 to 1e-3 (here 3e-4). The paper sweeps lambda: say
    k or a penalty.
    """
    settings = TraineeSettings(
        penalties=ask.charged("gated", L1(), None, warmup=0.05),
        lr=ask.lr or 3e-4,
        betas=(0.0, 0.999),
        start=Start(),
        dead=_NOTHING,
    )
    return Built({"dictionary": ask.spec(Gated(), pre_bias=ask.same)}, settings)


def p_anneal(ask: Ask) -> Built:
    """ReLU with an Lp penalty, p falling from 1 to 0.2: Karvonen et al. 2024, 2408.00113.

    Betas 0 and 0.999; the penalty's total stays continuous while p falls. The paper sweeps lambda:
    say k or a penalty. Ours: p falls from the end of the warm-up on, at every step.
    """
    settings = TraineeSettings(
        penalties=ask.charged("p-anneal", Lp(p=0.2, anneal_from=0.05), None, warmup=0.05),
        lr=ask.lr or 1e-3,
        betas=(0.0, 0.999),
        start=Start(offset="median"),
        dead=_NOTHING,
    )
    return Built({"dictionary": ask.spec(ReLU(), pre_bias=ask.same)}, settings)
