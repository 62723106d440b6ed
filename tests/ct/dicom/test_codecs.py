"""The child process that decodes: whatever it does, the parent goes on and the next frame is decoded."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.spawn
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from pydicom.encaps import generate_frames

from meddinov3_stroke.ct.dicom import decoders
from meddinov3_stroke.ct.dicom.container import read_structure
from meddinov3_stroke.ct.dicom.decoders import Codec, EncodedFrame, shared_codec
from meddinov3_stroke.errors import CorruptInput, MachineError, UnsupportedInput

JPEG_2000 = "1.2.840.10008.1.2.4.90"
VALUES = np.arange(24 * 20, dtype=np.int16).reshape(24, 20)


@pytest.fixture(scope="session")
def frame(dicom_bytes, pixel_format) -> EncodedFrame:
    content = dicom_bytes(VALUES, JPEG_2000)
    structure = read_structure(content, "case.dcm")
    encapsulated = content[structure.pixel_data.offset :]
    return EncodedFrame(JPEG_2000, next(generate_frames(encapsulated, number_of_frames=1)), pixel_format(VALUES))


@pytest.fixture
def codec_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Codec]]:
    """A codec whose child decodes by the Python `body`, and to `VALUES` once the file `healed` is there."""
    codecs = []

    def build(body: str, **arguments: float) -> Codec:
        name = f"decoding_{tmp_path.name}"
        lines = [
            "import os, signal, sys, time",
            "import numpy",
            "from meddinov3_stroke.ct.dicom import decoders",
            "def values():",
            "    return numpy.arange(24 * 20, dtype='i2').reshape(24, 20)",
            "class Odd:",
            "    def astype(self, *_, **__):",
            "        return {'no': 'array'}",
            "class Unsendable(Odd):",
            "    def astype(self, *_, **__):",
            "        return lambda: None",
            "def decode(frame):",
            f"    if os.path.exists({str(tmp_path / 'healed')!r}):",
            "        return values()",
            f"    {body}",
        ]
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(tmp_path))
        codecs.append(Codec(import_module(name).decode, **arguments))
        return codecs[-1]

    yield build
    for codec in codecs:
        codec.close()


def _heal(tmp_path: Path) -> None:
    (tmp_path / "healed").touch()


def _pid(codec: Codec) -> int:
    return codec._child.process.pid


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV"),
        ("os.abort()", "died of SIGABRT"),
        ("os._exit(3)", "ended with status 3"),
        ("time.sleep(60)", "takes longer than allowed"),
        ("[None for _ in iter(int, 1)]", "more processor time than allowed"),
        ("bytearray(8 << 30)", "more memory than a frame may take"),
        ("raise ValueError('bad Huffman code')", "bad Huffman code"),
        ("return numpy.zeros((20, 24), 'i2')", "another shape"),
        ("return numpy.zeros((24, 20), 'i4')", "Cannot cast"),
        ("return numpy.zeros((2400, 2000), 'i2')", "another shape"),
        ("return Odd()", "another shape or type"),
        ("return Unsendable()", "unexpected result"),
        ("return None", "no attribute 'astype'"),
    ],
)
def test_a_child_that_fails_costs_one_frame_and_the_next_is_decoded(body, words, codec_with, frame, tmp_path) -> None:
    codec = codec_with(body, frame_deadline_s=5.0 if "sleep" not in body else 0.3)
    with pytest.raises(CorruptInput, match=words):
        codec.decode(frame, "case.dcm")
    _heal(tmp_path)
    np.testing.assert_array_equal(codec.decode(frame, "case.dcm"), VALUES)


def test_a_child_killed_in_the_middle_of_a_frame_costs_that_frame(codec_with, frame, tmp_path) -> None:
    codec = codec_with("time.sleep(60)")
    with ThreadPoolExecutor(1) as pool:
        decoding = pool.submit(codec.decode, frame, "case.dcm")
        while codec._child is None:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(_pid(codec), signal.SIGKILL)
        with pytest.raises(CorruptInput, match="died of SIGKILL"):
            decoding.result(timeout=10)
    _heal(tmp_path)
    np.testing.assert_array_equal(codec.decode(frame, "case.dcm"), VALUES)


def test_a_hanging_child_is_gone_after_its_deadline(codec_with, frame) -> None:
    codec = codec_with("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(60)", frame_deadline_s=0.3)
    codec._started()
    pid, start = _pid(codec), time.monotonic()
    with pytest.raises(CorruptInput, match="longer than allowed"):
        codec.decode(frame, "case.dcm")
    assert time.monotonic() - start < 5
    assert not _is_alive(pid)


def test_a_child_that_does_not_read_its_request_hangs_nobody(codec_with, frame, dicom_bytes) -> None:
    codec = codec_with("time.sleep(60)", frame_deadline_s=0.3)
    codec._started()
    os.kill(_pid(codec), signal.SIGSTOP)
    large = EncodedFrame(frame.transfer_syntax, bytes(1 << 20), frame.pixels)
    with pytest.raises(CorruptInput, match="longer than allowed"):
        codec.decode(large, "case.dcm")


def test_processor_time_is_limited_and_not_by_the_deadline(codec_with, frame) -> None:
    codec = codec_with("[None for _ in iter(int, 1) if False]")
    with pytest.raises(CorruptInput, match="more processor time"):
        codec.decode(frame, "case.dcm")


def test_a_real_loop_in_a_decoder_is_ended(frame, dicom_bytes, pixel_format) -> None:
    """CharLS runs for seconds over a stream that lost its last bytes."""
    values = np.clip(np.linspace(-32768, 32767, 480) + np.random.default_rng(3).normal(0, 5, 480), -32768, 32767)
    image = values.reshape(24, 20).astype(np.int16)
    syntax = "1.2.840.10008.1.2.4.80"
    content = dicom_bytes(image, syntax)
    stream = next(generate_frames(content[read_structure(content, "x").pixel_data.offset :], number_of_frames=1))
    shared_codec().decode(EncodedFrame(syntax, stream, pixel_format(image)), "case.dcm")
    with pytest.raises(CorruptInput, match="more processor time"):
        shared_codec().decode(EncodedFrame(syntax, stream[:-6], pixel_format(image)), "case.dcm")


def test_without_its_decoder_a_frame_is_unsupported(codec_with, frame) -> None:
    codec = codec_with("raise decoders.UnsupportedFrame('its decoder is not installed')")
    with pytest.raises(UnsupportedInput, match=r"1\.2\.840\.10008\.1\.2\.4\.90: its decoder is not installed"):
        codec.decode(frame, "case.dcm")


def test_no_decoder_at_all_is_told_by_the_child_itself(monkeypatch, frame) -> None:
    monkeypatch.setitem(decoders.PLUGINS, JPEG_2000, ())
    with pytest.raises(decoders.UnsupportedFrame, match="not installed"):
        decoders.decode(frame)


@pytest.mark.parametrize("python", [b"/nowhere/python", b"/bin/false"])
def test_a_child_that_cannot_start_is_the_machines_fault(python, frame, monkeypatch) -> None:
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", python)
    with pytest.raises(MachineError, match="cannot be started"):
        Codec().decode(frame, "case.dcm")


def test_what_a_decoder_prints_is_neither_an_answer_nor_shown(codec_with, frame, tmp_path, capfd) -> None:
    codec = codec_with("os.write(1, b'noise'); os.write(2, b'noise'); return values()")
    np.testing.assert_array_equal(codec.decode(frame, "case.dcm"), VALUES)
    assert capfd.readouterr() == ("", "")


def test_one_child_serves_many_frames_and_ends_with_its_codec(frame) -> None:
    codec = Codec()
    codec.decode(frame, "case.dcm")
    pid = _pid(codec)
    for _ in range(5):
        codec.decode(frame, "case.dcm")
    assert _pid(codec) == pid
    assert _is_alive(pid)
    codec.close()
    assert not _is_alive(pid)
    codec.close()


def test_a_refused_frame_keeps_the_child(frame) -> None:
    codec = shared_codec()
    codec.decode(frame, "case.dcm")
    pid = _pid(codec)
    with pytest.raises(CorruptInput, match="cannot be decoded"):
        codec.decode(EncodedFrame(JPEG_2000, frame.codestream[:90], frame.pixels), "case.dcm")
    assert _pid(codec) == pid


def test_threads_share_the_child_and_get_their_own_frames(dicom_bytes, pixel_format) -> None:
    frames = []
    for offset in range(8):
        content = dicom_bytes(VALUES + np.int16(1000 * offset), JPEG_2000)
        encapsulated = content[read_structure(content, "x").pixel_data.offset :]
        frames.append(
            EncodedFrame(JPEG_2000, next(generate_frames(encapsulated, number_of_frames=1)), pixel_format(VALUES))
        )
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(lambda k: shared_codec().decode(frames[k % 8], "case.dcm"), range(64)))
    for k, values in enumerate(decoded):
        np.testing.assert_array_equal(values, VALUES + 1000 * (k % 8))


def test_the_child_has_limited_memory_and_writes_no_core(frame) -> None:
    shared_codec().decode(frame, "case.dcm")
    limits = Path(f"/proc/{_pid(shared_codec())}/limits").read_text().splitlines()
    rows = {line[:26].strip(): line[26:].split() for line in limits}
    assert rows["Max core file size"][:2] == ["0", "0"]
    assert decoders.MAX_GROWTH_BYTES < int(rows["Max address space"][0]) < 4 * decoders.MAX_GROWTH_BYTES


def _decode_and_tell(frame: EncodedFrame, answers: multiprocessing.SimpleQueue) -> None:
    values = shared_codec().decode(frame, "case.dcm")
    answers.put((os.getpid(), _pid(shared_codec()), values.tolist()))


def _in_a_process(frame: EncodedFrame, method: str) -> tuple[int, int, list]:
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    worker = context.Process(target=_decode_and_tell, args=(frame, answers), daemon=True)
    worker.start()
    try:
        return answers.get()
    finally:
        worker.join(20)
        assert worker.exitcode == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # Python 3.12 and later
def test_a_forked_worker_has_a_child_of_its_own_even_while_the_lock_is_held(frame) -> None:
    codec = shared_codec()
    codec.decode(frame, "case.dcm")
    pid = _pid(codec)
    with codec._lock:  # as if another thread were decoding at the moment of the fork
        worker, childs_child, values = _in_a_process(frame, "fork")
    assert worker != os.getpid()
    assert childs_child != pid
    assert values == VALUES.tolist()
    np.testing.assert_array_equal(codec.decode(frame, "case.dcm"), VALUES)
    assert _pid(codec) == pid
    deadline = time.monotonic() + 10
    while _is_alive(childs_child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(childs_child)  # it ends with the worker, whose pipe it reads


def test_an_interrupt_inside_a_frame_takes_the_child_along(frame, monkeypatch) -> None:
    codec = Codec()
    codec.decode(frame, "case.dcm")
    pid = _pid(codec)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(codec._child.pool, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        codec.decode(frame, "case.dcm")
    assert not _is_alive(pid)
    np.testing.assert_array_equal(codec.decode(frame, "case.dcm"), VALUES)
    codec.close()


def test_the_child_is_in_a_session_of_its_own_so_that_ctrl_c_passes_it_by(frame) -> None:
    shared_codec().decode(frame, "case.dcm")
    assert os.getsid(_pid(shared_codec())) != os.getsid(0)


def test_a_script_that_decodes_ends_cleanly(frame, tmp_path, dicom_bytes) -> None:
    import subprocess

    path, script = tmp_path / "case.dcm", tmp_path / "script.py"
    path.write_bytes(dicom_bytes(VALUES, JPEG_2000))
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from meddinov3_stroke.ct.dicom.header import PixelFormat\n"
        "from meddinov3_stroke.ct.dicom.pixels import decode_frame\n"
        "from meddinov3_stroke.ct.dicom.container import read_structure\n"
        "from meddinov3_stroke.ct.dicom.decoders import shared_codec\n"
        "content = read_structure(Path(sys.argv[1]).read_bytes(), 'case')\n"
        "pixels = PixelFormat(24, 20, 1, 'MONOCHROME2', 16, 16, 15, True)\n"
        "print(int(decode_frame(content, pixels, 0, 'case').sum()), shared_codec()._child.process.pid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(script), str(path)], capture_output=True, text=True, check=True
    )
    total, pid = map(int, done.stdout.split())
    assert total == VALUES.sum()
    assert done.stderr == ""
    assert not _is_alive(pid)


def test_nothing_is_left_open_when_a_codec_is_closed(frame) -> None:
    shared_codec().decode(frame, "case.dcm")  # multiprocessing's own resource tracker stays
    gc.collect()
    n_open = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        codec = Codec()
        codec.decode(frame, "case.dcm")
        codec.close()
    del codec
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == n_open
    assert threading.active_count() >= 1
