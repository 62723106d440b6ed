"""Defaults of every flag, and the paths that `.env` and the environment give. No literal of these stands in a stage.

Order of precedence: flag, then environment, then `.env`, then the default here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEVICE = "auto"
"""auto, cpu, gpu, cuda:N or mps."""
ENGINE: Final = "auto"
"""auto, torch or openvino."""
PRECISION: Final = "auto"
"""auto, fp32, bf16 or int8."""
BATCH = 8
"""Slices in a forward pass."""
RESIZE = 224
"""Side in pixels of the square the backbone sees; a multiple of 16."""
STRIDE = 1
"""Every how many slices one is embedded."""
MAX_SLICES = 0
"""Most slices embedded per volume; 0 is no limit."""
SIM_SLICE = -1
"""Slice of the similarity map; -1 is the middle one."""
SIM_PATCH = "center"
"""Reference patch of the similarity map: center or row,column."""
TOP_K = 5
"""Suspicious slices listed for a case."""
POOL_MODE: Final = "mean"
"""How slice embeddings become one vector per volume: mean, max or mean_max."""
MAX_INVALID = 0.05
"""Largest share of unreadable volumes that --skip-invalid-nifti may skip."""

INT8_CHECK_SHARE = 0.3
"""Share of patients that int8 is measured on and not made on."""
INT8_CALIBRATION_SLICES = 128
"""Slices int8 is made on."""
INT8_CHECK_VOLUMES = 16
"""Held-out volumes int8 is measured on."""

TRAIN_RATIO = 0.7
VAL_RATIO = 0.15
TEST_RATIO = 0.15
SEED = 42

POS_WEIGHT_CAP = 20.0
"""Largest weight of a positive in the loss: above about 20 a rare class swamps the rest."""
RSNA_EPOCHS = 30
"""Epochs of `train_meddinov3_rsna.py`."""
EVAL_THRESHOLD = 0.5
"""Probability at which test figures are reported beside those at the checkpoint's own thresholds."""
ROWS_PER_BATCH = 16384
"""Rows sent through a head at a time."""

PREPARE_WORKERS = 0
"""Processes that read DICOM headers; 0 is one a CPU."""
CONFLICTING_LABELS: Final = "stop"
"""What to do with an ID of stage_2_train.csv that has both labels: stop or positive."""
UNDECIDED_TYPE: Final = "leave-out"
"""What to do with a CQ500 case whose readers agree on a haemorrhage and on no type: leave-out or keep."""

INPUT_DIR = Path("input")
HEAD_DIR = Path("checkpoints/head_train")
METRICS_JSON = Path("outputs/head_eval/metrics.json")
PROBS_NPY = Path("outputs/head_eval/probs.npy")
SPLITS_DIR = Path("outputs/rsna_splits")
FEATURES_OUTPUT_DIR = Path("outputs/features")
"""Default of `extract`."""
RSNA_OUTPUT_DIR = Path("outputs/rsna_pipeline")
RSNA_CACHE_DIR = Path("outputs/rsna_cache")
RSNA_CHECKPOINTS_DIR = Path("checkpoints/rsna_ich_head")
EMBED_OUTPUT_PREFIX = "outputs/meddinov3_"
CASE_OUTPUT_PREFIX = "outputs/ich_"
RSNA_PREPARED_DIR = Path("outputs/rsna_prepared")
"""Where `prepare-rsna` writes its tables."""
COHORT_OUTPUT_PREFIX = "outputs/cohort_"
DEMO_DIR = Path("outputs/demo")
PHANTOM_DIR = Path("outputs/phantoms")

DEMO_PATIENTS = 204
"""Phantom patients of the demo; its ratios leave at least 60 of them held out."""
DEMO_TRAIN_RATIO = 0.55
DEMO_VAL_RATIO = 0.15
DEMO_TEST_RATIO = 0.30
DEMO_EPOCHS = 60
DEMO_TRAIN_BATCH_SIZE = 16
DEMO_BACKBONE = "demo"
PHANTOM_PATIENTS = 8
"""Patients that `phantom` makes unless told otherwise."""

