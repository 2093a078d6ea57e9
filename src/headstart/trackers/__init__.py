"""Trackers of experiments, each through its own library: functions that take the events of a run."""
