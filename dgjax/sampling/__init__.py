"""Solves of the augmented equation: samples, likelihoods and log-density along trajectories."""
