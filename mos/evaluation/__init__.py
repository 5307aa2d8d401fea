"""Evaluation of models: which ones, with which weights, on which engine."""
