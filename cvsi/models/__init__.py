"""The engines that caption, edit and embed: one file per engine, and the code that identifies a model."""
