"""The story of one backup job: the daemon, one job's phases in order, what runs beside them."""
