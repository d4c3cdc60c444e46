"""The top of the page: what was taken apart, from what, and the one honest sentence."""

from collections import Counter

from unweave.artifact.manifest import Manifest
from unweave.artifact.scores import Scores
from unweave.report.html import Child, Markup, element
from unweave.report.numbers import count, duration, interval, percent, plain, short, size


def head(manifest: Manifest, scores: Scores) -> Markup:
    """Title, headline and facts."""
    return element(
        "header",
        element("p", "unweave", class_="brand"),
        element("h1", manifest.subject.name),
        element("p", _headline(manifest, scores), class_="headline"),
        element("p", _precisely(scores), class_="note"),
        element("dl", [_fact(name, value) for name, value in _facts(manifest, scores)]),
    )


def _headline(manifest: Manifest, scores: Scores) -> list[Child]:
    """What replacing everything costs, as good or bad as it is."""
    whole = scores.splice.propagated
    rise, before = whole.ce_increase.value, scores.ce_original.value
    mean = scores.controls["mean_ablation"].ce_increase.value
    return [
        f"With {replaced(manifest.parts)} replaced by sparse features, the next-token loss "
        f"{'rises' if rise >= 0 else 'falls'} by ",
        element("b", f"{plain(abs(rise))} nats"),
        f", from {plain(before)} to {plain(before + rise)}; replacing them by their mean output "
        f"costs {plain(mean, 2)}. The most likely next token stays the same at ",
        element("b", percent(whole.top1_agreement.value)),
        " of positions, with ",
        element("b", f"{plain(scores.active_features_per_token, 0)} active features"),
        " per token.",
    ]


def replaced(parts: list[str]) -> str:
    """The parts in words: `all 5 MLPs and attention blocks (patterns included)`."""
    kinds = Counter(part.partition(".")[2] for part in parts)
    mlps, attentions, patterns = kinds["mlp"], kinds["attn"], kinds["q"]
    known = mlps + attentions + 2 * patterns == len(parts) and patterns == kinds["k"]
    if not parts or not known or patterns not in (0, attentions):
        return f"{len(parts)} parts"
    included = " (patterns included)" if patterns else ""
    if mlps and attentions:
        both = f"{mlps} MLPs and {attentions} attention blocks"
        together = f"all {mlps} MLPs and attention blocks" if mlps == attentions else both
        return together + included
    return f"{mlps} MLPs" if mlps else f"{attentions} attention blocks{included}"


def _precisely(scores: Scores) -> str:
    whole = scores.splice.propagated
    spread = interval(whole.ce_increase)
    words = [f"95% interval of the rise: {spread} nats."] if spread else []
    words.append(f"KL from the original: {plain(whole.kl.value)} nats.")
    words.append("Held-out text; every part reads what the replaced parts before it wrote;")
    words.append("no error terms.")
    return " ".join(words)


def _facts(manifest: Manifest, scores: Scores) -> list[tuple[str, Child]]:
    subject, text, code = manifest.subject, manifest.text, manifest.code
    commit = f" at {code.commit[:10]}" if code.commit else ""
    return [
        ("Family", subject.family),
        ("Parameters", short(subject.parameters)),
        ("Layers", count(subject.n_layers)),
        ("Width", count(subject.d_model)),
        ("Weights", element("code", subject.fingerprint[:12], title=subject.fingerprint)),
        ("Text", text.name),
        ("Tokens", count(scores.tokens)),
        ("Held out", count(text.heldout_tokens)),
        ("Alive latents", percent(scores.alive_fraction)),
        ("Time", f"{duration(scores.seconds)}, {scores.threads} threads"),
        ("Peak memory", size(scores.peak_rss_bytes)),
        ("Seed", str(manifest.seed)),
        ("unweave", code.version + commit),
    ]


def _fact(name: str, value: Child) -> Markup:
    return element("div", element("dt", name), element("dd", value))
