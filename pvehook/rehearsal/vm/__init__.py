"""Plays a VM: its monitor, its guest agent and its disks."""
