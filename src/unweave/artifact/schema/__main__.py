"""Writes the schema files."""

from unweave.artifact.atomic import write_text
from unweave.artifact.schema import FOLDER, schemas

for name, content in schemas().items():
    write_text(FOLDER / name, content)
