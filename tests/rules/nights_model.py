"""Months of nights on paper: guests whose backups vary, one window, and vzdump going through them by their VMID.

Seeded, on a clock of its own. A guest's backup varies by 10 to 15 % from one night to the next (log-normal), grows or
shrinks slowly, takes 1.4 to 2.2 times as long on one day of the week if it has such a day, and some are slowed a little
by their governor. Every decision is the rules'.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from pvehook.rules.fair_turns import GivesWay, Night, Waiting, gives_way
from pvehook.rules.forecast import DAY_S, Expected, PastBackup, expected, rates_of
from pvehook.settings import WhenShort

BYTES_PER_S = 60e6
KEPT = 30
Past = tuple[float, tuple[float, float, float]]
"""When a backup began, and what `Guest.backup` gave."""


class Guest:
    def __init__(self, vmid: int, mean_s: float, seed: int, *, is_even: bool = False) -> None:
        self.vmid, self.mean_s = vmid, mean_s
        self.chance = random.Random(seed * 1000 + vmid)
        self.spread = 0.0 if is_even else self.chance.uniform(0.10, 0.15)
        self.growth = 0.0 if is_even else self.chance.uniform(-0.002, 0.003)
        self.full_day = None if is_even else self.chance.choice([None, None, *range(7)])
        self.full_factor = self.chance.uniform(1.4, 2.2)
        self.slowed_share = 0.0 if is_even else self.chance.choice([0.0, 0.0, 0.1])
        self.size_bytes = mean_s * BYTES_PER_S * self.chance.uniform(0.8, 1.8)

    def backup(self, night: int) -> tuple[float, float, float]:
        """Its length, what slowing added to it, and the bytes read."""
        alone_s = self.mean_s * math.exp(self.growth * night + self.chance.gauss(0.0, self.spread))
        if self.full_day is not None and night % 7 == self.full_day:
            alone_s *= self.full_factor
        cost_s = alone_s * self.slowed_share * self.chance.uniform(0.7, 1.3)
        return alone_s + cost_s, cost_s, alone_s * BYTES_PER_S


class Forecast(NamedTuple):
    night: int
    took_s: float
    was: Expected


class Months(NamedTuple):
    """How they went."""

    backed_up: Mapping[int, Sequence[int]]
    """By guest, in which nights."""
    gave_way: Sequence[tuple[int, int, GivesWay]]
    """Night, guest and why."""
    late: Sequence[tuple[int, int]]
    """Night and guest: refused because the window had closed."""
    forecasts: Sequence[Forecast]
    nights: int

    def longest_wait(self, since: int = 0) -> tuple[int, int]:
        """How many nights old somebody's last good backup was at most, and whose. The night before the first counts
        as one in which everybody was backed up."""
        waits = {}
        for vmid, nights in self.backed_up.items():
            seen = [-1, *nights, self.nights]
            waits[vmid] = max(after - before for before, after in pairwise(seen) if after >= since)
        vmid = max(waits, key=lambda each: waits[each])
        return waits[vmid], vmid


def months(
    guests: Sequence[Guest],
    window_s: float,
    nights: int,
    when_short: WhenShort = "rotate",
    running_guest: Literal["finish", "cancel"] = "finish",
) -> Months:
    """Plays them."""
    past: dict[int, list[Past]] = {each.vmid: [] for each in guests}
    backed_up: dict[int, list[int]] = {each.vmid: [] for each in guests}
    cancelled: dict[int, list[Past]] = {each.vmid: [] for each in guests}
    turns: dict[int, float] = {}
    gave_way, late, forecasts = [], [], []
    for night in range(nights):
        began_s = now_s = night * DAY_S
        took = {each.vmid: each.backup(night) for each in guests}
        rates = [rate for each in past.values() for rate in rates_of([PastBackup(0.0, *of[1]) for of in each[-2:]])]
        known = {each.vmid: _expected(each, past[each.vmid], cancelled[each.vmid], began_s, rates) for each in guests}
        refused: list[Waiting] = []
        for number, guest in enumerate(guests):
            left_s = began_s + window_s - now_s
            if left_s <= 0:
                late.append((night, guest.vmid))
                continue
            waiting = [
                Waiting(
                    each.vmid,
                    was.alone_s if was is not None else 0.0,
                    was.longest_s - was.expected_s if was is not None else 0.0,
                    tuple(now_s - at_s for at_s, _ in past[each.vmid][:-5:-1]),
                    now_s - turns[each.vmid] if each.vmid in turns else None,
                )
                for each in guests[number:]
                for was in (known[each.vmid],)
            ]
            if when_short == "rotate":
                why = gives_way(waiting, refused, Night(left_s, window_s, running_guest == "cancel"))
                if why is not None:
                    gave_way.append((night, guest.vmid, why))
                    refused.append(waiting[0])
                    continue
            turns[guest.vmid] = now_s
            took_s = took[guest.vmid][0]
            if running_guest == "cancel" and took_s > left_s:
                cancelled[guest.vmid].append((now_s, (left_s, 0.0, 0.0)))
                now_s += left_s
                continue
            if (forecast := known[guest.vmid]) is not None:
                forecasts.append(Forecast(len(past[guest.vmid]), took_s, forecast))
            past[guest.vmid] = [*past[guest.vmid], (now_s, took[guest.vmid])][-KEPT:]
            backed_up[guest.vmid].append(night)
            now_s += took_s
    return Months(backed_up, gave_way, late, forecasts, nights)


def _expected(
    guest: Guest, past: Sequence[Past], cancelled: Sequence[Past], now_s: float, rates: Sequence[float]
) -> Expected | None:
    known = [PastBackup(now_s - at_s, *of) for at_s, of in past]
    known += [PastBackup(now_s - at_s, *of, is_whole=False) for at_s, of in cancelled]
    return expected(known, guest.size_bytes, rates)
