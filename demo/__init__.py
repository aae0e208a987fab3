"""The demo: a world of drawn pictures, and tiny models trained from scratch on scenes and instructions outside it."""
