"""What ten million latents on a 70B model would take, from stated numbers alone.

    python -m benchmarks.paper_plan        (prints the tables of docs/scaling.md)

Nothing here is measured. Hardware figures are the vendor's for an H100 SXM; what share of them is
reached, how many tokens are needed and how a step is laid out are assumptions, each a field below.
"""

import math
import re
from dataclasses import dataclass, fields, replace

HOUR = 3600.0


@dataclass(frozen=True)
class Assumed:
    """Every number that the plan rests on."""

    peak_flops: float = 989e12
    peak_hbm: float = 3.35e12
    peak_link: float = 450e9
    peak_network: float = 50e9
    device_bytes: float = 80e9
    usable: float = 0.85
    matmul_share: float = 0.6
    forward_share: float = 0.4
    bytes_share: float = 0.7
    parameters: float = 70e9
    d_model: int = 8192
    layers: int = 80
    latents: float = 1e7
    k: int = 128
    tokens: float = 40e9
    batch: int = 131_072
    state_bytes: float = 14.0
    update_bytes: float = 30.0
    per_node: int = 8


WHAT = {
    "peak_flops": ("bf16, dense, H100 SXM, nominal", "flop/s"),
    "peak_hbm": ("memory bandwidth, nominal", "B/s"),
    "peak_link": ("NVLink, each way (900 GB/s both ways)", "B/s"),
    "peak_network": ("network of one device (400 Gb/s)", "B/s"),
    "device_bytes": ("memory of one device", "B"),
    "usable": ("share of it that weights and optimiser may fill", ""),
    "matmul_share": ("share of the peak that the encoder's product reaches", ""),
    "forward_share": ("share of the peak that the subject's forward pass reaches", ""),
    "bytes_share": ("share of nominal bandwidth reached, memory and network", ""),
    "parameters": ("of the subject", ""),
    "d_model": ("width of a site", ""),
    "layers": ("sites, one a layer", ""),
    "latents": ("in one dictionary", ""),
    "k": ("active latents a token", ""),
    "tokens": ("a dictionary is trained on (16M latents of GPT-4: 40e9, Gao et al. 2024)", ""),
    "batch": ("tokens a step", ""),
    "state_bytes": ("a weight: float32 weight and two moments, bf16 copy", "B"),
    "update_bytes": ("read and written per weight and step by a fused update", "B"),
    "per_node": ("devices joined by NVLink", ""),
}
"""What each of them is, and its unit."""


@dataclass(frozen=True)
class Plan:
    """One dictionary on one site, and all layers beside it."""

    assumed: Assumed
    devices: int
    """That one dictionary is shared out over by latents."""

    @property
    def weights(self) -> float:
        """Of one dictionary: encoder and decoder."""
        return 2 * self.assumed.d_model * self.assumed.latents

    @property
    def steps(self) -> float:
        """Of the run."""
        return self.assumed.tokens / self.assumed.batch

    @property
    def encoder_s(self) -> float:
        """Seconds a step for the encoder's product, on every device its share of latents."""
        a = self.assumed
        flop = 2 * a.d_model * a.latents * a.batch
        return flop / (a.peak_flops * a.matmul_share) / self.devices

    @property
    def sparse_s(self) -> float:
        """Decoding, gradients of values and of both matrices: four passes over k rows a token."""
        a = self.assumed
        return 4 * a.batch * a.k * a.d_model * 2 / (a.peak_hbm * a.bytes_share) / self.devices

    @property
    def update_s(self) -> float:
        """The fused update of weights and moments, all of them once a step."""
        a = self.assumed
        return self.weights * a.update_bytes / (a.peak_hbm * a.bytes_share) / self.devices

    @property
    def network_bytes(self) -> float:
        """Into each device a step: the batch, the reduced output, its gradient, candidates.

        A batch's vectors reach every shard (all-gather), partial sums of the decoder are reduced
        and scattered, the error is gathered, all in bf16. Each shard offers k candidates a token,
        value and index in 8 bytes; each device chooses for its share of the tokens.
        """
        a = self.assumed
        vectors = 3 * a.batch * a.d_model * 2
        candidates = 2 * a.batch * a.k * 8
        return vectors + candidates

    @property
    def network_s(self) -> float:
        """Seconds a step that these take; hidden behind the encoder as long as they are fewer.

        A node's devices draw each byte once from outside, an equal part each, and pass it on.
        """
        a = self.assumed
        outside = self.network_bytes / a.per_node / a.peak_network
        return (outside + self.network_bytes / a.peak_link) / a.bytes_share

    @property
    def step_s(self) -> float:
        """Seconds a step with the network hidden, or the network's where it is longer."""
        return max(self.encoder_s + self.sparse_s + self.update_s, self.network_s)

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.step_s * self.steps / HOUR

    @property
    def forward_hours(self) -> float:
        """Device hours of the subject's own pass over the same tokens, once for all layers."""
        a = self.assumed
        return 2 * a.parameters * a.tokens / (a.peak_flops * a.forward_share) / HOUR


def least_devices(a: Assumed) -> int:
    """Devices that one dictionary's weights and optimiser fill, in whole nodes."""
    share = 2 * a.d_model * a.latents * a.state_bytes / (a.device_bytes * a.usable)
    return a.per_node * math.ceil(share / a.per_node)


