"""What follows from a scan's voxels and labels, and has to be made again when these change."""

from perfuse import locks, organ_statistics, quicklook, storage
from perfuse.catalog import ORGAN, Scan
from perfuse.console import say
from perfuse.errors import BusyError


def refresh(scan_url: str) -> str:
    """Make the statistics inside the organ and the picture anew where they are not up to date; returns the picture's URL.

    Raises BusyError when the organ mask is just being written.
    """
    url = Scan.open(scan_url).url
    with storage.reaching(url):
        with locks.writing(url, f"label-{ORGAN}"):
            organ_statistics.refresh(Scan.open(url))
        try:
            with locks.writing(url, "picture"):
                return quicklook.write(Scan.open(url))
        except BusyError:
            say(
                f"somebody else draws the picture of {url} just now; should it lack something: perfuse scan refresh {url}"
            )
    return quicklook.path(url)
