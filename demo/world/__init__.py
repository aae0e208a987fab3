"""The demo world: random scenes of coloured shapes, rendered as small pictures and written in CIRCO's file layout."""
