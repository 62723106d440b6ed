"""Defaults of every flag, and the paths that `.env` and the environment give. No literal of these stands in a stage.

Order of precedence: flag, then environment, then `.env`, then the default here.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from meddinov3_stroke.errors import UsageError

DEVICE = "auto"  # auto, cpu, gpu, cuda:N or mps
ENGINE: Final = "auto"  # auto, torch or openvino
PRECISION: Final = "auto"  # auto, fp32, bf16 or int8
BATCH = 8  # slices in a forward pass
RESIZE = 224  # side in pixels of the square the backbone sees; a multiple of 16
STRIDE = 1  # every how many slices one is embedded
MAX_SLICES = 0  # most slices embedded per volume; 0 is no limit
SIM_SLICE = -1  # slice of the similarity map; -1 is the middle one
SIM_PATCH = "center"  # reference patch of the similarity map: center or row,column
TOP_K = 5  # suspicious slices listed for a case
POOL_MODE: Final = "mean"  # how slice embeddings become one vector per volume: mean, max or mean_max
MAX_INVALID = 0.05  # largest share of unreadable volumes that --skip-invalid-nifti may skip

INT8_CHECK_SHARE = 0.3  # share of patients that int8 is measured on and not made on
INT8_CALIBRATION_SLICES = 128  # slices int8 is made on
INT8_CHECK_VOLUMES = 16  # held-out volumes int8 is measured on

TRAIN_RATIO = 0.7
VAL_RATIO = 0.15
TEST_RATIO = 0.15
SEED = 42

POS_WEIGHT_CAP = 20.0  # largest weight of a positive in the loss: above about 20 a rare class swamps the rest


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How a head is built and trained; every hyper-parameter is declared here once."""

    epochs: int = 20
    """Passes over the training rows, at least 1."""
    batch_size: int = 64
    """Rows per optimizer step."""
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
    """The same seed on the same data gives the same head."""

    @property
    def arch(self) -> str:
        """Key of `heads.registry.ARCHITECTURES`."""
        return "mlp"

    @property
    def params(self) -> dict[str, Any]:
        """Hyper-parameters that the checkpoint needs to rebuild the head."""
        return {"hidden_dim": max(self.hidden_dim, 0), "dropout": float(self.dropout)}


@dataclass(frozen=True, kw_only=True)
class AnyHeadConfig(HeadConfig):
    """How a head of any kind is built and trained."""

    head: str = "mlp"
    """Key of `heads.registry.ARCHITECTURES`."""
    pool: Literal["lse", "topk", "max"] = "lse"
    """How slices, gru and evidence heads turn slices into a case: log-sum-exp, mean of the highest 3, or maximum."""
    position: bool = False
    """Let slices, gru and evidence heads know the position of a slice in mm; position alone scores high."""

    @property
    def arch(self) -> str:
        """Key of `heads.registry.ARCHITECTURES`."""
        return self.head

    @property
    def params(self) -> dict[str, Any]:
        """Hyper-parameters that the checkpoint needs to rebuild the head."""
        own = {} if self.head in ("mlp", "probe", "knn") else {"pool": self.pool, "position": self.position}
        return {**super().params, **own}


EVAL_THRESHOLD = 0.5  # `--threshold` of `test_meddinov3_head.py`, `--eval-threshold` of `train_meddinov3_rsna.py`
RSNA_EPOCHS = 30  # epochs of `train_meddinov3_rsna.py`

PREPARE_WORKERS = 0  # processes that read DICOM headers; 0 is one a CPU
CONFLICTING_LABELS: Final = "stop"  # what to do with an ID of stage_2_train.csv that has both labels: stop or positive
UNDECIDED_TYPE: Final = "leave-out"
"""What to do with a CQ500 case whose readers agree on a haemorrhage and on no type: leave-out or keep."""

INPUT_DIR = Path("input")
OUTPUTS_DIR = Path("outputs")  # what a command writes without --output-dir is below this
HEAD_DIR = Path("checkpoints/head_train")
METRICS_JSON = Path("outputs/head_eval/metrics.json")
PROBS_NPY = Path("outputs/head_eval/probs.npy")
SWEEP_DIR = Path("outputs/sweep")
EVALUATION_DIR = Path("outputs/evaluation")  # default of `evaluate`
RESAMPLES = 1000  # of patients, behind the intervals of an evaluation
SPLITS_DIR = Path("outputs/rsna_splits")
FEATURES_OUTPUT_DIR = Path("outputs/features")  # default of `extract`
RSNA_OUTPUT_DIR = Path("outputs/rsna_pipeline")
RSNA_CACHE_DIR = Path("outputs/rsna_cache")
RSNA_CHECKPOINTS_DIR = Path("checkpoints/rsna_ich_head")
EMBED_OUTPUT_PREFIX = "outputs/meddinov3_"
CASE_OUTPUT_PREFIX = "outputs/ich_"
RSNA_PREPARED_DIR = Path("outputs/rsna_prepared")  # where `prepare-rsna` writes its tables
COHORT_OUTPUT_PREFIX = "outputs/cohort_"
DEMO_DIR = Path("outputs/demo")
PHANTOM_DIR = Path("outputs/phantoms")

DEMO_PATIENTS = 204  # phantom patients of the demo; its ratios leave at least 60 of them held out
DEMO_TRAIN_RATIO = 0.55
DEMO_VAL_RATIO = 0.15
DEMO_TEST_RATIO = 0.30
DEMO_EPOCHS = 60
DEMO_TRAIN_BATCH_SIZE = 16
DEMO_BACKBONE = "demo"
PHANTOM_PATIENTS = 8  # default of `phantom --patients`

WORKER_TIMEOUT_S = 900.0  # more than a run waits for a volume of another run

