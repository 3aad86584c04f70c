"""Real object stores, each started once for a whole run of tests, and a proxy that breaks what passes through it."""
