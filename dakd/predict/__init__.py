"""PREDICT: class maps, overlays and probabilities for images and folders of images."""
