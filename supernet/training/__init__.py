"""Training one network."""

from supernet.training.batches import (
    PixelBatches,
    Shard,
    TrainLoader,
    eval_batches,
    seen_mode,
    seen_share,
    shards_of,
    steps_per_epoch,
    train_batches,
    with_shards_for,
)
from supernet.training.calibration import calibration_images, recalibrate
from supernet.training.checkpoint import (
    changed_file,
    checkpoint_name,
    checksums,
    damage,
    latest_checkpoint,
    remove_checkpoints,
    write_checkpoint,
    write_text,
)
from supernet.training.distillation import Lesson, Teacher
from supernet.training.epoch_report import EpochReport, read_csv, starvation
from supernet.training.evaluation import Accuracy, evaluate
from supernet.training.optimization import build_optimizer
from supernet.training.recipe_checks import check_teacher, check_token_labels, check_unlabelled
from supernet.training.seeding import derived_seed, seeded_globals
from supernet.training.teacher_files import (
    digest_of,
    keep_network,
    kept_network,
    make_teacher,
    read_teacher_files,
    write_teacher_files,
)
from supernet.training.token_labels import LabelMaps
from supernet.training.training import (
    EMA_FILE,
    METRICS_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    TrainingOptions,
    TrainingResult,
    TrainingStopped,
    own_device,
    train,
    train_steps,
)
from supernet.training.training_step import (
    AMP_DTYPES,
    BatchStatistics,
    add_up,
    in_group,
    process_place,
    stops_all,
)

__all__ = [
    "AMP_DTYPES",
    "EMA_FILE",
    "METRICS_FILE",
    "STATE_FILE",
    "WEIGHTS_FILE",
    "Accuracy",
    "BatchStatistics",
    "EpochReport",
    "LabelMaps",
    "Lesson",
    "PixelBatches",
    "Shard",
    "Teacher",
    "TrainLoader",
    "TrainingOptions",
    "TrainingResult",
    "TrainingStopped",
    "add_up",
    "build_optimizer",
    "calibration_images",
    "changed_file",
    "check_teacher",
    "check_token_labels",
    "check_unlabelled",
    "checkpoint_name",
    "checksums",
    "damage",
    "derived_seed",
    "digest_of",
    "eval_batches",
    "evaluate",
    "in_group",
    "keep_network",
    "kept_network",
    "latest_checkpoint",
    "make_teacher",
    "own_device",
    "process_place",
    "read_csv",
    "read_teacher_files",
    "recalibrate",
    "remove_checkpoints",
    "seeded_globals",
    "seen_mode",
    "seen_share",
    "shards_of",
    "starvation",
    "steps_per_epoch",
    "stops_all",
    "train",
    "train_batches",
    "train_steps",
    "with_shards_for",
    "write_checkpoint",
    "write_teacher_files",
    "write_text",
]
