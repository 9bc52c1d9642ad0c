"""Meets PVE at the guest agent: freezes where it is safe, thaws when the backup job has begun."""
