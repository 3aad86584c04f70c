"""Servers elsewhere that answer for us: one client for each, and what it takes to depend on several."""
