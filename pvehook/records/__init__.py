"""What stays of a night: the journal and the tables an administrator reads."""
