"""Runs: training, sweeps, reports."""
