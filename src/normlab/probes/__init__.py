"""Measurements on a net: numbers out, and no trace left."""
