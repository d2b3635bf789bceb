"""Networks: the teacher's U-Nets and their joint net, and the students by name."""
