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
CALIBRATION = "supernet/shared_weights/calibration.py"
WINDOWS = "supernet/mixers/window_attention.py"
DOMINANCE = "search/results/dominance.py"
PLAN, SHARES, RUNGS = "search/plan/making.py", "search/plan/shares.py", "search/plan/rungs.py"
PROMOTION, JUDGING = "search/scheduling/promotion.py", "search/scheduling/judging.py"
SELECT = "search/front/select.py"

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
        'train_split=data.split("train")',
        'train_split=data.split("search")',
        "tests/search/test_image_roles.py",
    ),
    Named(
        "the supernet judges on train",
        JUDGE,
        'eval_batches(data.split("search"), data, EVAL_BATCH)',
        'eval_batches(data.split("train"), data, EVAL_BATCH)',
        "tests/search/test_image_roles.py",
    ),
    Named(
        "the supernet is trained on search",
        TRAINER,
        'self._split = data.split("train")',
        'self._split = data.split("search")',
        "tests/search/test_image_roles.py",
    ),
    Named(
        "batch norms are recalibrated on search",
        JUDGE,
        'eval_batches(data.split("train"), data, recipe.batch_size)',
        'eval_batches(data.split("search"), data, recipe.batch_size)',
        "tests/search/test_image_roles.py",
    ),
    Named(
        "networks are retrained on train alone",
        "search/retraining/network.py",
        "train_split=data.full_train()",
        'train_split=data.split("train")',
        "tests/search/test_image_roles.py",
    ),
    Named(
        "recalibration is left out",
        JUDGE,
        "        recalibrate(network, self.calibration)\n",
        "",
        "tests/search/test_image_roles.py",
    ),
    Named(
        "recalibration without the reset",
        CALIBRATION,
        "        norm.reset_running_stats()\n",
        "",
        "tests/supernet/shared_weights/test_calibration.py",
    ),
    Named(
        "recalibration in train mode, with dropped paths",
        CALIBRATION,
        "    with torch.no_grad():\n",
        "    network.train()\n    with torch.no_grad():\n",
        "tests/supernet/shared_weights/test_calibration.py",
    ),
    Named(
        "recalibration to a variance of 1",
        CALIBRATION,
        "        norm.momentum = momentum\n",
        "        norm.momentum = momentum\n        norm.running_var.fill_(1.0)\n",
        "tests/supernet/shared_weights/test_calibration.py",
    ),
    Named(
        "the query of qr is scaled twice",
        WINDOWS,
        'torch.einsum("bwnid,ijnd->bwnij", q * scale, r)',
        'torch.einsum("bwnid,ijnd->bwnij", q * scale * scale, r)',
        "tests/supernet/mixers/test_attention_mixers.py",
    ),
    Named(
        "the query of qr is taken at the wrong token",
        WINDOWS,
        'torch.einsum("bwnid,ijnd->bwnij", q * scale, r)',
        'torch.einsum("bwnjd,ijnd->bwnij", q * scale, r)',
        "tests/supernet/mixers/test_attention_mixers.py",
    ),
    Named(
        "the key of rk is not scaled",
        WINDOWS,
        'torch.einsum("ijnd,bwnjd->bwnij", r, k * scale)',
        'torch.einsum("ijnd,bwnjd->bwnij", r, k)',
        "tests/supernet/mixers/test_attention_mixers.py",
    ),
    Named(
        "the key of rk is taken at the wrong token",
        WINDOWS,
        'torch.einsum("ijnd,bwnjd->bwnij", r, k * scale)',
        'torch.einsum("ijnd,bwnid->bwnij", r, k * scale)',
        "tests/supernet/mixers/test_attention_mixers.py",
    ),
    Named(
        "ranks in four objectives: nothing is peeled off but the front",
        DOMINANCE,
        "remaining, rank = remaining[~on_front], rank + 1",
        "remaining, rank = remaining[~on_front], 1",
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
        '        if ends == "lost" and self._interrupted():\n            ends = "interrupted"\n'
        '        elif ends == "lost"',
        '        if ends == "lost"',
        "tests/search/scheduling/test_judging.py",
    ),
    Named(
        "the pace of judging never changes",
        JUDGING,
        '(judgement.values["seconds"] - self._pace) * PACE_SHARE',
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
        "split_shares(budget_seconds, fixed_shares or {}, strategy=strategy)",
        "split_shares(budget_seconds, {}, strategy=strategy)",
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
        "made.retrain_seconds[1] / step(largest)",
        "made.retrain_seconds[0] / step(largest)",
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
)
