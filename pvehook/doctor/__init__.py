"""What on this node makes backups stall or get lost: checks with evidence, and the command that fixes each.

    finding.py    what a check finds, and how it is fixed
    checks.py     all groups of checks, and one look with all of them
    *_facts.py    one group's facts, read from the node within a deadline
    *_checks.py   the group's checks: pure functions of its facts
"""
