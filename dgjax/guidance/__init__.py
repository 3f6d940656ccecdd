"""Guides that steer log-density, and noise along its level sets."""
