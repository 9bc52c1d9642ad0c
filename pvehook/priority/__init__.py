"""The idle I/O class on every thread of a backup, and whether it can have an effect."""
