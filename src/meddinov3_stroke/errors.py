"""The one exception tree. Each class carries its `code` (printed) and its `exit_code` (what a shell sees).

MedDINOError                  70  internal error, unless a subclass says otherwise
├── UsageError                 2  wrong arguments
├── InputError                 3  a volume file is corrupt or unsupported
│   ├── MissingInput
│   ├── CorruptInput
│   ├── UnsupportedInput
│   └── AmbiguousInput
├── OutOfScope                 4  readable, but outside what the model is meant for
├── DatasetError               5  series table, labels, splits, embeddings given as data
│   ├── SeriesTableError
│   ├── LabelError
│   ├── SplitError
│   └── NonFiniteLoss
├── WeightsError               6  weights, checkpoints, downloads
│   ├── MissingWeights
│   ├── UnsafeWeights
│   ├── WeightsMismatch
│   ├── CheckpointError
│   ├── DownloadError
│   └── NonFiniteEmbedding
├── MachineError               7  device, disk, permission, lock
│   ├── DeviceUnavailable
│   ├── StorageError
│   └── LockTimeout
└── PartialFailure             8  some cases failed, the rest is kept
    └── TooManyInvalid
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["done", "rejected", "refused", "failed"]
"""How a case or a cohort row ends: processed; corrupt or unsupported; out of scope; failed (worth another try)."""

STATUSES: tuple[Status, ...] = get_args(Status)
"""The values of `Status`, in the order summaries list them."""


@dataclass(frozen=True)
class Outcome:
    """How one case or cohort row ended."""

    status: Status = "done"
    code: str = ""
    """Code of the error, such as `E-INPUT-CORRUPT`; empty when done."""
    message: str = ""
    """The error in one line; empty when done."""

    @property
    def reason(self) -> str:
        """`E-CODE: message`, or the message alone where no error was raised."""
        return f"{self.code}: {self.message}" if self.code else self.message

    @classmethod
    def of(cls, error: Exception) -> Outcome:
        """The outcome of a case that raised `error`; an error outside this tree counts as an internal one."""
        if isinstance(error, MedDINOError):
            return cls(error.status, error.code, str(error))
        return cls("failed", MedDINOError.code, f"internal error: {type(error).__name__}: {error}")


class MedDINOError(Exception):
    """Base of every error raised on purpose; the message is one line: what, where and what to do."""

    code = "E-BUG"
    exit_code = 70
    status: Status = "failed"
    """Status of a case that ends with this error."""


class UsageError(MedDINOError):
    """Arguments that cannot be honoured."""

    code = "E-USAGE"
    exit_code = 2


class InputError(MedDINOError):
    """A volume file that cannot be trusted or read."""

    code = "E-INPUT"
    exit_code = 3
    status = "rejected"


class MissingInput(InputError):
    """No such file, an empty file, or a directory where a file is needed."""

    code = "E-INPUT-MISSING"


class CorruptInput(InputError):
    """The container fails its own checks (CRC, length, header against size, non-finite voxels)."""

    code = "E-INPUT-CORRUPT"


class UnsupportedInput(InputError):
    """A sound file of a kind this package does not read."""

    code = "E-INPUT-UNSUPPORTED"


class AmbiguousInput(InputError):
    """Several patients or studies where one is needed, and nothing says which."""

    code = "E-INPUT-AMBIGUOUS"


class OutOfScope(MedDINOError):
    """Readable, but outside what the model is meant for."""

    code = "E-SCOPE"
    exit_code = 4
    status = "refused"


class DatasetError(MedDINOError):
    """A data set whose tables, labels or arrays contradict themselves or each other."""

    code = "E-DATASET"
    exit_code = 5
    status = "rejected"


class SeriesTableError(DatasetError):
    """A series CSV that lacks columns, cannot be decoded, or holds conflicting rows."""

    code = "E-SERIES-CSV"


class LabelError(DatasetError):
    """Labels that are not 0 or 1, or that contradict each other."""

    code = "E-LABELS"


class SplitError(DatasetError):
    """No split meets the rules: too few patients, or one patient or volume in two splits."""

    code = "E-SPLIT"


class NonFiniteLoss(DatasetError):
    """Training met a NaN or infinite loss; the last good checkpoint stays."""

    code = "E-LOSS"


class WeightsError(MedDINOError):
    """Backbone weights or a head checkpoint that cannot be used."""

    code = "E-WEIGHTS"
    exit_code = 6


class MissingWeights(WeightsError):
    """No weights where they were looked for."""

    code = "E-WEIGHTS-MISSING"


class UnsafeWeights(WeightsError):
    """A pickle that holds more than tensors; nothing of it was run."""

    code = "E-WEIGHTS-UNSAFE"


class WeightsMismatch(WeightsError):
    """Tensor names, shapes, digest or preprocessing differ from what is expected."""

    code = "E-WEIGHTS-MISMATCH"


class CheckpointError(WeightsError):
    """A head checkpoint that is damaged or does not belong to this backbone, labels or preprocessing."""

    code = "E-CHECKPOINT"


class DownloadError(WeightsError):
    """No source gave the bytes that were asked for; the file that was there is untouched."""

    code = "E-DOWNLOAD"


class NonFiniteEmbedding(WeightsError):
    """The backbone gave NaN or infinity for a case, which is named."""

    code = "E-EMBEDDING"


class MachineError(MedDINOError):
    """The machine lacks what the run needs."""

    code = "E-MACHINE"
    exit_code = 7


class DeviceUnavailable(MachineError):
    """A device was asked for by name and is not there."""

    code = "E-DEVICE"


class StorageError(MachineError):
    """Disk full, read-only folder or I/O error; nothing torn is left behind."""

    code = "E-STORAGE"


class LockTimeout(MachineError):
    """Another process held a lock for too long."""

    code = "E-LOCK"


class PartialFailure(MedDINOError):
    """Some cases failed; what was finished is kept."""

    code = "E-PARTIAL"
    exit_code = 8


class TooManyInvalid(PartialFailure):
    """More unreadable volumes than `--max-invalid` allows to skip."""

    code = "E-INVALID-CAP"
