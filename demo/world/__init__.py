"""The demo world: seeded scenes of coloured shapes, drawn as small pictures and written in CIRCO's file layout."""
