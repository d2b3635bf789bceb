"""`dakd refine`: pairs from which hard pixels are ignored and of which hard ones are repeated (see `refine.py`)."""
