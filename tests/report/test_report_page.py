"""The page holds what was planted, and nothing that reaches outside of it."""

import base64
import hashlib
import re
from pathlib import Path

import pytest
from report_artifact import Plan, write_artifact
from report_walk import Walk

from unweave.artifact.folder import open_artifact
from unweave.artifact.manifest import read_manifest
from unweave.report import write_report

PLANTED = (
    "With all 2 MLPs and attention blocks replaced by sparse features, the next-token loss rises "
    "by 0.218 nats, from 1.227 to 1.445; replacing them by their mean output costs 8.02.",
    "stays the same at 81.2% of positions, with 160 active features per token.",
    "95% interval of the rise: 0.207 to 0.229 nats. KL from the original: 0.231 nats.",
    "feedfacefeed",
    "3 min 41 s, 2 threads",
    "3.1 GB",
    "1.87M",
    "87.4%",
    "+1.013",
    "1.749 to 1.771",
    "799 to 825",
    "31.2%",
    "6.71",
    "The strongest neurons of each MLP.",
    "zero ablation",
    "+9.310",
    "82.6% to 84.0%",
    "777 descriptions",
    "0.740 to 0.760",
    "fires on",
    "+12.375",
    "−24.6",
    "Once upon a time",
    "The first 4 words agree.",
    "unweave check DIR",
    "training.lr",
    "3 min 00 s",
)


@pytest.mark.parametrize("words", PLANTED)
def test_every_planted_value_is_told(page: str, words: str) -> None:
    assert words in Walk(page).text


def test_the_page_is_well_formed_html(page: str) -> None:
    walk = Walk(page)
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert walk.tags.count("h1") == walk.tags.count("main") == walk.tags.count("script") == 1
    assert len(set(walk.ids)) == len(walk.ids)
    links = [value for _, name, value in walk.attributes if name == "href"]
    assert len(links) == 7
    assert {link.removeprefix("#") for link in links} <= set(walk.ids)


def test_nothing_reaches_outside_of_the_page(page: str) -> None:
    walk = Walk(page)
    for tag, name, value in walk.attributes:
        assert name not in {"src", "srcset", "style", "action", "data"}, (tag, name)
        assert not name.startswith("on"), (tag, name)
        assert "//" not in value, (tag, name, value)
    assert not {"link", "iframe", "img", "object", "embed", "base", "form"} & set(walk.tags)
    for own in walk.own.values():
        assert not re.search(r"url\(|@import|https?:|//|fetch|innerHTML|eval", own)


def test_the_policy_allows_the_own_style_and_script_alone(page: str) -> None:
    walk = Walk(page)
    policy = next(v for t, n, v in walk.attributes if t == "meta" and "default-src" in v)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(walk.own[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_the_marked_words_are_the_first_that_differ(page: str) -> None:
    marked = re.findall(r"<mark>(.*?)</mark>", page)
    assert marked == ["girl", "boy"]
    assert '<span class="same"> there was a little </span>' in page


def test_examples_show_the_token_that_fires_darkest_at_the_peak(page: str) -> None:
    feature = re.search(r'<article class="feature".*?</article>', page, re.DOTALL)
    assert feature is not None
    first = re.search(r'<p class="top".*?</p>', feature[0], re.DOTALL)
    assert first is not None
    peak = re.search(r'<bdi class="a9 peak" title="([\d.]+)">([^<]+)</bdi>', first[0])
    assert peak is not None
    # Latent j of the planted part fires on token j + 1.
    words, latent = Plan().words, int(re.search(r"/(\d+)@", feature[0])[1])  # type: ignore[index]
    assert peak[2].replace("⏎ ", "\n").replace("&quot;", '"').strip(" ") == words[latent + 1].strip(
        " "
    )
    assert f'title="among the strongest">{peak[1]}</span>' in first[0]


def test_feature_ids_are_those_of_the_artifact(artifact: Path, page: str) -> None:
    shown = re.findall(r'<code class="id">(.*?)</code>', page)
    assert len(shown) == 24
    opened = open_artifact(artifact)
    for name in shown:
        part, latent = name.split("@")[0].split("/")
        assert name == str(opened.feature_id(part, int(latent)))


def test_writing_twice_gives_equal_bytes_and_a_manifest_that_knows(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "one", Plan(layers=1, latents=8, rows=10))
    before = read_manifest(folder).identity
    first = write_report(folder).read_bytes()
    record = read_manifest(folder).files["report.html"]
    assert record.sha256 == hashlib.sha256(first).hexdigest()
    assert write_report(folder).read_bytes() == first
    assert read_manifest(folder).identity == before


@pytest.mark.slow
def test_sixty_parts_stay_below_three_megabytes(tmp_path: Path) -> None:
    plan = Plan(layers=30, latents=24, rows=24, context=64)
    path = write_report(write_artifact(tmp_path, plan))
    assert path.stat().st_size < 3_000_000
    assert len(re.findall('class="feature"', path.read_text(encoding="utf-8"))) == 120


def test_without_scores_per_feature_of_the_control_its_mean_is_drawn(tmp_path: Path) -> None:
    plan = Plan(layers=1, latents=8, rows=10, control=False)
    page = write_report(write_artifact(tmp_path, plan)).read_text(encoding="utf-8")
    assert "shuffled descriptions (mean)" in Walk(page).text
    assert 'class="mean"' in page
