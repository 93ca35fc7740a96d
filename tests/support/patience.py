"""How long tests wait for what comes at once on a machine with nothing else to do."""

PATIENCE = 240.0
"""Seconds. Only something that hangs may use them up, and pytest's own limit for a test is longer."""
