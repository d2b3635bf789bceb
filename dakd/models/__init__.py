"""Nets: the teacher (U-Nets and their joint net) and the students by name; rivals/ has the nets of comparison."""
