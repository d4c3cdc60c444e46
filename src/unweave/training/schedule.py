"""How the learning rate moves over a run."""


def linear_decay(step: int, steps: int, *, warmup: float = 0.05, decay_from: float = 0.5) -> float:
    """Multiplier at a step: up linearly over `warmup`, one, then down linearly to zero at the end.

    `warmup` and `decay_from` are shares of the run.
    """
    done = step / max(steps, 1)
    up = min(1.0, (step + 1) / max(1.0, warmup * steps))
    down = min(1.0, max(0.0, 1.0 - done) / (1.0 - decay_from))
    return min(up, down)
