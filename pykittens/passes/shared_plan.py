"""Where each buffer lies in the block's shared memory, and whether it fits."""

from __future__ import annotations

from ..architectures import Architecture
from ..errors import ResourceError
from ..program import Program


def plan_shared(program: Program) -> None:
    """Sets every buffer's offset: the strictest alignment first, so that no gap is wider than it must be."""
    end = 0
    for buffer in sorted(program.buffers, key=lambda b: -b.align):
        end = -(-end // buffer.align) * buffer.align
        buffer.offset = end
        end += buffer.bytes
    program.shared_bytes = end


def check_shared(program: Program, arch: Architecture) -> None:
    """Refuses a program whose buffers do not fit on an architecture; says what takes how much."""
    limit = arch.shared_bytes
    if program.shared_bytes <= limit:
        return
    rows = [
        f"    {b.value.label}: {f'{b.count} x ' if b.count > 1 else ''}{b.item} = {b.bytes} bytes"
        for b in program.buffers
    ]
    raise ResourceError(
        f"kernel {program.name!r} wants {program.shared_bytes} bytes of shared memory; a block on {arch} has {limit}:\n"
        + "\n".join(rows),
        fix="use smaller tiles or fewer stages",
        location=program.location,
    )
