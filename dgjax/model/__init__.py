"""Models: paths, parametrizations of networks, fields, closed forms and divergence estimators."""
