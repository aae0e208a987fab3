"""The demo's tiny models, trained from scratch on scenes and instructions that the demo world never shows."""
