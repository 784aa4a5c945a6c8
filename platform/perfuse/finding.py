"""Finding scans under a URL, and the label of a scan that is wanted."""

from collections.abc import Iterable, Sequence

from perfuse import storage
from perfuse.catalog import SUFFIX, Scan
from perfuse.console import say
from perfuse.errors import ScanError


def find_scans(root_url: str) -> list[Scan]:
    """All complete scans directly under a URL, by id; ScanError when there are none."""
    root = storage.normal(root_url)
    with storage.reaching(root):
        files = storage.filesystem(root)
        names = files.ls(root, detail=False) if files.exists(root) else []
    scans: list[Scan] = []
    for name in sorted(storage.name_of(str(n)) for n in names):
        if name.endswith(SUFFIX):
            scans.extend(_complete(storage.join(root, name)))
    if not scans:
        raise ScanError(f"No complete scans (folders named *{SUFFIX}) under {root}. Make some with `perfuse ingest`.")
    return scans


def _complete(url: str) -> Iterable[Scan]:
    try:
        return [Scan.open(url)]
    except ScanError as error:
        say(f"passed over: {error}")
        return []


def preferred_label(scan: Scan, names: Sequence[str]) -> str:
    """The first of `names` that the scan holds; ScanError when it holds none."""
    infos = scan.labels()
    for name in names:
        if name in infos:
            return name
    raise ScanError(
        f"Scan {scan.url} has none of the labels {', '.join(names)}. Its labels: {', '.join(infos) or 'none'}."
    )
