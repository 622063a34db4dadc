"""What keeps a run alive or says what is wrong, each piece alone: checkpoints, lock, watch, metrics, signals."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxvlm import files
from jaxvlm.config import MeshConfig
from jaxvlm.errors import UserError
from jaxvlm.files import Lock, NonRaisingStream, replace_text
from jaxvlm.sharding import make_mesh
from jaxvlm.training import checkpoint, watch
from jaxvlm.training.checkpoint import Checkpoints
from jaxvlm.training.checkpoint_files import damage, is_finished, whole_steps
from jaxvlm.training.metrics import Writer, read_metrics
from jaxvlm.training.preemption import Preemption, StartAgain
from jaxvlm.training.profile import Profile
from jaxvlm.training.state import State
from jaxvlm.training.watch import Watch

# Checkpoints


def write_checkpoint(folder, *, step, steps=30):
    """A folder with the listing that a checkpoint has, without arrays."""
    own = folder / str(step)
    (own / "position").mkdir(parents=True)
    (own / "weights").write_text("12345")
    (own / "position" / "metadata").write_text(json.dumps({"steps": steps}))
    sizes = {"weights": 5, "position/metadata": (own / "position" / "metadata").stat().st_size}
    (own / "files.json").write_text(json.dumps(sizes))
    return own


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda own: None, ""),
        (lambda own: (own / "weights").write_text("123"), "weights has 3 bytes, 5 were written"),
        (lambda own: (own / "weights").unlink(), "weights is missing"),
        (lambda own: (own / "position" / "metadata").unlink(), "position/metadata is missing"),
        (lambda own: (own / "files.json").write_text('{"weights": 5'), "files.json cannot be read"),
        (lambda own: (own / "files.json").write_text("[]"), "files.json cannot be read"),
        (lambda own: (own / "files.json").unlink(), ""),  # another program's
        (lambda own: scramble(own / "position" / "metadata"), "its position cannot be read, JSONDecodeError: "),
        (lambda own: shutil.rmtree(own) or own.mkdir(), "its position cannot be read, FileNotFoundError: "),
        (lambda own: shutil.rmtree(own) or own.touch(), "its position cannot be read, NotADirectoryError: "),
        (lambda own: (own / "commit_success.txt").touch(), ""),
    ],
)
def test_damage_is_named(tmp_path, harm, found):
    own = write_checkpoint(tmp_path, step=3)
    harm(own)
    named = damage(own)
    assert named.startswith(found) and bool(named) == bool(found)


def scramble(path):
    path.write_bytes(bytes(path.stat().st_size))


def test_only_whole_checkpoints_count(tmp_path):
    assert whole_steps(tmp_path / "absent") == [] and not is_finished(tmp_path / "absent")
    for step in (9, 10, 30):
        write_checkpoint(tmp_path, step=step)
    write_checkpoint(tmp_path, step=40).rename(tmp_path / "40.orbax-checkpoint-tmp-7")
    assert whole_steps(tmp_path) == [9, 10, 30] and is_finished(tmp_path)
    (tmp_path / "30" / "position" / "metadata").write_text("{'steps': 30}")  # of the size that was written
    assert whole_steps(tmp_path) == [9, 10] and not is_finished(tmp_path)


def small_state(step, mesh, spec, dtype=jnp.float32):
    """A state of three leaves, of which the weights lie on `mesh` by `spec`."""
    split, whole = NamedSharding(mesh, spec), NamedSharding(mesh, PartitionSpec())
    numbers = np.arange(128, dtype=np.float32).reshape(8, 16) / 8 + step

    def leaf(x, sharding, dtype):
        return jax.device_put(jnp.asarray(x, dtype), sharding)

    return State(
        step=leaf(step, whole, jnp.int32),
        trained={"projector": {"w": leaf(numbers, split, jnp.float32)}},
        frozen={"vision": {"w": leaf(numbers + 1, split, dtype)}},
        optimizer={"mu": {"projector": {"w": leaf(-numbers, split, jnp.float32)}}},
        key=leaf([step, 7], whole, jnp.uint32),
    )


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture
def three(tmp_path):
    """A folder with checkpoints of steps 1 to 3, on one device, in float32."""
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    checkpoints = Checkpoints(tmp_path / "c")
    for step in (1, 2, 3):
        checkpoints.save(small_state(step, mesh, PartitionSpec()), {"next": step}, 9)
    checkpoints.close()
    return tmp_path / "c"


def test_the_newest_whole_one_is_restored_on_other_devices_and_dtypes(three, capsys):
    os.truncate(three / "3" / "params" / "_METADATA", 10)
    (three / "2" / "training" / "manifest.ocdbt").unlink()
    mesh = make_mesh(MeshConfig(1, 4, 2))
    wanted = small_state(1, mesh, PartitionSpec("fsdp", "tensor"), jnp.bfloat16)
    checkpoints = Checkpoints(three)
    state, position, step = checkpoints.restore_newest(abstract(wanted))
    assert (step, position) == (1, {"next": 1}) and checkpoints.steps() == [1]
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == theirs.dtype and ours.sharding == theirs.sharding
        np.testing.assert_array_equal(ours, theirs)
    errors = capsys.readouterr().err
    assert f"WARNING: the checkpoint {three / '3'} is damaged (params/_METADATA has 10 bytes" in errors
    assert f"WARNING: the checkpoint {three / '2'} is damaged (training/manifest.ocdbt is missing)" in errors
    assert errors.index("going back to step 2") < errors.index("going back to step 1")
    kept = sorted(path.name.split("-")[0] for path in (three.parent / "c.damaged").iterdir())
    assert kept == ["2", "3"]
    checkpoints.close()


def test_without_a_whole_one_the_stage_starts_anew(three, capsys):
    for step in (1, 2, 3):
        (three / str(step) / "params" / "_METADATA").unlink()
    wanted = small_state(1, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), PartitionSpec())
    checkpoints = Checkpoints(three)
    assert checkpoints.restore_newest(abstract(wanted)) is None
    assert "there is none before it: the stage starts from its beginning" in capsys.readouterr().err
    checkpoints.save(wanted, {}, 9, wait=True)
    assert checkpoints.steps() == [1]
    checkpoints.close()


def test_a_device_that_is_too_small_damages_no_checkpoint(three, monkeypatch):
    def restore(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(Checkpoints, "restore", restore)
    wanted = small_state(1, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), PartitionSpec())
    checkpoints = Checkpoints(three)
    with pytest.raises(jax.errors.JaxRuntimeError):
        checkpoints.restore_newest(abstract(wanted))
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.close()


def test_a_save_that_fails_is_said_and_the_next_one_is_tried(tmp_path, monkeypatch, capsys):
    state = small_state(4, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), PartitionSpec())
    tries = []

    def full(*_, **__):
        tries.append(1)
        (tmp_path / "c" / "4.orbax-checkpoint-tmp-0").mkdir(exist_ok=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_RETRY_SECONDS", 0.0)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(dataclasses.replace(state, step=jnp.int32(2)), {}, 9, wait=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint._Manager, "save", full)
        checkpoints.save(state, {}, 9)
        errors = capsys.readouterr().err
        assert "ERROR: the checkpoint of step 4 could NOT be saved" in errors and "No space left" in errors
        assert len(tries) == 1 and [path.name for path in (tmp_path / "c").iterdir()] == ["2"]
        with pytest.raises(UserError, match="step 4 could not be saved .* continue from step 2 with --resume"):
            checkpoints.save(state, {}, 9, wait=True)
        assert len(tries) == 4
    checkpoints.save(state, {}, 9, wait=True)
    assert checkpoints.steps() == [2, 4]
    checkpoints.close()


def test_reading_leaves_the_save_of_a_running_process_alone(three):
    half = three / "4.orbax-checkpoint-tmp" / "params"
    half.mkdir(parents=True)
    wanted = abstract(small_state(1, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), PartitionSpec()))
    checkpoints = Checkpoints(three)
    checkpoints.restore_params(wanted.trained, wanted.frozen, 3)
    checkpoints.close()
    assert half.is_dir()


# Files


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    replace_text(path, "old")
    inode = path.stat().st_ino

    def half(self, content):
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
            replace_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    replace_text(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_ino != inode  # a reader that has the old file open still reads the old text


def test_a_lock_is_taken_once(tmp_path):
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    first.take()
    first.take()
    with pytest.raises(UserError, match=f"is in use by another run, .*{os.getpid()}.*choose another --workdir"):
        second.take()
    first.release()
    second.take()
    with pytest.raises(UserError):
        first.take()
    second.release()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = "import sys, time, pathlib; from jaxvlm.files import Lock; lock = Lock(pathlib.Path(sys.argv[1]))"
    code += "; lock.take(); print('taken', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        lock = Lock(tmp_path / "lock")
        with pytest.raises(UserError, match=str(child.pid)):
            lock.take()
        child.kill()
        child.wait()
        lock.take()
        lock.release()


def test_a_file_system_without_locks_warns(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    Lock(tmp_path / "lock").take()
    assert "cannot be locked" in capsys.readouterr().err


def test_a_stream_on_a_full_disk_drops_what_it_is_given():
    file = open("/dev/full", "w")  # noqa: SIM115 - it cannot be closed in peace
    with pytest.raises(OSError, match="No space left"):
        file.write("long" * 10_000)
    stream = NonRaisingStream(file)
    assert stream.write("long" * 10_000) == 40_000
    stream.flush()
    assert stream.fileno() == file.fileno()
    with contextlib.suppress(OSError):
        file.close()


# Watch


class Clock:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 100.0
        self.time = time.time

    def monotonic(self):
        return self.now


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A watch whose clock stands still, and a function that spends seconds of a step in a phase."""
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    monkeypatch.setattr(watch, "_BEAT_SECONDS", 1000.0)  # beats are called for
    with Watch(tmp_path / "heartbeats" / "0.json") as watching:

        def spend(seconds, phase, step):
            with watching.phase(phase, step):
                clock.now += seconds
                watching._beat()

        yield SimpleNamespace(watch=watching, clock=clock, spend=spend, folder=tmp_path)


