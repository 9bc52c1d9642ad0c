"""The whole night on the whole node: who is promised a backup, who got one, and how its time is shared."""
