"""Serving MoS adapters in vLLM as they are saved: a plugin that vLLM finds by itself."""
