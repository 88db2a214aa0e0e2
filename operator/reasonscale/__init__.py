"""Serve reasoning models on Kubernetes and scale them by the chain of thought still to come."""

__version__ = "0.1.0"
