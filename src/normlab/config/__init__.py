"""The configuration: its schemas, their validation, and error messages about it."""
