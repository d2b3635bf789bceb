"""EVALUATE: students on held-out images, the synthetic set beside the real one, and a report of the whole run."""