def steps(watched, first, last, *, seconds=1.0, every=1):
    for step in range(first, last + 1):
        watched.spend(0.1 * seconds, "data", step)
        watched.spend(0.9 * seconds, "step", step)
        if step % every == 0:
            watched.watch.progressed(step)


def test_a_heartbeat_names_phase_and_step(watched):
    def beat():
        return json.loads((watched.folder / "heartbeats" / "0.json").read_text())

    watched.watch._beat()
    assert (beat()["phase"], beat()["step"], beat()["stage"], beat()["steps"]) == ("start", 0, None, None)
    watched.watch.begin_stage("align", 20)
    watched.watch._beat()
    assert (beat()["stage"], beat()["steps"]) == ("align", 20)
    with watched.watch.phase("save", 3):
        watched.spend(7.0, "data", 4)
        assert (beat()["phase"], beat()["step"], beat()["phase_seconds"]) == ("data", 4, 7.0)
        watched.watch._beat()
        assert (beat()["phase"], beat()["pid"], beat()["process"]) == ("save", os.getpid(), 0)
    watched.watch.close()
    assert beat()["phase"] == "done"


@pytest.mark.parametrize("phase", ["data", "step"])
def test_ten_times_the_median_is_slow(watched, capsys, phase):
    steps(watched, 1, 7)
    watched.spend(9.9, phase, 8)
    assert capsys.readouterr().err == ""
    watched.spend(0.2, phase, 8)
    told = capsys.readouterr().err
    host = os.uname().nodename
    assert "slow: step 8 has taken 10.1 s, 10 times the median of 1 s" in told
    assert f"process 0 on {host}: {phase} of step 8 for 0 s" in told
    watched.spend(50.0, phase, 8)
    assert capsys.readouterr().err == ""  # once for a step
    watched.watch.progressed(8)
    watched.spend(11.0, phase, 9)
    assert "slow: step 9 has taken 11.0 s" in capsys.readouterr().err


