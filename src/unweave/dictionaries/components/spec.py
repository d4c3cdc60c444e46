"""What a set of parameter components is, apart from its weights."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator


class MatrixSpec(BaseModel):
    """One weight matrix and how many rank-one pieces stand for it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Where the `nn.Linear` lies in the target, such as `layers.0.mlp_in`."""
    d_in: PositiveInt
    """Inputs of the matrix."""
    d_out: PositiveInt
    """Outputs of the matrix."""
    n_components: PositiveInt
    """Rank-one pieces (C); may exceed the matrix's rank."""
    gate_width: PositiveInt = 16
    """Hidden neurons of each piece's gate."""


class ComponentsSpec(BaseModel):
    """Everything needed to rebuild the components of a network; tensors lie beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["components"] = "components"
    """What the folder holds."""
    matrices: tuple[MatrixSpec, ...]
    """The decomposed matrices, in the order in which the target runs them."""

    @model_validator(mode="after")
    def _names_differ(self) -> "ComponentsSpec":
        names = [matrix.name for matrix in self.matrices]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"matrices must be there and have different names, not {names}")
        return self
