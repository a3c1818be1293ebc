"""The rungs of promotion: how long networks on them are trained, on how many devices together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from search.plan.inputs import PlanInputs

MIN_PROMOTED = 10
# Of those that rankings are compared with, unless there are more devices, which would be idle.
MAX_TRUST = 24
# Trials are short enough for so many. Where rankings are compared, a third of them are for that: a
# predictor needs eight (`search.trust.predictor.MIN_NETWORKS`), and of five, the least that a
# ranking needs, one is lost where others slow the machine down. A graft compares more estimates,
# over networks that begin near their end.
FEWEST: Mapping[str, int] = {"supernet": 24, "zero-cost": 24, "proxy": 15, "graft": 30}
# On a large cluster a trial is short enough for this many, one after the other, on each device:
# else most devices would have nothing to do for most of the time.
MIN_WAVES = 2
# Rungs of promotion, each this many times longer than the one below.
ETA = 3
MAX_RUNGS = 3
# Trials that see so many images together can be long ones: so many networks go to the highest
# rung, for as long as there is time.
LARGE_IMAGES = 1e8
LONG_TOP = 12
MAX_EPOCHS = 300
# What the lowest rung of long trainings sees: fewer images, not smaller ones, because kernels and
# windows of other maps are other choices.
LOWEST_IMAGES = 0.25
# A trial takes at most so much of its phase, on as many devices as that needs.
TRIAL_WALL_SHARE = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Rungs:
    """The rungs of promotion, ascending; see `Plan`.

    Attributes:
        epochs: Of each.
        trust_epochs: Of the one on which the trust phase trains.
        images: Share of the training images that each sees; empty: all of them.
        devices: That train one network together on each; empty: one.
        are_large: Whether all trials together see so many images that some can be long.
    """

    epochs: tuple[int, ...]
    trust_epochs: int
    images: tuple[float, ...] = ()
    devices: tuple[int, ...] = ()
    are_large: bool = False

    def devices_of(self, epochs: int) -> int:
        """Return how many devices train one network of the rung of so many epochs."""
        return dict(zip(self.epochs, self.devices, strict=False)).get(epochs, 1)


def choose_rungs(given: PlanInputs, *, climb_seconds: float, trust_seconds: float | None) -> Rungs:
    """Choose the rungs: short trainings where there is little time, else few and long ones.

    Args:
        climb_seconds: Device-seconds of the phase in which networks go up them.
        trust_seconds: Likewise of the trust phase, where there is one.
    """
    devices, epoch_seconds = given.devices, given.epoch_seconds
    alone_seconds = (trust_seconds or 0.0) + climb_seconds
    fewest = max(FEWEST[given.strategy], MIN_WAVES * devices)
    epochs = max(1, min(int(alone_seconds / (fewest * epoch_seconds)), given.max_epochs))
    are_large = alone_seconds / epoch_seconds * given.train_images >= LARGE_IMAGES
    # Of what the phase takes on the clock.
    limit = climb_seconds / devices * TRIAL_WALL_SHARE
    longest = _longest(given, climb_seconds, limit) if are_large else 0
    most = min(given.most_trial_devices, devices)
    if longest > epochs:
        rungs = _long_rungs(
            longest, climb_seconds, epoch_seconds=epoch_seconds, limit_seconds=limit, most=most
        )
    else:
        short = _epochs_of_rungs(epochs, climb_seconds / (epochs * epoch_seconds))
        rungs = Rungs(epochs=short, trust_epochs=epochs, are_large=are_large)
    if trust_seconds is None or not are_large:
        return rungs
    passes = trust_seconds / epoch_seconds
    rungs = _trust_on(rungs, passes, devices=devices)
    return _in_waves(rungs, passes, devices=devices, most=most)


def _longest(given: PlanInputs, climb_seconds: float, limit_seconds: float) -> int:
    """Return the most epochs of a long training, on all the devices that it may have."""
    wall = limit_seconds * given.most_trial_devices / given.epoch_seconds
    affordable = climb_seconds / (MAX_RUNGS * LONG_TOP * given.epoch_seconds)
    return int(min(affordable, wall, given.longest_epochs or given.max_epochs, MAX_EPOCHS))


def _long_rungs(
    longest: int, climb_seconds: float, *, epoch_seconds: float, limit_seconds: float, most: int
) -> Rungs:
    """Return rungs up to a long training; the lowest sees a part of the images."""
    epochs = _epochs_of_rungs(longest, climb_seconds / (longest * epoch_seconds))
    images, trust_epochs = (1.0,) * len(epochs), longest
    if longest >= ETA**MAX_RUNGS:  # else a part of the images is less than a few epochs of all
        middle = longest // ETA
        epochs = (min(int(longest // ETA**2 / LOWEST_IMAGES), middle - 1), middle, longest)
        images, trust_epochs = (LOWEST_IMAGES, 1.0, 1.0), middle
    held = [
        _devices_for(e * share * epoch_seconds, limit_seconds, most)
        for e, share in zip(epochs, images, strict=True)
    ]
    return Rungs(
        epochs=epochs,
        trust_epochs=trust_epochs,
        images=images,
        devices=_near(held),
        are_large=True,
    )


def _near(devices: Sequence[int]) -> tuple[int, ...]:
    """Let each rung have at least half as many devices a network as the one above.

    Else those that come free one by one would wait long for enough of them.
    """
    found = [devices[-1]]
    for held in reversed(devices[:-1]):
        found.insert(0, max(held, found[0] // 2, 1))
    return tuple(found)


def _trust_on(rungs: Rungs, passes: float, *, devices: int) -> Rungs:
    """Let a large plan rank on the highest rung on which every device has a network.

    Args:
        passes: Epochs that the trust phase has time for, of all networks together.

    Rungs that see a part of the images are none for it: those are to rank other networks by.
    """
    full = [e for e, share in zip(rungs.epochs, rungs.images, strict=False) if share == 1]
    possible = full or list(rungs.epochs)
    fitting = [
        epochs
        for epochs in possible
        if epochs <= rungs.trust_epochs and passes / epochs >= devices // rungs.devices_of(epochs)
    ]
    return replace(rungs, trust_epochs=max(fitting, default=min(possible)))


def _in_waves(rungs: Rungs, passes: float, *, devices: int, most: int) -> Rungs:
    """Let the networks of the trust phase train on so many devices that they come in waves.

    In a single one most devices wait for the slowest network.
    """
    epochs = rungs.trust_epochs
    together, number = rungs.devices_of(epochs), min(passes / epochs, MAX_TRUST)
    while together * 2 <= most and number * together < MIN_WAVES * devices:
        together *= 2
    ones = rungs.devices or (1,) * len(rungs.epochs)
    found = [
        together if rung == epochs else held for rung, held in zip(rungs.epochs, ones, strict=True)
    ]
    return replace(rungs, devices=_near(found)) if together > 1 else rungs


def count_trust(rungs: Rungs, passes: float, *, devices: int) -> int:
    """Return how many networks the trust phase trains: in whole waves, where there are many.

    Args:
        passes: Epochs that it has time for, of all networks together.
    """
    wave = max(devices // rungs.devices_of(rungs.trust_epochs), 1)
    waves = 1 if not rungs.devices else MIN_WAVES
    number = min(max(int(passes / rungs.trust_epochs), 0), max(MAX_TRUST, waves * wave))
    return max(number - number % wave, MAX_TRUST) if number > max(MAX_TRUST, wave) else number


def _devices_for(seconds: float, limit_seconds: float, most: int) -> int:
    """Return the fewest devices, a power of two, on which a training ends within a limit."""
    devices = 1
    while devices * 2 <= most and seconds / devices > limit_seconds:
        devices *= 2
    return devices


def _epochs_of_rungs(epochs: int, num_trials: float) -> tuple[int, ...]:
    """Return as many rungs as leave enough networks on the highest, ascending.

    Args:
        epochs: Of the highest rung.
        num_trials: How many full trials there is time for.
    """
    count = 1
    while count < MAX_RUNGS and (
        epochs >= ETA**count and num_trials / (count + 1) >= 2 * MIN_PROMOTED
    ):
        count += 1
    return tuple(epochs // ETA**below for below in reversed(range(count)))
