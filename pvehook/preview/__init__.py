"""Previews tonight's run: what vzdump and pvehook would do, without starting a backup."""
