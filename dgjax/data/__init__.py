"""Data sets for training and evaluation, held in memory."""
