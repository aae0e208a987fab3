"""Draws the demo's pictures and queries, in CIRCO's layout."""

from cvsi.core import params, stage_runner
from cvsi.core.console import say
from cvsi.core.paths import WORLD, whole_or_absent
from demo.world.dataset import draw


def world() -> None:
    """Draw the demo world: data/demo."""
    sizes = params.load().world
    with whole_or_absent(WORLD) as folder:
        draw(folder, sizes)
    say(f"{sizes.gallery:,} images, {sizes.val:,} labelled and {sizes.test:,} hidden queries drawn")


if __name__ == "__main__":
    stage_runner.run(world)
