"""Objectives, the trainer, and what is measured of what it trains."""
