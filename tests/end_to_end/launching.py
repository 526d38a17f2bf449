"""Runs scripts as a user would, as `__main__` in a process of their own, forked from one that has imported the heavy
packages already: importing them anew would take most of a small run's time."""

import atexit
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["topklm.training.pretrain", "topklm.data.commands", "hydra.main"])


class Command:
    """A script under way, with the part of ``subprocess.Popen`` that tests use.

    Args:
        script: below the repository. arguments, cwd: as on a command line. env: all of the environment.
        largest_file: no file it writes may grow beyond so many bytes, as on a full disk.
    """

    def __init__(self, script, arguments, cwd, env, largest_file=None):
        self.args = [str(ROOT / script), *arguments]
        self._outputs = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115 - as long as this
        names = [file.name for file in self._outputs]
        self._process = _context.Process(target=_run, args=(self.args, str(cwd), env, names, largest_file))
        self._process.start()

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def output(self):
        """What it wrote to stdout so far."""
        return Path(self._outputs[0].name).read_text(errors="replace")

    def communicate(self, timeout=None):
        """Waits for its end; what it wrote to stdout and stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self.args, timeout)
        return tuple(Path(file.name).read_text(errors="replace") for file in self._outputs)


def stop_all():
    """Ends what a failed test has left running."""
    for process in multiprocessing.active_children():
        process.kill()


def _run(args, cwd, env, outputs, largest_file):
    for target, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), target)
    sys.stdin = open(os.devnull)  # noqa: SIM115 - until the process ends
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    import torch

    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))  # which the packages read when they were imported
    sys.argv = args
    sys.path[:] = [str(Path(args[0]).parent), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    code = 0
    try:
        runpy.run_path(args[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()  # a process of multiprocessing ends without
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
