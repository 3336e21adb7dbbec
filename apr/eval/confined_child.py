"""In its own process: code that a model wrote, judged where it can do no harm.

Run by `apr.eval.confined` as a file of its own, isolated (`-I -S`), so it imports the standard
library alone. First it locks itself in: namespaces without network, processes or writable files
where the system allows it, resource limits, an unprivileged user, an audit hook that cannot be
taken out again. What holds goes out on one line, the verdict on a second. It guards against what
models write by accident; a program that sets out to can forge its own verdict, not break out.
"""

from __future__ import annotations

import ast
import ctypes
import json
import math
import os
import resource
import signal
import sys
import types
from typing import Any

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 1 << 14, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS = 1, 8, 38
CAP_DAC_READ_SEARCH = 2
NOBODY = 65534
KERNEL = "kernel"  # the level at which the system holds all of it; `apr.eval.confined` has it too
FOLDER_BYTES = 16 << 20

# Audit events of CPython that code under judgement has no use for, by the event's beginning.
DENIED = (
    "socket.", "subprocess.", "ctypes.", "pty.", "os.system", "os.exec", "os.fork",
    "os.posix_spawn", "os.spawn", "os.kill", "signal.pthread_kill", "resource.setrlimit",
    "os.startfile", "webbrowser.",
)  # fmt: skip
# Events that change files: their first argument must lie in the working folder.
CHANGING = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.lchown", "os.chflags", "os.setxattr", "os.removexattr", "os.utime",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Judge one program, given as JSON on stdin."""
    request = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    folder = os.getcwd()  # noqa: PTH109
    linux = sys.platform == "linux"
    if linux:
        _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    held = _namespaces(folder) if linux and request["by"] != "python" else {}
    child = os.fork()  # into the new process namespace: with this one's end all of it ends
    if child:
        os.close(out)
        signal.alarm(math.ceil(request["seconds"]) + 60)  # should the parent be gone
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    os.chdir(folder)  # the folder mounted there, where it is one
    _limits(request)
    held.update(_unprivileged(folder))
    if _forks_are_refused():
        held["processes"] = "no new ones (limit)"
    missing = [part for part in ("network", "processes", "files") if part not in held]
    held["level"] = f"Python alone for {', '.join(missing)}" if missing else KERNEL
    held.setdefault("network", "sockets refused by Python's audit hook alone")
    held.setdefault("processes", "forks refused by Python's audit hook alone")
    held.setdefault("files", "changes outside the folder refused by Python's audit hook alone")
    ballast = bytearray(1 << 20)  # so that a program out of memory can still be reported
    _send(out, held)
    if request["by"] != "kernel":
        sys.addaudithook(_guard(os.path.realpath(folder)))
    try:
        verdict, detail = _judge(request)
    except MemoryError:
        del ballast
        verdict, detail = "out of memory", "MemoryError"
    _send(out, {"verdict": verdict, "detail": detail})
    os._exit(0)


def _send(out: int, message: dict[str, Any]) -> None:
    os.write(out, (json.dumps(message) + "\n").encode())


def _judge(request: dict[str, Any]) -> tuple[str, str]:
    program = request["program"]
    try:
        tree = ast.parse(program)
        if request["parse_only"]:
            return "passed", ""
        code = compile(tree, "<program>", "exec")
    except (SyntaxError, ValueError, RecursionError) as error:
        return "syntax error", _line(error)
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(code, module.__dict__)
    except MemoryError:
        raise
    except BaseException as error:
        return "failed", _line(error)
    return "passed", ""


def _line(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return " ".join(f"{type(error).__name__}: {text}".split())[:200].rstrip(": ")


# --- what holds it ----------------------------------------------------------------------------


def _call(name: str, *arguments: Any) -> None:
    """A function of the C library, or OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _namespaces(folder: str) -> dict[str, str]:
    """What namespaces hold; empty where the system does not allow them."""
    held: dict[str, str] = {}
    uid, gid = os.geteuid(), os.getegid()
    parts = NEWNET | NEWPID | NEWNS | NEWIPC
    try:
        try:
            _call("unshare", parts)
        except OSError:  # not root: the same inside an own user namespace
            _call("unshare", NEWUSER | parts)
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {uid} 1"),
                ("gid_map", f"{gid} {gid} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                    file.write(text)
    except (OSError, AttributeError):
        return held
    held["network"] = "none (own network namespace)"
    try:
        _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        attributes = (ctypes.c_uint64 * 4)(1 | 2, 0, 0, 0)  # read-only, no set-uid
        _call(
            "syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, ctypes.byref(attributes), 32
        )
        for place, size in ((folder.encode(), FOLDER_BYTES), (b"/proc", 4096)):
            options = f"size={size},mode=0777".encode()
            _call("mount", b"tmpfs", place, b"tmpfs", MS_NOSUID | MS_NODEV, options)
    except (OSError, AttributeError):
        return held
    held["files"] = f"read-only but an own folder of {FOLDER_BYTES >> 20} MiB in memory"
    return held


def _limits(request: dict[str, Any]) -> None:
    seconds = math.ceil(request["seconds"]) + 1
    for name, value in (
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_AS", request["memory"]),
        ("RLIMIT_FSIZE", request["file_size"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),
    ):
        if hasattr(resource, name):
            resource.setrlimit(getattr(resource, name), (value, value))


def _unprivileged(folder: str) -> dict[str, str]:
    """Give up all rights but those of an ordinary user, and every way to get them back.

    Root becomes `nobody`, for whom RLIMIT_NPROC counts; it keeps the right to read where Python's
    own library lies in a folder of root's.
    """
    held = {"limits": "time, memory, file size, open files", "user": "own"}
    linux = sys.platform == "linux"
    if os.geteuid() == 0:
        if os.stat(folder).st_uid == 0:  # noqa: PTH116
            os.chmod(folder, 0o777)  # noqa: PTH101
        if linux:
            _call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            held["user"] = "nobody"
        except OSError:
            held["user"] = "root without its rights (no other user exists here)"
    if linux:
        try:
            with open(os.__file__, "rb"):  # noqa: PTH123
                kept = 0
        except OSError:
            kept = 1 << CAP_DAC_READ_SEARCH
            held["user"] += ", may read all files"
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        _call("capset", header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0))
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return held


def _forks_are_refused() -> bool:
    """Whether the limit on processes holds; it does not for a user that is the system's root."""
    try:
        child = os.fork()
    except OSError:
        return True
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return False


def _guard(folder: str) -> Any:
    """The audit hook: refuses network, processes, and changes outside the folder."""
    refused = PermissionError

    def inside(path: Any) -> bool:
        if isinstance(path, int):
            return True
        found = os.path.realpath(os.fsdecode(path))
        return found == folder or found.startswith(folder + os.sep) or found == os.devnull

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & WRITING and not inside(path):
                raise refused(f"{event} for writing is not allowed here")
        elif event.startswith(DENIED):
            raise refused(f"{event} is not allowed here")
        elif event in CHANGING:
            # A link or a rename changes both of its names.
            both = event in ("os.rename", "os.link", "os.symlink")
            if not all(inside(path) for path in arguments[: 2 if both else 1]):
                raise refused(f"{event} is not allowed here")

    return hook


if __name__ == "__main__":
    main()
