"""What if: requests and reclaims of a recorded or drawn month, on a definition, in minutes or seconds of one core.

The policies are the ones that run in production: admission, batching, scaling, idle rule, the jobs' queue, deadlines,
checkpoint intervals. What is modelled is the world around them: nodes, starts, arrivals, how long the work takes.
"""

from heliostat.simulate.run import Level, Scenario, simulate

__all__ = ["simulate", "Scenario", "Level"]
