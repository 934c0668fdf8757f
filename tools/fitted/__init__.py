"""The fitted solver measured: see measure.py."""
