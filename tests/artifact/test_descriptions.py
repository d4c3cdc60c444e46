"""The store of descriptions: what goes in comes out, found by word, byte for byte the same."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from unweave.artifact.descriptions import Description, Descriptions, write_descriptions
from unweave.artifact.feature_id import FeatureId, short_hash
from unweave.artifact.hashing import sha256_of_bytes, sha256_of_json
from unweave.errors import UserError

COLOURS = ["red", "blue", "green", "naïve", "don't"]


def said(parts: tuple[str, ...] = ("L2.mlp", "L10.mlp", "L2.attn")) -> list[Description]:
    return [
        Description(
            FeatureId(part, latent, "abcdef"),
            f"fires on {COLOURS[latent % 5]} things, number {latent}",
            {"kind": "token", "tokens": [latent, 1.5]},
            {"auroc": 0.5 + latent / 1000},
            12.25,
            turn,
            {"positions": [latent]},
        )
        for part in parts
        for latent in range(100)
        for turn in (0, 1)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "descriptions.sqlite"


def test_everything_comes_out_in_order(path: Path) -> None:
    shuffled = said()
    random.Random(0).shuffle(shuffled)
    assert write_descriptions(path, shuffled) == 600
    with Descriptions(path) as store:
        assert len(store) == 600
        assert list(store) == said(("L2.attn", "L2.mlp", "L10.mlp"))
        assert list(store.of_part("L10.mlp")) == said(("L10.mlp",))
        latest = store.latest(FeatureId("L2.mlp", 7, "abcdef"))
        assert latest is not None
        assert latest.round == 1
        assert store.latest(FeatureId("L2.mlp", 7, "000000")) is None
        assert store.faults() == []


def test_words_are_found_and_never_read_as_a_query(path: Path) -> None:
    write_descriptions(path, said(("L2.mlp",)))
    with Descriptions(path) as store:
        found = store.search("BLUE things", limit=1000)
        assert len(found) == 40
        assert all("blue" in one.text for one in found)
        assert [str(one.feature) for one in store.search("naïve 53")] == ["L2.mlp/53@abcdef"] * 2
        assert len(store.search("don't", limit=7)) == 7
        for hostile in ('"', "*", "text:red OR (", "NEAR(", "' ; DROP TABLE words", "", "  "):
            assert store.search(hostile) == []


def test_equal_rows_give_equal_bytes_in_any_order_and_process(path: Path, tmp_path: Path) -> None:
    write_descriptions(path, said())
    expected = sha256_of_bytes(path.read_bytes())
    for seed in ("1", "2"):
        script = (
            "import random, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
            "from test_descriptions import said, write_descriptions\n"
            "rows = said(); random.shuffle(rows); write_descriptions(Path(sys.argv[2]), rows)"
        )
        other = tmp_path / seed
        command = [sys.executable, "-c", script, str(Path(__file__).parent), str(other)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        assert sha256_of_bytes(other.read_bytes()) == expected


def test_other_rows_give_other_bytes(path: Path, tmp_path: Path) -> None:
    write_descriptions(path, said())
    write_descriptions(tmp_path / "less", said()[1:])
    assert path.read_bytes() != (tmp_path / "less").read_bytes()


def test_no_descriptions_at_all(path: Path) -> None:
    assert write_descriptions(path, []) == 0
    with Descriptions(path) as store:
        assert list(store) == store.search("x") == []


def test_twice_in_one_round_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="twice in one round"):
        write_descriptions(path, said() + said()[:1])
    assert not path.exists()


def test_damage_is_said(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no descriptions"):
        Descriptions(path)
    write_descriptions(path, said())
    content = path.read_bytes()
    for broken in (b"", b"not a database at all" * 100, content[:2000]):
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(UserError, match=r"broken is damaged or no store of descriptions"):
            Descriptions(tmp_path / "broken")


def test_a_lost_page_anywhere_is_found(path: Path) -> None:
    write_descriptions(path, said(("L2.mlp",)))
    content = path.read_bytes()
    for start in range(0, len(content), 4096):
        path.write_bytes(content[:start] + bytes(4096) + content[start + 4096 :])
        assert _looks_broken(path), f"page {start // 4096}"


def _looks_broken(path: Path) -> bool:
    try:
        with Descriptions(path) as store:
            return store.faults() != []
    except UserError:
        return True


@pytest.mark.parametrize(
    "text", ["L7.mlp/1234@3fa9c2", "L0.attn/0@000000", "model.layers.7/5@abcdef"]
)
def test_feature_ids_are_read_as_written(text: str) -> None:
    assert str(FeatureId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "L7.mlp/1234", "L7.mlp/01@3fa9c2", "L7.mlp/-1@3fa9c2", "L7.mlp/1@3FA9C2", "L7.mlp/1@3fa9c",
     "L7.mlp/1@3fa9c2 ", "/1@3fa9c2", "a/b/1@3fa9c2", "L7.mlp/٣@3fa9c2"],
)  # fmt: skip
def test_what_is_no_feature_id_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no feature id: write it like"):
        FeatureId.parse(text)


def test_the_short_hash_is_the_start_of_the_file_s(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    assert short_hash(tmp_path / "weights") == "ba7816"  # FIPS 180-2, appendix B.1


def test_the_digest_of_json_is_that_of_its_value() -> None:
    assert sha256_of_json({"a": [1, 2.5], "b": "é"}) == sha256_of_json({"b": "é", "a": (1, 2.5)})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": "1"})
