"""Rooms, one per op: api (public function), ops (contract with torch), reference (definition), faster variants."""