def widest(a: Assumed) -> int:
    """Devices at which the network takes as long as everything else: no more help beyond."""
    alone = Plan(a, 1)
    return int((alone.encoder_s + alone.sparse_s + alone.update_s) / alone.network_s)


def assumptions() -> str:
    """The first table: every assumption."""
    a = Assumed()
    lines = ["| assumed | |", "|---|---|"]
    for field in fields(a):
        what, unit = WHAT[field.name]
        value = getattr(a, field.name)
        lines.append(f"| {what} | {_number(value)}{' ' + unit if unit else ''} |")
    return "\n".join(lines)


def plans() -> str:
    """The second table: one layer and all of them, at two sizes of machine and with screening."""
    a = Assumed()
    fewest, most = least_devices(a), widest(a)
    tenth = replace(a, latents=a.latents / 10)
    small = Plan(tenth, least_devices(tenth))
    chosen = {
        f"1e6 latents, {small.devices} devices": small,
        f"1e7 latents, {fewest} devices (the fewest that hold it)": Plan(a, fewest),
        f"1e7 latents, {most} devices (where the network is as slow)": Plan(a, most),
    }
    head = "| | " + " | ".join(chosen) + " |"
    lines = [head, "|---|" + "---|" * len(chosen)]

    def row(name: str, of: object) -> None:
        lines.append(f"| {name} | " + " | ".join(of(p) for p in chosen.values()) + " |")  # type: ignore[operator]

    def all_layers(p: Plan) -> float:
        return p.assumed.layers * p.devices * p.hours + p.forward_hours

    row("weights and optimiser, TB", lambda p: f"{p.weights * a.state_bytes / 1e12:.2f}")
    row("encoder's product, ms a step", lambda p: f"{1e3 * p.encoder_s:.0f}")
    row("sparse sums, ms a step", lambda p: f"{1e3 * p.sparse_s:.1f}")
    row("update, ms a step", lambda p: f"{1e3 * p.update_s:.0f}")
    row("network, ms a step (hidden)", lambda p: f"{1e3 * p.network_s:.0f}")
    row("into each device, GB a step", lambda p: f"{p.network_bytes / 1e9:.1f}")
    row("moved in all, PB", lambda p: f"{p.network_bytes * p.devices * p.steps / 1e15:.0f}")
    row("hours of the run, one layer", lambda p: f"{p.hours:.0f}")
    row("device hours, one layer", lambda p: f"{p.devices * p.hours:,.0f}")
    row("device hours, the subject's pass", lambda p: f"{p.forward_hours:,.0f}")
    row(f"device hours, {a.layers} layers and the pass", lambda p: f"{all_layers(p):,.0f}")
    row(f"days on {a.layers} such groups", lambda p: f"{p.hours / 24:.1f}")
    return "\n".join(lines)


def limits() -> str:
    """The third table: where it would break."""
    a = Assumed()
    one = Plan(a, least_devices(a))
    product, share = 2 * a.d_model * a.latents, one.encoder_s / one.step_s
    kept, stream = a.layers * a.d_model * 2, a.tokens / (one.hours * HOUR)
    candidates = 2 * a.batch * a.k * 8 / one.network_bytes
    devices = a.layers * one.devices
    found = {
        "flop a token of the encoder's product, one layer": _number(product),
        "... over the subject's whole forward pass": f"{product / 2 / a.parameters:.1f}",
        "... share of a step": f"{share:.0%}",
        "a step's speed-up at most, if a screen read a tenth of the latents": (
            f"{1 / (1 - 0.9 * share):.1f}"
        ),
        "activations of all layers, if they were kept": f"{a.tokens * kept / 1e15:.0f} PB",
        "tokens a second that the subject has to supply": f"{stream:,.0f}",
        "... vectors of all layers out of its machines": f"{stream * kept / 1e9:.0f} GB/s",
        "scores of a step on one device, if they were ever whole (bf16)": (
            f"{a.batch * a.latents * 2 / one.devices / 1e9:.0f} GB"
        ),
        "share of the traffic for choosing k across shards": f"{candidates:.0%}",
        "bytes a device and step if each shard's choice goes to all, as it does here today": (
            f"{(one.devices - 1) * a.batch * a.k * 4 / 1e9:.1f} GB"
        ),
        "devices for one layer beyond which more do not help": f"{widest(a)}",
        "gradients between two copies of the dictionary, a device and step": (
            f"{one.weights * 2 / one.devices / 1e9:.0f} GB"
        ),
        "times a latent fires in a step, on average": f"{a.batch * a.k / a.latents:.1f}",
        "devices for all layers": f"{devices:,}",
        "... hours between failures, at one a device in five years": (
            f"{5 * 365 * 24 / devices:.0f}"
        ),
        "a checkpoint of one layer": f"{one.weights * 12 / 1e12:.1f} TB",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in found.items())])


def _number(value: float) -> str:
    if isinstance(value, int) and value < 1e6:
        return f"{value:,}"
    return re.sub(r"e\+0*", "e", f"{value:.3g}")


def main() -> None:
    """Print what the docs show."""
    print("\n\n".join((assumptions(), plans(), limits())))


if __name__ == "__main__":
    main()
