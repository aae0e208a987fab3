"""The command line `cvsi`: one file per command. No stage imports this package."""
