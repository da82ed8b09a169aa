"""Policies: pure functions from what is known to what should be done. No clock, no network, no state of their own."""
