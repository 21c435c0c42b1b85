"""How a run is asked to stop, by SIGTERM, SIGINT or SIGHUP, and how its processes leave together.

One process: while it trains (`StopRequest` is entered) a signal is noted, and the loop saves and leaves after its step;
elsewhere there is nothing to save, and it leaves at once (`main`).

Several: a thread in each (`Siblings`) looks for word from the others in the store that JAX's coordinator keeps. If one
is asked to stop, all are. Those that train agree on the step; where nothing is to be saved all leave at once, whatever
they are at: waiting in a collective, compiling. If one fails, it tells the others, which would wait for it. JAX's own
preemption service is not used: it takes SIGTERM only, and knows nothing of those who are between steps.
"""

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import jax

STATUS = 75  # EX_TEMPFAIL: whoever started the process is asked to start it again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POLL_SECONDS = 0.5
ANSWER_SECONDS = 20  # in which every process must answer that another has been asked
STEP_SECONDS = 100  # in which the step agreed on must come: those who compile, say, are not waited for longer
HEARTBEAT_SECONDS = 30  # after which JAX's coordinator ends everybody if one is no longer heard of
WORD = "rae_jax/word"


class Interrupted(SystemExit):
    """The run was asked to stop and has saved what there was; the exit status asks a scheduler to start it again."""

    def __init__(self) -> None:
        super().__init__(STATUS)


class StopRequest:
    """Notes signals while it is entered, so that a step is never cut in the middle.

    A SIGINT after the first signal ends the process at once.
    """

    def __enter__(self) -> "StopRequest":
        self._asked = False
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in signals_to_answer():
                self._previous[number] = signal.signal(number, self._ask)
        if _siblings:
            _siblings.saving += 1
        _entered.append(self)
        return self

    def __exit__(self, error: type | None, *_: Any) -> None:
        _entered.pop()
        if _siblings:
            _siblings.saving -= 1
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if error is None and (_siblings.leaving if _siblings else self._asked):  # in the last step
            raise Interrupted

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True
        if _siblings:
            _siblings.asked = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def agreed(self) -> bool:
        """Whether any process was asked to stop; every process must call it equally often, and gets the same answer."""
        return _siblings.agreed() if _siblings else self._asked


_entered: list[StopRequest] = []
_siblings: "Siblings | None" = None


def signals_to_answer() -> list[signal.Signals]:
    """Those that ask to stop, without those that whoever started the process wants ignored (`nohup`)."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def leave_if_agreed() -> None:
    """Between two parts of a long piece of work: raises `Interrupted` if the run was asked to stop.

    Every process must call it equally often. Outside `StopRequest` it does nothing: see this module's beginning.
    """
    if _entered and _entered[-1].agreed():
        raise Interrupted


def several() -> bool:
    """Whether this is one of several processes."""
    return _siblings is not None


def ask_all() -> bool:
    """Tells all processes that this one is asked to stop; False if there is but one."""
    if _siblings:
        _siblings.asked = True
    return _siblings is not None


def join(client: Any, number: int, count: int) -> None:
    """From now on this is process `number` of `count`, which have JAX's distributed `client` in common."""
    global _siblings
    _siblings = Siblings(client, number, count)


def fail(status: int, why: str) -> None:
    """Ends this process with `status`, and after it the others, told `why`; returns if there are none."""
    if _siblings:
        _siblings.fail(status, why)


class Siblings:
    """The other processes of this run.

    Attributes:
      asked: whether this process was asked to stop.
      saving: how many loops are under way here that save when asked.
    """

    def __init__(self, client: Any, number: int, count: int):
        self.asked, self.saving = False, 0
        self._client, self._number, self._count = client, number, count
        self._turn = threading.Condition()
        self._calls, self._last, self._held, self._ended = 0, None, False, False
        self._thread = threading.Thread(target=self._watch, name="siblings", daemon=True)
        self._thread.start()
        atexit.register(self._end)  # before JAX's own, which ends the client

    def agreed(self) -> bool:
        """Whether this call, the same one on all processes, is the one after which they leave, or a later one."""
        with self._turn:
            self._calls += 1
            while self._held:  # until all have said how far they are
                self._turn.wait(1.0)
            return self.leaving

    @property
    def leaving(self) -> bool:
        """Whether the call after which the processes leave has been made: on all of them or on none."""
        return self._last is not None and self._calls >= self._last

    def fail(self, status: int, why: str) -> NoReturn:
        """See the function of this name."""
        self._say({"process": self._number, "status": status, "why": why})
        self._leave(status)

    def _watch(self) -> None:
        try:
            while not self._ended:
                if self.asked:
                    self._say({"process": self._number, "status": STATUS, "why": ""})
                if found := self._client.key_value_dir_get(f"{WORD}/"):
                    word = json.loads(found[0][1])
                    if word["why"]:
                        if word["process"] == self._number:
                            return  # it is leaving
                        self._leave(word["status"], f"process {word['process']} has ended: {word['why']}")
                    self._stop_together(word["process"])
                    return
                time.sleep(POLL_SECONDS if not self.asked else 0)
        except jax.errors.JaxRuntimeError as error:
            if not self._ended:
                self._leave(STATUS, f"another process can no longer be heard ({str(error).splitlines()[0]})")

    def _say(self, word: dict[str, Any]) -> None:
        """Leaves word for all; the first word stands."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is one already, or nobody to hear it
            self._client.key_value_set(f"{WORD}/all", json.dumps(word))

    def _stop_together(self, asked: int) -> None:
        """Agrees with the others on the call of `agreed` at which to leave; leaves if nobody has anything to save."""
        with self._turn:
            self._held, calls, saving = True, self._calls, self.saving
        self._client.key_value_set(f"rae_jax/calls/{self._number}", json.dumps([calls, saving]))
        told = [
            json.loads(self._client.blocking_key_value_get(f"rae_jax/calls/{number}", 1000 * ANSWER_SECONDS))
            for number in range(self._count)
        ]
        if not any(saving for _, saving in told):
            self._leave(STATUS, f"process {asked} was asked to stop, and so are all. The same command goes on")
        with self._turn:
            self._last, self._held = 1 + max(calls for calls, _ in told), False
            self._turn.notify_all()
        deadline = time.monotonic() + STEP_SECONDS
        while not self.leaving and not self._ended:
            ended = saving and not self.saving  # the loop is over without the call that was agreed on
            if ended or time.monotonic() > deadline:
                self._leave(STATUS, "asked to stop; nothing more is saved. The same command goes on")
            time.sleep(POLL_SECONDS)

    def _leave(self, status: int, why: str = "") -> NoReturn:
        """Ends this process as it stands: its main thread may be where no exception reaches it."""
        if why:
            print(why, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        if self._number == 0:  # the others would be ended by JAX if the coordinator were gone before they are
            time.sleep(3 * POLL_SECONDS)
        os._exit(status)

    def _end(self) -> None:
        self._ended = True
        self._thread.join(ANSWER_SECONDS)
