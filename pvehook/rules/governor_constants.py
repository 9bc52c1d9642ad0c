"""Every number of the governor, in one table. Speeds are bytes per second, times seconds, latencies milliseconds.

Each line says what the number was measured from: a prototype (QEMU's block layer with Proxmox's own backup code, disks
shared by guest and backup); the bench (tests/bench/governor.py) with its setup; the modelled backups of
tests/rules/test_governor_nights.py; how QEMU 7.2 and 10.0 behave. A limit is chosen, not measured.
"""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024
UNLIMITED: Final = 0  # QEMU: speed 0 is no limit
MIN_BYTES_PER_S: Final = MIB  # QEMU: it copies in steps of up to 1 MiB, so below one per second a limit is a stop

# How often QEMU is sampled
SAMPLE_EVERY_S: Final = 0.5  # prototype: 0.1 to 1 s made little difference
AWAITED_EVERY_S: Final = 0.03  # bench one-disk: at 0.1 s p99 1.05-1.22 times that of a fixed limit, now 0.94-1.20
YOUNG_EVERY_S: Final = 0.1  # bench raid: while a job starts, the guest waits for what is seen late
ACTIVITY_S: Final = 0.2  # run_cost: for at least so long a guest is sampled before its job, which takes a second or two
YOUNG_S: Final = 3.0  # the same, after a job has appeared

# Reading the guest's latency
MIN_REQUESTS: Final = 8  # bench idle: fewer are no average; such a guest is sampled for longer instead
LONGEST_READING_S: Final = 2.0  # the same: then the reading counts, however few requests it has
LONGEST_IDLE_READING_S: Final = 1.5  # bench raid-on-off: half of IDLE_AFTER_S, so that two of them are enough
TAIL_PART: Final = 1 / 3  # bench: in an ordinary mixture a third of the p99 is about the mean
LOST_AFTER_S: Final = 5.0  # a limit: without a sample for this long the guest's state is unknown
ROUNDING_S: Final = 1e-6  # a limit: a smaller difference of times is rounding

# Who suffers
SUFFERS_ABOVE: Final = 1.5  # × target. bench raid: a little above it is not worth a backup twice as long
SUFFERS_IN_FLIGHT: Final = 0.9  # requests in flight. bench idle: one log line per second is not held up by 200 ms
CLEARLY_ABOVE: Final = 2.0  # × target, and
CLEARLY_IN_FLIGHT: Final = 1.75  # requests in flight: no doubt any more
CLEAR_EVIDENCE, EVIDENCE = 1.0, 0.5  # of one reading; a sum of 1 starts a trial. bench idle: once may be chance
IDLE_CLEAR_EVIDENCE, IDLE_EVIDENCE = 0.5, 0.2  # bench idle: two backups of five were slowed with the figures above
SUFFERING_KEPT: Final = 60  # a limit: readings of a guest that suffers, for their average
IDLE_IN_FLIGHT: Final = 0.1  # an idle guest has less in flight, and
IDLE_REQUESTS_PER_S: Final = 5.0  # fewer requests: on quick disks a busy guest has few in flight too (real guest)
IDLE_AFTER_S: Final = 3.0  # backups: then it is idle, and not stuck

# The slow start
START_BYTES_PER_S: Final = 16 * MIB  # bench raid: the guest does not feel it; at full speed it stalled for 1-2 s
START_SETTLING_S: Final = 1.5  # bench one-disk: what the workers sent before the first limit has gone through by then
START_READING_S, QUIET_READING_S = 0.2, 0.3  # backups; the second where the guest sends few requests
START_REQUESTS: Final = 4  # backups: enough for a reading of the first start, where a mistake costs little
GROWTH, CAREFUL_GROWTH, LAST_GROWTH = 2.0, 1.4, 1.25  # × per reading: room, little room, none. backups
NEIGHBOURS_GROWTH, FAR_BELOW = 1.05, 0.35  # for a neighbour's sake; × target: room. node_model: 1.15 p99 60 ms, this 33
MORE_THAN_REACHED: Final = 1.3  # × the speed at which a start for a neighbour's sake stays. node_model, raid
FIRST_RESTART_S: Final = 5.0  # bench fast: a start ended by chance kept a backup at a third of its speed
RESTART_FACTOR: Final = 40.0  # × between one start and the next. node_model, one-disk: each adds 13 ms to the p99
NEIGHBOURS_RESTART_S: Final = 120.0  # for a neighbour's sake at least. node_model, raid: at 5 s p99 52 instead of 33 ms
AT_ONCE_ABOVE: Final = 1.8  # × target. bench fast: less is chance once, so it has to be seen twice
AT_ONCE_MS: Final = 30.0  # the same: on a quick disk one slow request in twenty is above the target
NOT_REACHED: Final = 1 / 3  # × its limit. backups: a start that gets no more than this has all that the disks give
BURST: Final = 2.0  # × its limit. QEMU: only what was sent before the limit is copied that fast
MIN_BURST_PART: Final = 0.6  # × burst: at least as fast is the free backup. backups
FREE_KNOWN_S: Final = 5.0  # backups: before that the guest has not queued up beside the free backup
FREE_MEMORY_S: Final = 60.0  # bench neighbours: for how long the free speed is remembered

