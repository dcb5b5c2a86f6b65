"""`python -m iiot simulate`: replays recorded series as devices that connect to a running portal like any other device."""

from iiot.simulate.command import simulate

__all__ = ["simulate"]
