"""Tables in Parquet files, column by column.

Equal columns give equal bytes under one version of Arrow: one fixed layout, no time stamp, no
schema note in the file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unweave.artifact.atomic import new_file
from unweave.errors import UserError

Column = np.ndarray | Sequence[str]
"""One column: a one-dimensional array, or a list of strings."""

EDGES: dict[str, str] = {
    "source": "string",
    "target": "string",
    "weight": "float",
    "kind": "string",
    "used": "float",
}
"""The columns of `graph/edges.parquet` with their Arrow types.

`source` is a feature id or `token/ID`, `target` a feature id or `logit/ID`; `kind` says how the
weight came about (`virtual`: from weights alone); `used` is how often both ends are active.
"""


def write_table(path: Path, columns: Mapping[str, Column]) -> None:
    """Write columns of equal length, in the order given; see `new_file` for what it raises."""
    table = pa.table({name: _arrow(values) for name, values in columns.items()})
    with new_file(path) as partial:
        pq.write_table(table, partial, version="2.6", compression="zstd", store_schema=False)


def read_table(path: Path, expect: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """Read every column as an array (strings as objects).

    `expect` gives the Arrow type wanted for each column (such as `EDGES`). UserError when the file
    is missing, is no Parquet, or has other columns.
    """
    if not path.is_file():
        raise UserError(f"No file {path}: it should hold a Parquet table")
    try:
        table = pq.read_table(path, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is truncated or no Parquet table ({error})") from error
    found = {field.name: str(field.type) for field in table.schema}
    if expect is not None and found != dict(expect):
        raise UserError(f"{path} has the columns {found} where {dict(expect)} are needed")
    return {name: table[name].to_numpy(zero_copy_only=False) for name in found}


def _arrow(values: Column) -> pa.Array:
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OU":
        return pa.array(values)
    return pa.array(values, type=pa.string())  # said outright: an empty list has no type
