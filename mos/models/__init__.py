"""Base models: where they come from, their checks, loading, memory, and folders for others."""
