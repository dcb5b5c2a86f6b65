"""The commands of `python -m iiot`, one file per group: parse, call one service, print."""