APP_NAME = "meddinov3-stroke"  # the console command, and this package's folder in the user's folders
MODELS_DIR = Path("modelsweights")
WEIGHTS_NAME = "model.pth"
DATASETS_DIR = Path("/data/datasets")
HF_REPO = "ricklisz123/MedDINOv3-ViTB-16-CT-3M"
GDRIVE_FILE_ID = "1_MgctUnIIFcQJCVOhkcs84qq92hlqXVA"  # where the weights are published (FACTS: MedDINOv3 README)
OLD_LAYOUT = ("meddinov3", "MedDINOv3-ViTB-16-CT-3M")
OLD_WEIGHTS_NAMES = ("model.pth", "meddinov3_vitb16_ct3m.pth")
"""Folders below MODELS_DIR where earlier scripts put the weights, and their file names there."""

DOWNLOAD_LOCK_WAIT_S = 3600.0  # longest wait for another process that is downloading the same file

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True)
class Settings:
    """Paths, sources of the weights and download limits (s); a field is the key of the same name in upper case."""

    datasets_dir: Path = DATASETS_DIR
    models_dir: Path = MODELS_DIR
    ckpt_path: Path | None = None  # MEDDINOV3_CKPT_PATH as given
    ct_model_device: str = DEVICE
    meddinov3_url: str | None = None
    """URLs, separated by commas or spaces, as are `hf_endpoint` and `hf_mirror`: the Hub or mirrors of it."""
    meddinov3_hf_repo: str | None = HF_REPO
    meddinov3_gdrive_file_id: str | None = GDRIVE_FILE_ID
    meddinov3_gdrive_url: str | None = None
    meddinov3_sha256: str | None = None
    meddinov3_subdir: str = OLD_LAYOUT[1]
    meddinov3_filename: str = OLD_WEIGHTS_NAMES[0]
    meddinov3_gdrive_filename: str = OLD_WEIGHTS_NAMES[1]
    hf_endpoint: str | None = None
    hf_mirror: str | None = None
    huggingface_token: str | None = field(default=None, repr=False)
    download_connect_timeout: float = 10.0
    download_read_timeout: float = 30.0
    download_retries: int = 3
    download_backoff: float = 1.0  # wait before the first retry; doubles with each one
    unused: tuple[str, ...] = ()  # keys of earlier scripts that were given and have no meaning here

    @cached_property
    def meddinov3_ckpt_path(self) -> Path:
        """The file of the weights: MEDDINOV3_CKPT_PATH, else the default, else one that an earlier script left."""
        default = self.models_dir / WEIGHTS_NAME
        if self.ckpt_path or default.exists():
            return self.ckpt_path or default
        folder = self.models_dir / OLD_LAYOUT[0] / self.meddinov3_subdir
        for name in (self.meddinov3_filename, self.meddinov3_gdrive_filename):
            if (folder / name).is_file():
                LOGGER.info("weights found at %s (%s does not exist)", folder / name, default)
                return folder / name
        return default


def default_device() -> str:
    """Default of `--device`: CT_MODEL_DEVICE, else auto."""
    return load_settings().ct_model_device


def user_cache() -> Path:
    """This package's folder in the user's cache folder, such as `~/.cache/meddinov3-stroke`."""
    from platformdirs import user_cache_path

    return user_cache_path(APP_NAME)


def user_config() -> Path:
    """This package's folder in the user's configuration folder, such as `~/.config/meddinov3-stroke`."""
    from platformdirs import user_config_path

    return user_config_path(APP_NAME)


def engine_cache() -> Path:
    """Folder of what is known about weights files, and of int8 calibrations."""
    return user_cache() / "engine_cache"


def _default_models_dir(folder: Path) -> Path:
    # `modelsweights`; for the console command outside a checkout and without that folder, one in the user's cache
    program = Path(sys.argv[0])
    is_command = program.stem == APP_NAME or program.parts[-2:] == ("meddinov3_stroke", "__main__.py")
    in_checkout = any((one / "script" / "download_models.py").is_file() for one in (folder, *folder.parents))
    return user_cache() / MODELS_DIR if is_command and not in_checkout and not MODELS_DIR.is_dir() else MODELS_DIR


def load_settings(folder: Path | None = None) -> Settings:
    """Settings from the environment and the nearest `.env` (`folder`, by default the working directory, or above).

    Relative paths written in `.env` start at its folder, all others at the working directory. Empty values are ignored.
    Weights lie in `modelsweights`; for the console command outside a checkout and without a `.env`, in `user_cache`.
    Raises UsageError where a number cannot be read.
    """
    from dotenv import dotenv_values

    folder = folder or Path.cwd()
    env_file = next((p / ".env" for p in (folder, *folder.parents) if (p / ".env").is_file()), None)
    written = dotenv_values(env_file, encoding="utf-8-sig") if env_file else {}
    given = {key.lower(): (text, env_file.parent) for key, text in written.items() if text and env_file}
    given |= {key.lower(): (text, Path()) for key, text in os.environ.items() if text}
    given["ckpt_path"] = given.pop("meddinov3_ckpt_path", ("", Path()))
    unused = ("DOWNLOAD_CHUNK_MB",) if "download_chunk_mb" in given else ()
    kinds = {f.name: type(f.default) for f in fields(Settings) if f.name != "unused"} | {"ckpt_path": Path}
    values = {name: _parse(name, *given[name], kind) for name, kind in kinds.items() if given.get(name, [""])[0]}
    if env_file is None:
        values.setdefault("models_dir", _default_models_dir(folder))
    return Settings(**values, unused=unused)


def _parse(name: str, text: str, base: Path, kind: type) -> Any:
    if issubclass(kind, Path):
        return base / Path(text).expanduser()
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        raise UsageError(f"{name.upper()}: found {text!r}, expected a number; correct it in .env") from None
