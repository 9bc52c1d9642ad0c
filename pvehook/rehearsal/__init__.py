"""Plays vzdump and guests: `pvehook rehearse`, the demo and the tests' player are this one thing."""
