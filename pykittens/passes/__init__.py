"""Passes over a program, one per file; `prepare` runs them in order."""

from ..program import Program
from .aligned import align_named_barriers
from .elect import elect_roles
from .fences import insert_fences
from .inflight import analyse_inflight
from .lanes import insert_lane_barriers
from .maps import collect_maps
from .polling import mark_polling
from .read_fences import place_read_fences
from .registers import check_budgets
from .remote import mark_remote
from .scratch import insert_scratch_barriers
from .shared_plan import plan_shared
from .uniformity import check_uniform


def prepare(program: Program) -> None:
    """All that a traced program needs before a back end takes it."""
    insert_scratch_barriers(program)
    check_uniform(program)
    elect_roles(program)
    align_named_barriers(program)
    insert_lane_barriers(program)
    insert_fences(program)
    place_read_fences(program)
    analyse_inflight(program)
    mark_polling(program)
    collect_maps(program)
    mark_remote(program)
    check_budgets(program)
    plan_shared(program)
