"""How much of the night's time a running backup has to leave to the guests that are still to come. Pure.

The window does not grow. So a backup may be slowed by as much as is left when everybody behind it has what it needs:

    slack = time until the window closes - this backup alone - the others alone, with their error

Those behind it will be slowed too, by what slowing has cost them lately. Where the slack does not suffice for all of
them it is shared in proportion to these costs; a guest that was never slowed leaves it all to the one that runs now.
"""

from __future__ import annotations

from collections.abc import Sequence

from pvehook.rules.forecast import Errors, Expected
from pvehook.rules.governor_readings import NightShare, Others


def share(this: Expected | None, coming: Sequence[Expected], left_s: float) -> NightShare:
    """Of this backup, with the guests behind it, of the `left_s` seconds until the window closes."""
    if not coming:
        return NightShare(None, this.alone_s if this is not None else None)
    errors = Errors()
    for each in coming:
        errors = errors.plus((each.longest_s - each.expected_s) * each.alone_s / each.expected_s)
    alone_s = sum(each.alone_s for each in coming) + errors.together_s
    costs_s = sum(each.expected_s - each.alone_s for each in coming)
    cost_s, this_alone_s = (this.expected_s - this.alone_s, this.alone_s) if this is not None else (0.0, 0.0)
    slack_s = max(left_s - this_alone_s - alone_s, 0.0)
    kept_s = min(costs_s, slack_s * costs_s / (costs_s + cost_s)) if costs_s > 0 else 0.0
    return NightShare(Others(len(coming), alone_s + kept_s), this.alone_s if this is not None else None)
