"""Ids, clock and telemetry: what every room stands on."""
