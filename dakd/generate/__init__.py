"""The step `generate`: the teacher samples synthetic pairs, which are written as shards."""
