import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from types import SimpleNamespace

import psutil
import pytest
import torch
from filelock import FileLock, Timeout

from harness.decoders.exact import ExactBatch
from harness.decoders.sequential import Sequential
from harness.errors import HarnessError
from harness.flows.coupled import coupled_tarflow
from harness.measure.units import Bench
from harness.measure.workers import process as process_module
from harness.measure.workers.process import FreshProcess, ProcessDied
from harness.metrics.lock import device_lock

SEEN = []


def remember(value):
    SEEN.append(value)
    return os.getpid(), list(SEEN)


def complain():
    raise HarnessError("this does not work")


def complain_unpicklably():
    class Local(Exception):
        pass

    raise Local("in its own words")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


def test_every_job_has_a_process_in_which_nothing_ran_before():
    fresh = FreshProcess()
    SEEN.append("here")
    (one, first), (two, second) = fresh.run(remember, 1), fresh.run(remember, 2)
    assert len({one, two, os.getpid()}) == 3
    assert first == [1] and second == [2]
    SEEN.clear()


def test_what_a_job_raises_is_raised_here():
    with pytest.raises(HarnessError, match="this does not work"):
        FreshProcess().run(complain)
    with pytest.raises(RuntimeError, match="in its own words"):
        FreshProcess().run(complain_unpicklably)


def test_a_server_that_is_killed_is_replaced_by_the_next_start():
    fresh = FreshProcess()
    fresh.run(os.getpid)
    for _ in range(5):
        (server,) = [
            p
            for p in psutil.Process().children()
            if p.status() != psutil.STATUS_ZOMBIE and any("forkserver" in word for word in p.cmdline())
        ]
        server.kill()
        assert fresh.run(os.getpid) != server.pid


def test_a_folder_for_temporary_files_that_no_socket_fits_into_is_a_sentence(tmp_path):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    code = "from harness.measure.workers.process import FreshProcess; FreshProcess().run(int)"
    environment = os.environ | {"TMPDIR": str(folder)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stderr
    assert "too long for a socket in it; set TMPDIR" in told


@pytest.mark.parametrize(("job", "sentence"), [(die, "SIGKILL"), (leave, "code 3")])
def test_a_process_that_dies_is_a_sentence(job, sentence):
    with pytest.raises(ProcessDied, match=sentence):
        FreshProcess().run(job)


def talker():
    return remember


def holder(folder):
    tempfile.tempdir = folder
    held = device_lock("cpu")
    held.__enter__()
    return lambda: (os.getpid(), held is not None)


def forget():
    threading.Thread(target=threading.Event().wait, name="forgotten").start()
    return "measured"


def close_everything():
    os.closerange(3, 256)
    threading.Event().wait()


def test_a_process_with_a_thread_that_was_left_is_ended_and_told(monkeypatch, capsys):
    monkeypatch.setattr(process_module, "ENDS_S", 0.2)
    assert FreshProcess().run(forget) == "measured"
    assert "had not ended after 0.2 s, as where a decoder leaves a thread" in capsys.readouterr().err
    with pytest.raises(ProcessDied, match="SIGKILL"):
        FreshProcess().run(close_everything)


def test_the_command_ends_although_a_thread_was_left():
    code = """
        import sys, threading, harness.cli
        app = sys.modules["harness.cli.app"]
        app.ENDS_S = 0.2
        threading.Thread(target=threading.Event().wait, name="forgotten").start()
        sys.argv = ["harness", "list", "datasets"]
        app.main()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "digits" in done.stdout
    assert done.stderr == "the process did not end within 0.2 s and was ended; still running: forgotten\n"


class Meddling(Sequential):
    """Slows everybody down."""

    def solve(self, layer, inputs, condition):
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().solve(layer, inputs, condition)


def test_what_a_decoder_changes_is_put_back_before_the_next_and_told_once():
    bench, before = Bench(""), torch.get_num_threads()
    subject = SimpleNamespace(cell_id="0", checkpoint="coupled")
    batch = ExactBatch.draw(coupled_tarflow(0), 2, torch.Generator())
    for _ in range(2):
        assert bench.attempt(subject, "timing", lambda: batch.result(Meddling())).ok
        assert torch.get_num_threads() == before
    (note,) = bench.notes
    assert note.startswith("coupled: changes the number of torch's threads while it decodes; put back")


def test_a_decoder_that_exits_fails_in_its_own_row():
    attempt = Bench("").attempt(SimpleNamespace(cell_id="0", checkpoint="coupled"), "timing", lambda: sys.exit(3))
    assert (attempt.status, attempt.error) == ("failed", "SystemExit: 3")


def test_a_conversation_is_with_one_process():
    with FreshProcess().open(talker) as process:
        (one, first), (two, second) = process.ask(1), process.ask(2)
    assert one == two != os.getpid() and (first, second) == ([1], [1, 2])
    assert not psutil.pid_exists(one)


def test_a_spawned_process_has_its_environment_before_it_imports_anything():
    assert FreshProcess(environment={"HARNESS_TEST": "here"}).run(os.getenv, "HARNESS_TEST") == "here"
    assert "HARNESS_TEST" not in os.environ


def test_the_lock_of_a_device_is_held_until_its_process_ends_however_it_ends(tmp_path):
    process = FreshProcess().open(holder, str(tmp_path))
    pid, _ = process.ask()
    lock = FileLock(tmp_path / "harness-locks" / "cpu.lock")
    with pytest.raises(Timeout):
        lock.acquire(blocking=False)
    os.kill(pid, signal.SIGKILL)
    process.close()
    with lock.acquire(timeout=10):
        pass
