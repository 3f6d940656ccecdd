"""Models: paths, networks' predictions, fields, closed forms and divergences."""
