"""One line instead of a silent death when a file that is mapped into memory becomes shorter.

Large weights are mapped, not read: PyTorch and safetensors then take each page from the file when
it is needed. Where another program has cut the file off by then (`cp` over it does, a rename does
not), the kernel sends SIGBUS. A handler of Python's own module `signal` would never run, as the
instruction that failed is repeated first; one that the C library calls does.
"""
import ctypes
import os
import signal
import threading
from collections.abc import Callable

MESSAGE = ("a file that this process reads became shorter, or its disk failed (SIGBUS); do not "
           "overwrite weights in use: copy them under another name, then rename, and run again")

_handlers = []              # the C library holds their addresses only
_ending = threading.Lock()  # of several threads that fail, the first ends the process


def end_with(end: Callable[[str], None]):
    """From now on SIGBUS calls `end`, which must end this process, with a message for the user.

    Where the C library cannot be asked, SIGBUS stays what it was.
    """
    def handle(_):
        _ending.acquire()   # never released
        try:
            end(MESSAGE)
        finally:
            os._exit(128 + signal.SIGBUS)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    try:
        set_handler = ctypes.CDLL(None).signal
    except (AttributeError, OSError, TypeError):    # another C library
        return
    set_handler.restype = ctypes.c_void_p
    set_handler(int(signal.SIGBUS), handler)
    _handlers.append(handler)