MODELS_DIR = Path("modelsweights")
WEIGHTS_NAME = "model.pth"
DATASETS_DIR = Path("/data/datasets")
HF_REPO = "ricklisz123/MedDINOv3-ViTB-16-CT-3M"
"""Hugging Face repository of the published weights (FACTS: MedDINOv3 README)."""
GDRIVE_FILE_ID = "1_MgctUnIIFcQJCVOhkcs84qq92hlqXVA"
"""Google Drive id of the published weights."""

DOWNLOAD_PACKAGE: Final = "meddinov3"
DOWNLOAD_TIMEOUT_S = 30.0
"""Silence after which a download's connection is dropped and resumed."""
DOWNLOAD_RETRIES = 3
"""Attempts in a row that may bring nothing new before the next source is asked."""
DOWNLOAD_LOCK_WAIT_S = 3600.0
"""How long another process's download of the same file is waited for."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How a head is built and trained: its hyper-parameters, their defaults and, as docstrings, their help."""

    epochs: int = 20
    """Passes over the training rows, at least 1."""
    batch_size: int = 64
    """Rows in a step of the optimizer."""
    lr: float = 1e-3
    """Learning rate of AdamW."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    hidden_dim: int = 256
    """Width of the hidden layer; 0 or less: a single linear layer."""
    dropout: float = 0.2
    """Share of hidden units dropped in training, in [0, 1)."""
    patience: int = 0
    """Epochs without a better validation macro AUROC before training stops; 0 trains to the end."""
    seed: int = SEED
    """Seed of the initial weights, the order of rows and dropout; the same seed and data give the same head."""

    @property
    def arch(self) -> str:
        """Name of the head's architecture in `heads.architectures`."""
        return "mlp" if self.hidden_dim > 0 else "linear"


@dataclass(frozen=True)
class Settings:
    """Paths and download settings after flag-free resolution; relative paths are already anchored."""

    datasets_dir: Path
    models_dir: Path
    meddinov3_ckpt_path: Path
    meddinov3_url: str | None
    meddinov3_gdrive_file_id: str | None
    meddinov3_hf_repo: str | None
    meddinov3_sha256: str | None


def load_settings(folder: Path | None = None) -> Settings:
    """Settings from the environment and the nearest `.env` (`folder`, by default the working directory, or above).

    Relative paths written in `.env` start at its folder, all others at the working directory.
    """
    from pydantic_settings import BaseSettings, SettingsConfigDict

    class _Environment(BaseSettings):
        model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")
        datasets_dir: Path = DATASETS_DIR
        models_dir: Path = MODELS_DIR
        meddinov3_ckpt_path: Path | None = None
        meddinov3_url: str | None = None
        meddinov3_gdrive_file_id: str | None = GDRIVE_FILE_ID
        meddinov3_hf_repo: str | None = HF_REPO
        meddinov3_sha256: str | None = None

    env_file = find_env_file(folder or Path.cwd())
    found = _Environment(_env_file=env_file, _env_file_encoding="utf-8-sig")  # type: ignore[call-arg]
    values = found.model_dump()
    for name in ("datasets_dir", "models_dir", "meddinov3_ckpt_path"):
        if values[name] is not None and env_file is not None and name in found.model_fields_set:
            values[name] = values[name] if _from_environment(name) else env_file.parent / values[name].expanduser()
    values["meddinov3_ckpt_path"] = values["meddinov3_ckpt_path"] or values["models_dir"] / WEIGHTS_NAME
    return Settings(**values)


def find_env_file(folder: Path) -> Path | None:
    """The `.env` in `folder` or the nearest folder above it that has one."""
    return next((p / ".env" for p in (folder, *folder.parents) if (p / ".env").is_file()), None)


def _from_environment(name: str) -> bool:
    import os

    return any(key.lower() == name and value for key, value in os.environ.items())
