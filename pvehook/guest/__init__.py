"""Talking to one VM over its unix sockets, which are hostile ground."""
