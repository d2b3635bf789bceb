"""`dakd sample --convergence`: error against number of calls of the net, for one teacher, and the cheapest setting.

Every solver and spacing samples the same start noise with ever more calls, and is compared with the paper's 200 steps.
"""
