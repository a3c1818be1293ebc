"""Changes that no test noticed once, each with the tests that were written for it."""

from __future__ import annotations

from typing import NamedTuple


class Named(NamedTuple):
    """What stands in a module, what comes instead, and where that must be noticed."""

    name: str
    module: str
    old: str
    new: str
    tests: str


WORKER, JUDGE = "search/workers/supernet_worker.py", "search/workers/judge_worker.py"
TRAINER = "supernet/shared_weights/trainer.py"
CALIBRATION = "supernet/training/calibration.py"
WINDOWS = "supernet/mixers/window_attention.py"
DOMINANCE = "search/results/dominance.py"
PLAN, SHARES, RUNGS = "search/plan/making.py", "search/plan/shares.py", "search/plan/rungs.py"
PROMOTION, JUDGING = "search/scheduling/promotion.py", "search/scheduling/judging.py"
SELECT = "search/front/select.py"
QUEUE = "search/retraining/training_queue.py"

NAMED: tuple[Named, ...] = (
    Named(
        "trials are judged on train",
        WORKER,
        'eval_split=data.split("search")',
        'eval_split=data.split("train")',
        "tests/search/test_image_roles.py",
    ),
    Named(
        "trials are trained on search",
        WORKER,
        "train_split=job.train_split(data, task.images)",
        'train_split=data.split("search")',
        "tests/search/test_image_roles.py",
    ),
    Named(
        "the supernet judges on train",
        JUDGE,
        'images, workers = data.split("search"), job.loader_workers',
        'images, workers = data.split("train"), job.loader_workers',
        "tests/search/test_image_roles.py",
    ),
    Named(
        "the supernet is trained on search",
        TRAINER,
        'split = data.split("train")',
        'split = data.split("search")',
        "tests/search/test_image_roles.py",
    ),
    Named(
        "batch norms are recalibrated on search",
        CALIBRATION,
        'split, number = data.split("train"), CALIBRATION_BATCHES * batch_size',
        'split, number = data.split("search"), CALIBRATION_BATCHES * batch_size',
        "tests/search/test_image_roles.py",
    ),
    Named(
        "networks are retrained on train alone",
        "search/retraining/network.py",
        "labelled, more = data.full_train(), options.unlabelled",
        'labelled, more = data.split("train"), options.unlabelled',
        "tests/search/test_image_roles.py",
    ),
    Named(
        "recalibration is left out",
        JUDGE,
        "        recalibrate(network, self.calibration, amp=self.job.eval_amp)\n",
        "",
        "tests/search/test_image_roles.py",
    ),
    Named(
        "trainings of a few steps are judged with what batch norms began with",
        "search/workers/supernet_worker.py",
        "        recalibrates=True,\n",
        "",
        "tests/search/workers/test_alone.py",
    ),
    Named(
        "recalibration without the reset",
        CALIBRATION,
        "        norm.reset_running_stats()\n",
        "",
        "tests/supernet/training/test_calibration.py",
    ),
    Named(
        "recalibration in train mode, with dropped paths",
        CALIBRATION,
        "    with torch.no_grad(), torch.autocast",
        "    network.train()\n    with torch.no_grad(), torch.autocast",
        "tests/supernet/training/test_calibration.py",
    ),
    Named(
        "recalibration to a variance of 1",
        CALIBRATION,
        "        norm.momentum = momentum\n",
        "        norm.momentum = momentum\n        norm.running_var.fill_(1.0)\n",
        "tests/supernet/training/test_calibration.py",
    ),
    Named(
        "the query of qr is scaled twice",
        WINDOWS,
        "q * q.shape[-1] ** -0.5, r)",
        "q * q.shape[-1] ** -1.0, r)",
        "tests/supernet/kernels/test_windows.py",
    ),
    Named(
        "the query of qr is taken at the wrong token",
        WINDOWS,
        '"bwnid,ijnd->bwnij"',
        '"bwnjd,ijnd->bwnij"',
        "tests/supernet/kernels/test_windows.py",
    ),
    Named(
        "the key of rk is not scaled",
        WINDOWS,
        "r, k * k.shape[-1] ** -0.5)",
        "r, k)",
        "tests/supernet/kernels/test_windows.py",
    ),
    Named(
        "the key of rk is taken at the wrong token",
        WINDOWS,
        '"ijnd,bwnjd->bwnij"',
        '"ijnd,bwnid->bwnij"',
        "tests/supernet/kernels/test_windows.py",
    ),
    Named(
        "ranks in four objectives: nothing is peeled off but the front",
        DOMINANCE,
        "ranks[valid] = known\n",
        "ranks[valid] = np.minimum(known, 1)\n",
        "tests/search/results/test_dominance.py",
    ),
    Named(
        "a network that is being promoted is promoted again",
        PROMOTION,
        "                self._known[higher].add(trial.key)\n",
        "",
        "tests/search/scheduling/test_promotion.py",
    ),
    Named(
        "a judgement may be lost for ever",
        JUDGING,
        "self._record.count_lost(trial_id) + 1 >= MAX_LOST",
        "self._record.count_lost(trial_id) + 1 >= 10**9",
        "tests/search/scheduling/test_judging.py",
    ),
    Named(
        "a judgement is given up one loss too late",
        JUDGING,
        "self._record.count_lost(trial_id) + 1 >= MAX_LOST",
        "self._record.count_lost(trial_id) >= MAX_LOST",
        "tests/search/scheduling/test_judging.py",
    ),
    Named(
        "a stopped judgement counts as lost",
        JUDGING,
        'if outcome == "not begun" or (ends == "lost" and is_over):',
        'if outcome == "not begun":',
        "tests/search/scheduling/test_judging.py",
    ),
    Named(
        "the pace of judging never changes",
        JUDGING,
        "(judgement.measured.seconds - self._pace) * PACE_SHARE",
        "0.0",
        "tests/search/scheduling/test_judging.py",
    ),
    Named(
        "no margin at the end of a phase",
        JUDGING,
        " - MARGIN_SECONDS * judges",
        "",
        "tests/search/scheduling/test_judging.py",
    ),
    Named(
        "what runs does not count at the end of a phase",
        JUDGING,
        " - len(self._running) - judges",
        " - judges",
        "tests/search/scheduling/test_judging.py",
    ),
    Named(
        "--share has no effect on the plan",
        PLAN,
        "split_shares(given.budget_seconds, fixed_shares, strategy=given.strategy)",
        "split_shares(given.budget_seconds, {}, strategy=given.strategy)",
        "tests/search/plan/test_plan.py",
    ),
    Named(
        "spare shares are not given on",
        SHARES,
        "            shares[to] += spare\n",
        "",
        "tests/search/plan/test_plan.py",
    ),
    Named(
        "rungs of zero epochs",
        RUNGS,
        "epochs >= ETA**count and num_trials",
        "num_trials",
        "tests/search/plan/test_plan.py",
    ),
    Named(
        "select recommends dominated networks",
        SELECT,
        "(c for c in found if _is_worth_a_look(c))",
        "(c for c in found)",
        "tests/search/front/test_select.py",
    ),
    Named(
        "select prices retraining by the smallest network",
        SELECT,
        "plan.retrain_seconds[1] / step(largest)",
        "plan.retrain_seconds[0] / step(largest)",
        "tests/search/front/test_select.py",
    ),
    Named(
        "select lets MACs alone decide the spread",
        SELECT,
        "    return scaled / np.where(ranges > 0, ranges, 1.0)\n",
        "    return scaled\n",
        "tests/search/front/test_select.py",
    ),
    Named(
        "the recipe's interpolation is ignored on streamed images",
        "supernet/training/batches.py",
        "            interpolation=self.interpolation,\n            normalize=False,",
        "            normalize=False,",
        "tests/supernet/training/test_batches.py",
    ),
    Named(
        "loader workers are ignored",
        "supernet/training/batches.py",
        "            if workers\n            else _Mapped",
        "            if False\n            else _Mapped",
        "tests/supernet/training/test_exact.py",
    ),
    Named(
        "top-5 is computed as top-4",
        "supernet/training/evaluation.py",
        "min(5, logits.shape[1])",
        "min(4, logits.shape[1])",
        "tests/search/retraining/test_evaluate.py",
    ),
    Named(
        "gradient checkpointing is never switched on",
        "supernet/training/training_step.py",
        "network.grad_checkpointing = True",
        "network.grad_checkpointing = False",
        "tests/supernet/training/test_exact.py",
    ),
    Named(
        "all initial weights of elsa are equal",
        "supernet/mixers/elsa.py",
        "torch.empty(*shape).uniform_(-bound, bound)",
        "torch.empty(*shape).fill_(bound)",
        "tests/supernet/mixers/test_initial_weights.py",
    ),
    Named(
        "kernels of depth-wise convolutions start equal",
        "supernet/mixers/depthwise.py",
        "kernel**2).uniform_(-1 / kernel, 1 / kernel)",
        "kernel**2).fill_(1 / kernel)",
        "tests/supernet/mixers/test_initial_weights.py",
    ),
    Named(
        "deviations of dynamic filters start at half of their scale",
        "supernet/mixers/decoupled_dynamic_filter.py",
        "math.sqrt(2 / taps)",
        "math.sqrt(0.5 / taps)",
        "tests/supernet/mixers/test_initial_weights.py",
    ),
    Named(
        "involution starts as other layers do",
        "supernet/mixers/inhomogeneous.py",
        'mode="fan_out", nonlinearity="relu"',
        'mode="fan_in", nonlinearity="relu"',
        "tests/supernet/mixers/test_initial_weights.py",
    ),
    Named(
        "several devices of a retraining are charged as one",
        QUEUE,
        "self.held = devices * (1 if",
        "self.held = 1 * (1 if",
        "tests/attacks/test_retraining.py",
    ),
    Named(
        "an interrupted retraining is left open",
        QUEUE,
        '                self._finish(training, "interrupted")\n',
        "",
        "tests/attacks/test_retraining.py",
    ),
)
