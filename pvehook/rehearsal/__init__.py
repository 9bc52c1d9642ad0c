"""Plays vzdump and guests: `pvehook rehearse`, the demo and the tests' player are this one thing."""

import os

PROGRAM = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The directory that holds this `pvehook`: what is started from here runs the same program."""
