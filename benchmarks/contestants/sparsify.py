"""EleutherAI sparsify: its coder, and the update of its trainer without logging."""

from dataclasses import replace

import torch

from benchmarks.contestants.contract import Contestant, Data, Task, seeded


def sparsify(
    data: Data, task: Task, *, signum: bool = False, lr: float | None = None
) -> Contestant:
    """TopK autoencoders and transcoders; Adam, or with `signum` the trainer's own default."""
    task = replace(task, lr=lr or task.lr)
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    transcode = task.kind == "transcoder"
    config = SparseCoderConfig(
        activation="topk", num_latents=task.latents, k=task.k, transcode=transcode
    )
    seeded(task.seed)
    coder = SparseCoder(task.width, config, "cpu", dtype=torch.float32)
    optimizer = _signum(coder, task) if signum else torch.optim.Adam(coder.parameters(), _lr(task))

    def fit() -> None:
        for step, drawn in enumerate(data):
            x, y = drawn if transcode else (drawn, drawn)
            if step == 0:
                coder.b_dec.data = y.mean(0)
            if not transcode:
                coder.set_decoder_norm_to_unit_norm()
            spread = (y - y.mean(0)).pow(2).sum()
            coder(x=x, y=y, dead_mask=None, total_variance=spread).fvu.backward()
            if not transcode:
                coder.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()
            optimizer.zero_grad()
        if signum:
            optimizer.eval()

    def apply(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        averaging = signum and optimizer.train_mode  # it scores the average of its weights
        if averaging:
            optimizer.eval()
        out = coder(x)
        if averaging:
            optimizer.train()
        on = out.latent_indices[out.latent_acts > 0]
        return out.sae_out, torch.bincount(on, minlength=task.latents)

    return Contestant(fit, apply, lambda: coder.W_dec.detach())


def _lr(task: Task) -> float:
    return task.lr or 1e-3


def _signum(coder: torch.nn.Module, task: Task):
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    rate = task.lr or 5e-3 / (task.latents / 2**14) ** 0.5
    optimizer = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=rate), momentum=0.95)
    optimizer.train()
    return optimizer
