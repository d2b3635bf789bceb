"""`dakd check`: what a step would refuse, found before the first one."""
