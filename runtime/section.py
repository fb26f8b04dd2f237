"""What every section of the configuration is, and the names in it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Also a Ray namespace, a Serve application and a folder.
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