def test_what_is_no_step_is_not_slow(watched, capsys):
    steps(watched, 1, 7)
    for phase in ("compile", "save", "evaluate"):
        watched.spend(1000.0, phase, 8)
    watched.spend(0.5, "data", 8)
    assert capsys.readouterr().err == ""
    watched.watch.begin_stage("finetune", 9)  # whose steps take longer
    steps(watched, 1, 4, seconds=30.0)
    assert capsys.readouterr().err == ""


def test_short_steps_are_not_slow_below_two_seconds(watched, capsys):
    steps(watched, 1, 7, seconds=0.01)
    watched.spend(1.9, "step", 8)
    assert capsys.readouterr().err == ""
    watched.spend(0.2, "step", 8)
    assert "slow: step 8" in capsys.readouterr().err


def test_steps_are_told_apart_though_results_come_every_fifth(watched, capsys):
    steps(watched, 1, 30, every=5)
    watched.spend(48.0, "step", 31)  # of five steps together
    assert capsys.readouterr().err == ""
    watched.spend(3.0, "step", 31)
    assert "slow: step 31 has taken 10.2 s, 10 times the median of 1 s" in capsys.readouterr().err


def test_shares_are_of_the_whole_time(watched):
    for phase, seconds in {"compile": 10.0, "data": 20.0, "step": 50.0, "save": 15.0, "evaluate": 5.0}.items():
        watched.spend(seconds, phase, 1)
    watched.clock.now += 100.0  # in no phase
    shares = {"start": 0.5, "data": 0.1, "compile": 0.05, "save": 0.075, "evaluate": 0.025}
    assert watched.watch.shares() == pytest.approx(shares)
    summary = "50.0% starting, 10.0% waiting for data, 5.0% compiling, 7.5% saving, 2.5% evaluating"
    assert watched.watch.summary() == summary


