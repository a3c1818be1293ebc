"""The plan of a run: what each phase may spend, and the work that fits in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from search.plan.shares import MIN_FINISH_SECONDS
from search.plan.step_times import StepModel, mean_macs

# Without a finish, trials that still run near the end are told so much earlier, on each device.
END_SECONDS, END_SHARE = 2.0, 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The work that a budget is split into.

    Attributes:
        budget_seconds: Device-seconds asked for.
        devices: Devices (or cores) that work at the same time.
        spent_by_end: For each phase the device-seconds of the run that may be spent when it ends.
        supernet_steps: Length of the supernet's schedule.
        judge_seconds: Device-seconds of one evaluation with inherited weights.
        trial_epochs: Epochs of a network that is trained alone, on the highest rung.
        trial_steps: Its training steps.
        rungs: Epochs of the rungs of promotion, ascending; the last are ``trial_epochs``.
        num_trust: Expected number of networks in this phase.
        num_judged: Expected number of networks that are judged without training them.
        num_promoted: Expected number on the highest rung.
        rung_images: Share of the training images that each rung sees; empty: all of them.
        rung_devices: Devices that train one network together on each rung; empty: one.
        trust_epochs: Epochs of the rung on which the trust phase trains; 0 takes the highest.
        train_images: Images of an epoch; 0 where that is not known.
        num_unlabelled: Of them, those without classes.
        supernet_batch: Images of a step of the supernet, over all devices; 0 likewise.
        most_supernet_steps: What its schedule may grow to; 0: it has no such limit.
        is_large: Whether the phases get what they need, instead of shares that suit minutes.
        horizon_epochs: Epochs of the few networks that are trained on; 0 for none.
        num_horizon: How many these are.
        horizon_devices: Devices that train one of them together.
        recipe_epochs: Of the full recipe; 0 where that is not known.
        step_seconds: Points (MACs, device-seconds of a training step alone), as measured.
        retrain_seconds: Device-seconds of a full retraining of the smallest and the largest.
        strategy: One of `SHARES`.
        shares: `planned`, where ``spent_by_end`` has been revised.
    """

    budget_seconds: float
    devices: int
    spent_by_end: Mapping[str, float]
    supernet_steps: int
    judge_seconds: float
    trial_epochs: int
    trial_steps: int
    rungs: tuple[int, ...]
    num_trust: int
    num_promoted: int
    num_judged: int
    step_seconds: tuple[tuple[int, float], ...]
    retrain_seconds: tuple[float, float]
    strategy: str = "supernet"
    shares: Mapping[str, float] = field(default_factory=dict)
    rung_images: tuple[float, ...] = ()
    rung_devices: tuple[int, ...] = ()
    trust_epochs: int = 0
    train_images: int = 0
    supernet_batch: int = 0
    most_supernet_steps: int = 0
    is_large: bool = False
    horizon_epochs: int = 0
    num_horizon: int = 0
    horizon_devices: int = 1
    recipe_epochs: int = 0
    num_unlabelled: int = 0

    @property
    def trust_rung(self) -> int:
        """The epochs of a network of the trust phase."""
        return self.trust_epochs or self.trial_epochs

    @property
    def lengths(self) -> tuple[int, ...]:
        """The epochs of all trainings alone, ascending: those of the rungs, and the horizon's."""
        return (*self.rungs, self.horizon_epochs) if self.horizon_epochs else self.rungs

    @property
    def num_scored(self) -> int:
        """The networks that a graft has time to judge to learn what its parts are worth."""
        return int(self.planned.get("score", 0.0) / max(self.judge_seconds, 1e-9))

    @property
    def supernet_epochs(self) -> float:
        """How often the supernet sees every image; 0 where that is not known."""
        return self.supernet_steps * self.supernet_batch / max(self.train_images, 1)

    def images_of(self, epochs: int) -> float:
        """Return the share of the training images that the rung of so many epochs sees."""
        return dict(zip(self.rungs, self.rung_images, strict=False)).get(epochs, 1.0)

    def devices_of(self, epochs: int) -> int:
        """Return how many devices train one network for so many epochs."""
        if epochs == self.horizon_epochs:
            return self.horizon_devices
        return dict(zip(self.rungs, self.rung_devices, strict=False)).get(epochs, 1)

    def trial_seconds(self, epochs: int, macs: float | None = None) -> float:
        """Predict the device-seconds of a training on the rung of so many epochs."""
        model = StepModel(self.step_seconds)
        step = model(mean_macs(self.step_seconds) if macs is None else macs)
        steps = self.trial_steps * epochs / self.trial_epochs
        return step * steps * self.images_of(epochs)

    @property
    def planned(self) -> Mapping[str, float]:
        """The device-seconds that each phase was planned to have in all."""
        if self.shares:
            return self.shares
        limits = self.spent_by_end.values()
        return {
            name: limit - before
            for name, limit, before in zip(self.spent_by_end, limits, [0.0, *limits], strict=False)
        }

    @property
    def last_call_seconds(self) -> float:
        """Device-seconds after which trials that still run must end, so that a judge can start."""
        if "finish" not in self.spent_by_end:
            reserve = min(END_SECONDS * self.devices, END_SHARE * self.budget_seconds)
            return self.budget_seconds - reserve
        *_, before, end = self.spent_by_end.values()
        return self.budget_seconds - min(end - before, MIN_FINISH_SECONDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class MorePlan:
    """What more budget would buy.

    Attributes:
        budget: How much more, for people.
        plan: As the run was planned.
        more: As it would be planned with so much more.
    """

    budget: str
    plan: Plan
    more: Plan
