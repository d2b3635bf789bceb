"""GENERATE: the teacher makes pairs, pairs go into shards."""
