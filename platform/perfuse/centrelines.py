"""clDice of a stored prediction, tile by tile.

A skeleton follows from the whole mask, so that a tiled one is not exactly that of the whole: each tile is thinned with `OVERLAP`
voxels around it, and differs where a vessel is thicker than that or a loop does not fit into a tile.
"""

from perfuse.catalog import Scan
from perfuse.counting import at_least, counted_mask, truth_mask
from perfuse.geometry import Box, blocks
from perfuse.metrics import CentrelineCounts, centreline_counts
from perfuse.passes import over_blocks

TILE = (256, 256, 256)
OVERLAP = 32


def centrelines(scan: Scan, prediction: str, truth: str, threshold: int | None = None) -> CentrelineCounts:
    """Count the centrelines of both; against sparse truth its `sensitivity` is exact, the rest says nothing.

    threshold: of 255, by default the prediction's own. Raises ScanError for missing labels, or when no threshold is known.
    """
    predicted, whole = at_least(scan, prediction, threshold), Box.whole(scan.shape_zyx)

    def count(owned: Box) -> CentrelineCounts:
        box = owned.grown((OVERLAP,) * 3).intersect(whole)
        masks = truth_mask(scan, truth, box), predicted(box), counted_mask(scan, (truth, prediction), box)
        return centreline_counts(*masks, owned.relative_to(box.start).slices)

    tiles = list(blocks(scan.shape_zyx, TILE))
    return sum(over_blocks(tiles, f"centrelines of {scan.info.id}", count), CentrelineCounts())
