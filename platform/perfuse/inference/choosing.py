"""The backend of a member: measured once, by the driver, on a batch of the very scan, and remembered in the scan.

What was chosen stays chosen for a model and a scan on a kind of device, for another backend gives other bits, until a job comes
that is worth trying more: what a small one took as it is usual does not bind a large one.
"""

import numpy as np

from perfuse import storage, volumes
from perfuse.bundle import Bundle
from perfuse.catalog import Scan
from perfuse.console import say
from perfuse.contract import Blend, Forward, Frozen, Threshold, read_by
from perfuse.errors import PerfuseError
from perfuse.inference.backends import Backend, compiled, eager_backends, usual, why_not_compiled
from perfuse.inference.engine import Engine, Fixed, Images
from perfuse.inference.logits import ONE, P_ONE, Seen, fuse
from perfuse.inference.slab import middle_batch
from perfuse.inference.trial import Seconds, Task, Trial, glimpse, trial, trial_elsewhere
from perfuse.normalisation import bounds, normalise

FEW = 300
"""Batches of a job that is not worth measuring for: it takes the usual backend."""
COMPILING = (20.0, 300.0)
"""Seconds that compiling gets: a tenth of the job, at most the second; where that is less than the first it is not tried."""


class Choice(Frozen):
    """A backend, and what was measured of it."""

    backend: Backend
    seconds: dict[str, Seconds]
    """Of each backend that was tried, on one batch of the scan."""
    unused: dict[str, str]
    """Why others were not."""
    largest_difference: float
    """Of a probability of that batch, from those of the network as it was trained: eager, float32, nothing folded."""
    swapped: float
    """Share of that batch's voxels that lie on the other side of the threshold."""

    def __str__(self) -> str:
        tried = ", ".join(f"{name} {taken.batch:.3g} s" for name, taken in self.seconds.items())
        why = "".join(f"; {name} is not used: {reason}" for name, reason in self.unused.items())
        return (
            f"{self.backend} (a batch: {tried}{why}); probabilities within {self.largest_difference:.2g} of those in "
            f"float32, {self.swapped:.3%} of voxels on the other side of the threshold"
        )


def choose(scan: Scan, bundle: Bundle, threshold: Threshold, device: str, batches: int) -> Choice:
    """Measure by which backend a member answers on a scan, remember it, and say so.

    batches: of the whole job. Raises PerfuseError when the network answers by no backend.
    """
    choice = _measure(bundle, _images(scan, bundle.contract.forward), threshold, device, batches, trial)
    remember(scan, bundle, device, choice)
    say(f"{bundle.uri or 'this model'} on {device}: {choice}")
    return choice


def foresee(scan: Scan, bundle: Bundle, threshold: Threshold, device: str) -> Choice:
    """Glimpse at the usual backend; nothing is compiled or remembered."""
    return _measure(bundle, _images(scan, bundle.contract.forward), threshold, device, 0, glimpse)


def remember(scan: Scan, bundle: Bundle, device: str, choice: Choice) -> None:
    """From now on a member answers on a scan by this backend."""
    group = volumes.open_group(scan.url, "r+").require_group(_place(bundle, device))
    group.attrs["choice"] = choice.model_dump(mode="json")


def remembered(scan: Scan, bundle: Bundle, device: str) -> Choice | None:
    """What was chosen before, unless it cannot be done here."""
    group = scan.group.get(_place(bundle, device))
    if group is None or "choice" not in group.attrs:
        return None
    choice = Choice.model_validate(group.attrs["choice"])
    return choice if choice.backend.startswith("eager") or why_not_compiled(device) is None else None


def settled(choice: Choice, bundle: Bundle, device: str, batches: int) -> bool:
    """Whether a job of so many batches would try nothing that was not tried for this choice."""
    eager = {name: seconds.batch for name, seconds in choice.seconds.items() if name.startswith("eager")}
    best = min(eager, key=eager.__getitem__)
    wanted: list[str] = [*_eager(bundle, device, batches)]
    if _to_compile(eager[best], batches) >= COMPILING[0]:
        wanted.append(best.replace("eager", "compiled"))
    return {*choice.seconds, *choice.unused}.issuperset(wanted)


def _eager(bundle: Bundle, device: str, batches: int) -> list[Backend]:
    precision = bundle.contract.forward.precision
    return [usual(precision, device)] if batches < FEW else eager_backends(precision, device)


def _to_compile(seconds: float, batches: int) -> float:
    """Seconds that compiling would get, where a batch takes so many."""
    return min(seconds * batches / 10, COMPILING[1])


def _place(bundle: Bundle, device: str) -> str:
    return f"perfuse/backends/{storage.digest_json([bundle.seen_digest(), device])[:16]}"


def _images(scan: Scan, forward: Forward) -> Images:
    window = bounds(scan, forward.normalisation)
    return middle_batch(
        forward, lambda box: normalise(scan.read_image(box), window, forward.normalisation), scan.shape_zyx
    )


def _measure(bundle: Bundle, images: Images, threshold: Threshold, device: str, batches: int, tried: Trial) -> Choice:
    import torch

    from perfuse.models import build

    forward = bundle.contract.forward
    network = build(forward.network).eval()
    network.load_state_dict(bundle.weights)
    results: dict[Backend, tuple[Seconds, Fixed]] = {}
    unused: dict[str, str] = {}
    for backend in _eager(bundle, device, batches):
        try:
            results[backend] = tried(Engine.of(network, forward, device, backend), images)
        except (PerfuseError, RuntimeError, TypeError, ValueError) as error:
            unused[backend] = " ".join(str(error).split())[:200]
    if not results:
        raise PerfuseError(f"{bundle.uri or 'The network'} does not answer: {'; '.join(unused.values())}")
    best = min(results, key=lambda name: results[name][0].batch)
    eager = results[best][0].batch
    limit = _to_compile(eager, batches)
    if limit >= COMPILING[0]:
        other = compiled(best)
        task = Task(backend=other, device=device, threads=torch.get_num_threads())
        found = why_not_compiled(device) or trial_elsewhere(bundle, images, task, limit)
        if isinstance(found, str):
            unused[other] = found
        else:
            results[other] = found
            if (eager - found[0].batch) * batches > found[0].first:
                best = other
    plain = Engine(network.to(device), forward, device, "eager-fp32").logits(images[: len(results[best][1])])
    difference, swapped = compared(results[best][1], plain, threshold, forward.network.class_names, forward.blend)
    return Choice(
        backend=best,
        seconds={name: seconds for name, (seconds, _) in results.items()},
        unused=unused,
        largest_difference=difference,
        swapped=swapped,
    )


def compared(
    answer: Fixed, plain: Fixed, threshold: Threshold, class_names: tuple[str, ...], blend: Blend = "logit"
) -> tuple[float, float]:
    """The largest difference of a probability, and the share of voxels on the other side of the threshold of their class.

    Both [n, classes · targets, h, w] in fixed point of the blend.
    """
    least = np.array([read_by(threshold, name) for name in class_names], np.uint8)
    masks, probabilities = [], []
    for logits in (answer, plain):
        by_class = np.moveaxis(logits.astype(np.int32).reshape(len(logits), len(least), -1), 1, -1)
        masks.append(fuse([Seen(by_class, 1, blend)]) >= least)
        probabilities.append(by_class / (255 * P_ONE) if blend == "probability" else 1 / (1 + np.exp(-by_class / ONE)))
    return float(np.abs(probabilities[0] - probabilities[1]).max()), float(np.mean(masks[0] != masks[1]))
