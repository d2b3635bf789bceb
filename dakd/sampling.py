"""The solvers of the sampler and the spacings of their timesteps, by name, and which of them go together.

The settings and the sampler read it; the sampler also runs where pydantic, which the settings need, is not installed.
"""

from __future__ import annotations

from typing import Literal, get_args

Solver = Literal["ddim", "dpmpp_2m", "heun"]
Spacing = Literal["leading", "trailing", "logsnr"]

# Those on which a solver is no farther from a fine solution than ddim is with as many calls of the net.
_SPACINGS_OF = {"ddim": get_args(Spacing), "dpmpp_2m": ("trailing", "logsnr"), "heun": ("logsnr",)}


def spacing_of(solver: str, spacing: str | None) -> str:
    """The spacing, or the solver's own where it is None."""
    return spacing or ("leading" if solver == "ddim" else "logsnr")


def check_solver(solver: str, spacing: str | None, eta: float = 0.0) -> None:
    """ValueError for a solver or spacing that does not exist, or that does not go with the other settings."""
    spacing = spacing_of(solver, spacing)
    for name, value, known in (("solver", solver, get_args(Solver)), ("spacing", spacing, get_args(Spacing))):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected {', '.join(known[:-1])} or {known[-1]}")
    if spacing not in _SPACINGS_OF[solver]:
        raise ValueError(
            f"solver {solver} was given with spacing {spacing}, on which it overshoots in the last steps, where the "
            f"noise falls most; expected {' or '.join(_SPACINGS_OF[solver])}; set spacing to logsnr, or solver to ddim"
        )
    if solver == "heun" and eta > 0:
        raise ValueError(f"eta is {eta:g}, and solver heun has no stochastic form; set eta to 0, or solver to dpmpp_2m")


def check_num_steps(num_steps: int, num_timesteps: int, name: str = "sampling_steps") -> None:
    """ValueError for more steps than the schedule has timesteps."""
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(
            f"{name} is {num_steps} with a schedule of {num_timesteps} timesteps; set {name} to 1..{num_timesteps}"
        )
