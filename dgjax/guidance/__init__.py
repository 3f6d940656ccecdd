"""Guides that steer the log-density, and noise along its level sets."""
