"""Draws the demo's pictures and queries, in CIRCO's layout."""

from cvsi import params, stage
from cvsi.console import say
from cvsi.places import WORLD, whole_or_absent
from cvsi.world.dataset import draw


def world() -> None:
    """Draw the demo world: data/demo."""
    sizes = params.load().world
    with whole_or_absent(WORLD) as folder:
        draw(folder, sizes)
    say(f"{sizes.gallery:,} images, {sizes.val:,} labelled and {sizes.test:,} hidden queries drawn")


if __name__ == "__main__":
    stage.run(world)
