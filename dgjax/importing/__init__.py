"""Models that other libraries trained, as dgjax's own: weights, names, schedules."""
