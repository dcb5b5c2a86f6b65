"""Use cases: functions that take a session first and know neither flask nor any device protocol."""
