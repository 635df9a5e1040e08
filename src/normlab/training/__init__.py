"""Trains populations with Lightning: from configurations to results."""
