"""What a simulated run reports: traffic, work, bank conflicts, printed lines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html import escape

from ..errors import Diagnosis, Frame


@dataclass
class Conflicts:
    """Bank conflicts of one operation of the program: `passes` extra passes of shared memory over the whole run."""

    operation: str
    tile: str
    location: tuple[Frame, ...]
    passes: int = 0

    def __str__(self) -> str:
        line = f" at {self.location[0]}" if self.location else ""
        return f"{self.operation} of {self.tile}{line}: {self.passes} extra passes"


@dataclass
class Report:
    """A finished run. Bytes are counted by memory ("global", "shared"); operations once per unit of their scope."""

    blocks: int = 0
    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    flops: int = 0
    conflicts: list[Conflicts] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)  # of a run that finished: none

    @property
    def clean(self) -> bool:
        return not self.diagnoses

    @property
    def bank_conflicts(self) -> int:
        """Extra passes of shared memory over the whole run."""
        return sum(c.passes for c in self.conflicts)

    def _repr_html_(self) -> str:
        """What a notebook shows: a table of what moved, and the lines with bank conflicts."""
        facts = {
            "blocks": f"{self.blocks:,}",
            "operations": f"{sum(self.operations.values()):,}",
            "matrix FLOPs": f"{self.flops:,}",
            **{f"bytes read, {memory} memory": f"{self.read[memory]:,}" for memory in ("global", "shared")},
            **{f"bytes written, {memory} memory": f"{self.written[memory]:,}" for memory in ("global", "shared")},
            "bank conflicts": f"{self.bank_conflicts:,} extra passes",
            **{escape(f"{c.operation} of {c.tile}"): escape(str(c)) for c in self.conflicts},
        }
        return "<table>" + "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in facts.items()) + "</table>"

    def __str__(self) -> str:
        rows = [f"{self.blocks} blocks, {sum(self.operations.values())} operations, {self.flops:.3g} matrix FLOPs"]
        for memory in ("global", "shared"):
            rows.append(f"{memory} memory: {self.read[memory]} bytes read, {self.written[memory]} bytes written")
        rows.append(f"bank conflicts: {self.bank_conflicts} extra passes" + (":" if self.conflicts else ""))
        rows.extend(f"    {c}" for c in self.conflicts)
        return "\n".join(rows)
