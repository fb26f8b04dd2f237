"""The settings of what other workers hold copies of."""

from typing import Literal

from pydantic import Field

from runtime.section import Section


class MirrorConfig(Section):
    """The full pages of every sequence that decodes are copied to `copies` other workers as they fill, so that the
    death of its worker costs a transfer and no computation; 0 for none. Workers on another host come first, among them
    those of the role `on`. No more than `write_mib_s` leave a worker for all copies together. What waits for one holder
    is bounded: beyond `backlog_pages` the oldest is left out. A holder that takes longer than `patience_s` for a few
    pages is left alone for a while."""

    copies: int = Field(default=0, ge=0, le=2)
    on: Literal["prefill", "decode"] = "prefill"
    write_mib_s: float = Field(default=256.0, gt=0)
    backlog_pages: int = Field(default=8192, ge=1)
    patience_s: float = Field(default=5.0, gt=0, le=60)
