"""Batches of samples over one or many devices."""
