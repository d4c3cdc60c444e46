"""What lies beside weights is read, or refused in one sentence that names file and place."""

import pytest
from pydantic import BaseModel

from unweave.artifact.spec_folder import spec_in
from unweave.errors import UserError


class Shape(BaseModel):
    width: int


def test_a_spec_is_read(tmp_path):
    (tmp_path / "spec.json").write_text('{"width": 3}')
    assert spec_in(tmp_path, Shape, "one shape").width == 3


@pytest.mark.parametrize(
    ("text", "place"),
    [('{"width": "3"}', "width"), ("[", "the whole"), ('{"width": 3.5}', "width")],
)
def test_what_does_not_fit_is_named(tmp_path, text, place):
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(UserError, match=rf"spec.json does not describe one shape, at {place}"):
        spec_in(tmp_path, Shape, "one shape")


def test_a_folder_without_one_is_named(tmp_path):
    with pytest.raises(UserError, match=r"No spec.json in .*: point at the folder of one shape"):
        spec_in(tmp_path, Shape, "one shape")
