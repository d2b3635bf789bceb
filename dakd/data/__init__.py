"""PREPARE: datasets on disk -> shards -> batches."""
