"""What an activation function is told."""

from pydantic import BaseModel, ConfigDict


class Chosen(BaseModel):
    """One member of a family of settings, told from the others by its `kind`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
