"""May a run, or a guest, be backed up now: the gate before the window."""