# The trial
FIRST_CUT, LATER_CUT = 0.3, 0.5  # × the speed reached. prototype; after a failed trial less is risked
SETTLING_S: Final = 0.7  # QEMU with 16 workers: a lower limit acts after 0.5 s; the guest's queue follows
LONGEST_SETTLING_S: Final = 2.5  # QEMU with 64 workers: 1.9 s; until then a speed may also be set late (backups)
COME_DOWN: Final = 1.5  # × its limit: as low it has come down. QEMU copies 1 MiB at once, so short samples are uneven
COME_DOWN_SAMPLES: Final = 4  # the same
TRIAL_S, LATER_TRIAL_S = 0.8, 3.0  # bench neighbours: after a failed trial longer, to see past a pause of others
STILL_FALLING: Final = 0.8  # × the reading before: a trial goes on. bench one-disk: one in six was given up too early
LONGEST_TRIAL_S: Final = 4.0  # a limit
HALVED: Final = 0.5  # × the latency beside the free backup. bench neighbours, beyond: less is not worth another trial
NEVER_GOOD_MS: Final = 100.0  # bench neighbours: where others push the target above this, reaching it is no success
FIRST_REST_S, LONGEST_REST_S = 60.0, 900.0  # a limit: no trial for this long after one that failed; doubles

# Throttling
GAIN_P, GAIN_I = 0.3, 0.6  # prototype
MIN_ERROR, MAX_ERROR = -1.5, 0.35  # prototype; above 0.7 there. bench raid: a faster way up overshoots
SATURATION_PART: Final = 0.85  # × the speed at which latency jumped. bench raid: below it, raise with care
TRIAL_SATURATION_PART: Final = 0.75  # × the speed before the trial: the same, while nothing else is known
MIN_SATURATION_PART: Final = 0.6  # × free speed. bench neighbours: where it jumps far below, others have a part in it
CAREFUL_PER_S: Final = 0.02  # backups: so much faster per second above it
SATURATION_AGAIN_S: Final = 2.0  # backups: until then, what is above the target has queued up before the last cut
ROOM_BELOW: Final = 0.6  # × target. backups: between this and the target the speed stays
HEADROOM: Final = 1.5  # × the speed reached. prototype: a higher limit is not felt when it is needed
UNBOUND_AFTER_S: Final = 2.0  # backups: a limit not reached for this long, with nobody suffering, is none
SHORT_AFTER_S: Final = 5.0  # bench neighbours: a speed not reached for this long is not the backup's own
NEARLY: Final = 0.9  # backups: where the lowest speed allowed is this part of the free one, throttling has no room
MIN_CHANGE: Final = 0.02  # a limit: smaller changes are not made
JUDGED_AFTER_S: Final = 5.0  # bench neighbours: by then the throttled backup has reached the target, or paid
JUDGED_FAST_AFTER_S: Final = 15.0  # for a neighbour's sake, where it is faster than in its trial. node_model: at 10 s a
# neighbour that comes on with 500 requests a second is given up in half of the nights, and stalls as without a governor

# The lowest speed allowed
WINDOW_MARGIN: Final = 0.9  # × the time until the window closes. a limit
COPIES_ALONE: Final = 1.2  # × its limit. QEMU: above that it copies the guest's own first writes, which no limit stops

# Who steers
RANKED_S, RANKED_SAMPLES = 1.5, 8  # a limit: a patient's need is judged by the samples of so long, and of no more
FRESH_S: Final = 6.0  # a limit: not seen for longer, nobody knows how a patient is
TAKES_OVER_ABOVE: Final = 1.5  # × the need of the one that steers: they shall not take turns at every sample
MOST_ASIDE: Final = 3  # a limit: with so many put aside it is other load, and nobody new is tried
TRIAL_LOOK_S: Final = 0.25  # as SAMPLE_EVERY_S, while it matters
BUSY_LOOK_S, QUIET_LOOK_S = 1.0, 30.0  # a limit: QEMU is asked so often of a patient that is well

# The pace beside a busy neighbour (tests/rules/node_model.py: one that is busy 10 s of every 30 s)
PACE_PART: Final = 0.95  # × what the disks give: neighbours stall for half as long as without, 0.9 is no better
PACE_REACHED: Final = 0.96  # × the limit: less is not reached. QEMU copies 1 MiB at once, so a second is uneven
PACE_FIRST_S, PACE_READING_S = 2.0, 1.0  # for the first reading, which is of the backup without a limit, and the others
PACE_HELD_S: Final = 20.0  # a limit: for so long it is not tried whether there is more
PACE_GROWTH, PACE_MOST_GROWTH = 0.02, 1.0  # × the limit, each second; the first doubles until it is the other
