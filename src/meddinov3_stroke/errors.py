"""The one exception tree: each class has a `code` (printed) and an `exit_code` (what a shell sees)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Status = Literal["done", "rejected", "refused", "failed"]
"""How a case or a cohort row ends: processed; corrupt or unsupported; out of scope; failed (worth another try)."""

NAMED = 8
"""Rows, IDs, slices or cases that a message names before it only counts the rest."""

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

    def __init_subclass__(cls, code: str = "", exit_code: int = 0, status: Status | None = None) -> None:
        """Set what differs from the parent class."""
        super().__init_subclass__()
        cls.code, cls.exit_code = code or cls.code, exit_code or cls.exit_code
        cls.status = status or cls.status


class UsageError(MedDINOError, code="E-USAGE", exit_code=2):
    """Arguments that cannot be honoured."""


class InputError(MedDINOError, code="E-INPUT", exit_code=3, status="rejected"):
    """A volume file that cannot be trusted or read."""


class MissingInput(InputError, code="E-INPUT-MISSING"):
    """No such file, an empty file, or a directory where a file is needed."""


class CorruptInput(InputError, code="E-INPUT-CORRUPT"):
    """The container fails its own checks (CRC, length, header against size, non-finite voxels)."""


class UnsupportedInput(InputError, code="E-INPUT-UNSUPPORTED"):
    """A sound file of a kind this package does not read."""


class AmbiguousInput(InputError, code="E-INPUT-AMBIGUOUS"):
    """Several patients or studies where one is needed, and nothing says which."""


class OutOfScope(MedDINOError, code="E-SCOPE", exit_code=4, status="refused"):
    """Readable, but outside what the model is meant for."""

    rules: tuple[str, ...] = ()
    """Names of the rules of `ct.scope` that refuse the volume; empty if something else does."""


class DatasetError(MedDINOError, code="E-DATASET", exit_code=5, status="rejected"):
    """A data set whose tables, labels or arrays contradict themselves or each other."""


class SeriesTableError(DatasetError, code="E-SERIES-CSV"):
    """A series CSV that lacks columns, cannot be decoded, or holds conflicting rows."""


class LabelError(DatasetError, code="E-LABELS"):
    """Labels that are not 0 or 1, or that contradict each other."""


class SplitError(DatasetError, code="E-SPLIT"):
    """No split meets the rules: too few patients, or one patient or volume in two splits."""


class NonFiniteLoss(DatasetError, code="E-LOSS"):
    """Training met a NaN or infinite loss; the last good checkpoint stays."""


class WeightsError(MedDINOError, code="E-WEIGHTS", exit_code=6):
    """Backbone weights or a head checkpoint that cannot be used."""


class MissingWeights(WeightsError, code="E-WEIGHTS-MISSING"):
    """No weights where they were looked for."""


class UnsafeWeights(WeightsError, code="E-WEIGHTS-UNSAFE"):
    """A pickle that holds more than tensors; nothing of it was run."""


class WeightsMismatch(WeightsError, code="E-WEIGHTS-MISMATCH"):
    """Tensor names, shapes, digest or preprocessing differ from what is expected."""


class CheckpointError(WeightsError, code="E-CHECKPOINT"):
    """A head checkpoint that is damaged or does not belong to this backbone, labels or preprocessing."""


class DownloadError(WeightsError, code="E-DOWNLOAD"):
    """No source gave the bytes that were asked for; the file that was there is untouched."""


class NonFiniteEmbedding(WeightsError, code="E-EMBEDDING"):
    """The backbone gave NaN or infinity for a case, which is named."""


class MachineError(MedDINOError, code="E-MACHINE", exit_code=7):
    """The machine lacks what the run needs."""


class DeviceUnavailable(MachineError, code="E-DEVICE"):
    """A device was asked for by name and is not there."""


class WorkerLost(MachineError, code="E-WORKER"):
    """Every worker process that was given this case died or hung."""


class StorageError(MachineError, code="E-STORAGE"):
    """Disk full, read-only folder or I/O error; nothing torn is left behind."""


class StorageUnavailable(StorageError):
    """A storage service or the disk for copies of inputs, without which no further input can be read."""


class LockTimeout(MachineError, code="E-LOCK"):
    """Another process held a lock for too long."""


class PartialFailure(MedDINOError, code="E-PARTIAL", exit_code=8):
    """Some cases failed; what was finished is kept."""


class TooManyInvalid(PartialFailure, code="E-INVALID-CAP"):
    """More unreadable volumes than `--max-invalid` allows to skip."""


def name_some(names: Iterable[Any]) -> str:
    """The first few names, and how many more there are."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more