@pytest.mark.parametrize(("computing", "waited"), [(True, 0.0), (False, 0.5)])
def test_data_that_comes_while_the_devices_compute_is_not_waited_for(watched, computing, waited):
    watched.spend(5.0, "step", 1)
    with watched.watch.phase("data", 2, hidden=lambda: computing):
        watched.clock.now += 5.0
    assert watched.watch.shares()["data"] == pytest.approx(waited)


# Metrics


VALUES = {"loss": 1.0, "tokens": 2.0}


def test_lines_of_steps_that_are_done_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"stage": stage, "step": step} for stage in ("align", "finetune") for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "finetune", "st')
    writer = Writer(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", "finetune", first_step=2, steps=9)
    assert read_metrics(path) == lines[:-1]
    writer.close()


def test_memory_of_a_device_is_told_where_it_is_known(tmp_path, monkeypatch, capsys):
    class Device:  # a TPU; CPUs say nothing of their memory
        def memory_stats(self):
            return {"bytes_in_use": 2**30, "peak_bytes_in_use": 3 * 2**30, "bytes_limit": 4 * 2**30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    writer = Writer(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", "only", first_step=0, steps=9)
    for step in (1, 2, 3):
        writer.log(step, VALUES)
    writer.close()
    assert [line["peak_memory_gib"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [3.0, 3.0, 3.0]
    assert capsys.readouterr().out.count("memory of a device: 3.00 of 4.00 GiB at most so far") == 1


def test_lines_wait_for_room_on_a_full_disk(tmp_path, capsys):
    writer = Writer(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", "only", first_step=0, steps=9)
    writer.write(1, VALUES)
    device, fd = os.open("/dev/full", os.O_WRONLY), writer._file.fileno()
    kept = os.dup(fd)
    os.dup2(device, fd)
    for step in (2, 3):
        writer.write(step, VALUES)
    errors = capsys.readouterr().err
    assert "ERROR: metrics of step 2 cannot be written: [Errno 28]" in errors
    assert errors.count("ERROR") == 1
    os.dup2(kept, fd)
    writer.write(4, VALUES)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    writer.close()
    os.close(device)
    os.close(kept)


@pytest.mark.timeout(30)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_files_on_a_full_disk_do_not_block(tmp_path, monkeypatch):
    """The thread that writes them ends when it fails; its queue would fill and block the run."""
    writer = Writer(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", "only", first_step=0, steps=99)
    events = writer._board.file_writer.event_writer

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events._ev_writer, "write_event", full)
    writer.write(1, VALUES)
    events._worker.join(10)
    for step in range(2, 200):
        writer.write(step, VALUES)
    writer.close()
    assert any(b"loss" in path.read_bytes() for path in (tmp_path / "tensorboard" / "only").iterdir())


# Profile


def test_a_profile_that_cannot_be_written_is_said(tmp_path, monkeypatch, capsys):
    def full():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: vm.xplane.pb; No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    profile = Profile(tmp_path, (1, 2))
    for step in (1, 2, 3):
        profile.before(step)
        profile.after(step, {})
    profile.close()
    said = capsys.readouterr().err
    assert f"ERROR: the profile could not be written to {tmp_path}: RESOURCE_EXHAUSTED" in said
    assert said.count("ERROR") == 1 and "profile of" not in said


# Told to stop


def test_told_to_stop_within_a_stage_the_step_is_finished():
    with Preemption() as preemption:
        with preemption.held(9):
            assert not preemption.reached(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.reached(2)
        with pytest.raises(StartAgain):  # told in the last step of a stage, it does not begin the next
            preemption.check()
        with pytest.raises(StartAgain) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)  # Python hears it at its next instruction
        assert stopped.value.code == 75
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
