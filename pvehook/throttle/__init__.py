"""Slows the backup that hurts: the governor and the writeback pacer."""
