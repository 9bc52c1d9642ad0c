"""Plays vzdump: the phases, the freeze and the processes, in its order."""
