"""Standard library only: what must work when everything else is broken."""
