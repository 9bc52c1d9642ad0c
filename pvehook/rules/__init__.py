"""Decisions, pure: no I/O, no clock. A rule takes values and returns a verdict with its reasons."""
