"""Models as folders: their specification, their weights, and the ones shipped with dgjax."""
